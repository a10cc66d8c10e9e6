"""Random small models: plan, proof, merge. Where no example reaches some weights, coupled rightly, or refused."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from wid_hf import WidConfig, get_wid_model
from wid_hf.coupling import Example, make_plan, trace, verify
from wid_hf.coupling.dims import leaves
from wid_hf.coupling.plan import key
from wid_hf.coupling.trace import NOT_REACHED
from wid_hf.errors import PlanError

KINDS = ("linear", "gate", "norm", "shift", "feed_forward", "heads", "twice", "mixed")


class Block(nn.Module):
    """One step on a stream; `kind` says which operations."""

    def __init__(self, kind: str, width: int, inner: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("linear", "feed_forward", "heads"):
            self.up = nn.Linear(width, inner)
            self.down = nn.Linear(inner, width)
        elif kind == "norm":
            self.norm = nn.LayerNorm(width)
        elif kind == "mixed":
            self.mix = nn.Parameter(torch.randn(width, width))
        else:
            self.vector = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.down(self.up(x))
        if self.kind == "feed_forward":
            return x + self.down(torch.special.bessel_j0(self.up(x)))
        if self.kind == "heads":
            heads = self.up(x).unflatten(-1, (2, -1)).transpose(1, 2)
            mixed = (heads @ heads.transpose(-1, -2)).softmax(-1) @ heads
            return x + self.down(mixed.transpose(1, 2).flatten(2))
        if self.kind == "norm":
            return self.norm(x)
        if self.kind == "mixed":
            return x + x @ self.mix.exp2()
        if self.kind == "twice":
            return torch.hypot(x, self.vector) * self.vector
        return x * self.vector.sigmoid() if self.kind == "gate" else x.clone().add_(self.vector)


class NetworkConfig(PretrainedConfig):
    model_type = "random_network"

    def __init__(
        self,
        kinds: tuple[str, ...] = (),
        usual: tuple[int, ...] = (),
        hidden_size: int = 6,
        intermediate_size: int = 8,
        **others: Any,
    ) -> None:
        self.kinds, self.usual = list(kinds), list(usual)
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        super().__init__(**others)


class Network(PreTrainedModel):
    """Blocks of which a forward runs the `usual`, or everything when told to."""

    config_class = NetworkConfig
    main_input_name = "x"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.enter, self.leave = nn.Linear(5, config.hidden_size), nn.Linear(config.hidden_size, 3)
        self.blocks = nn.ModuleList(Block(kind, config.hidden_size, config.intermediate_size) for kind in config.kinds)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every module as its constructor made it."""

    def forward(self, x: Tensor, everything: bool = False) -> Tensor:
        x = self.enter(x)
        for number, block in enumerate(self.blocks):
            if everything or number in self.config.usual:
                x = block(x)
        return self.leave(x)


@st.composite
def networks(draw: Any, whole: bool = False) -> Network:
    """Networks of which a forward runs some blocks, or all of them where they are to be `whole`."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    every = set(range(len(kinds)))
    numbers = st.just(every) if whole else st.sets(st.sampled_from(sorted(every)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return Network(NetworkConfig(tuple(kinds), tuple(draw(numbers)))).eval()


SIZES = st.sampled_from([(4, 8), (6, 4), (4, 4)])


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def narrow_shapes(model: Network, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return shapes_of(Network(NetworkConfig(model.config.kinds, model.config.usual, hidden, inner)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), SIZES)
def test_a_student_is_coupled_as_inputs_that_no_example_showed_demand_or_refused(
    model: Network, sizes: tuple[int, int]
) -> None:
    x = torch.randn(2, 7, 5)
    seen, whole = trace(model, {"x": x}), trace(model, {"x": x, "everything": True})
    assert verify(model, seen) >= 1
    narrow = narrow_shapes(model, *sizes)
    try:
        plan = make_plan(seen, narrow)
    except PlanError:
        assert any(narrow[name] != tuple(seen.weights[name].shape) for name in seen.unreached)
        return
    shrinking = [
        (name, axis)
        for name, weight in seen.weights.items()
        for axis in range(weight.ndim)
        if narrow[name][axis] < weight.shape[axis]
    ]
    for name, axis in shrinking:
        for other, beside in shrinking:
            if key(whole.weight_dims[name][axis]) == key(whole.weight_dims[other][beside]):
                assert key(plan.axes[name][axis]) == key(plan.axes[other][beside]), (name, axis, other, beside)


@settings(max_examples=20, deadline=None)
@given(networks())
def test_further_examples_free_what_they_couple(model: Network) -> None:
    x = torch.randn(2, 7, 5)
    both = trace(model, {"x": x}, [Example({"x": x, "everything": True})])
    assert both.unreached == []
    assert not any(leaf.frozen == NOT_REACHED for dims in both.weight_dims.values() for d in dims for leaf in leaves(d))
    assert verify(model, both) >= 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(whole=True), SIZES)
def test_a_merged_student_computes_what_the_wid_model_computed(model: Network, sizes: tuple[int, int]) -> None:
    """After training: every compactor is moved away from its start."""
    narrow = narrow_shapes(model, *sizes)
    assume(narrow != shapes_of(model))
    x = torch.randn(2, 7, 5)
    config = WidConfig(hidden_size=sizes[0], intermediate_size=sizes[1], init="identity")
    wid = get_wid_model(model, config, example_inputs={"x": x}, verify=True).eval()
    with torch.no_grad():
        for parameter in wid.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        before = wid(x=x)
        student = wid.merge_and_unload()
        assert type(student) is Network
        assert shapes_of(student) == narrow
        torch.testing.assert_close(student(x=x), before)
