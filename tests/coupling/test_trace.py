"""A trace leaves no trace, sees every weight once, and knows which weights carry a changed number."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from architectures import ARCHITECTURES, every_family, planned
from torch import Tensor, nn
from toys import hooks
from transformers import BertForMaskedLM

from wid_hf.coupling import Example, trace, verify
from wid_hf.coupling.carrier import Carrier
from wid_hf.coupling.dims import find
from wid_hf.coupling.plan import key
from wid_hf.coupling.routing import rolled_routers
from wid_hf.coupling.trace import Trace


@every_family
def test_a_trace_leaves_the_model_and_the_random_state_as_they_were(family: str) -> None:
    model = ARCHITECTURES[family].build()
    model.train()
    next(m for name, m in model.named_modules() if name.count(".") > 1).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    state, before = torch.get_rng_state(), hooks(model)
    trace(model, ARCHITECTURES[family].inputs)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks(model) == before


def test_a_forward_that_fails_still_restores_modes_and_hooks(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.train()
    before = hooks(tiny_bert)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        trace(tiny_bert, {"nonsense": 1})
    assert all(module.training for module in tiny_bert.modules())
    assert hooks(tiny_bert) == before


def test_tied_weights_are_seen_once_under_their_first_name(tiny_bert: BertForMaskedLM) -> None:
    seen = trace(tiny_bert, {"input_ids": torch.arange(21).view(3, 7)})
    assert seen.aliases["cls.predictions.decoder.weight"] == "bert.embeddings.word_embeddings.weight"
    assert seen.aliases["cls.predictions.decoder.bias"] == "cls.predictions.bias"
    assert "cls.predictions.decoder.weight" not in seen.weights
    assert len({id(tensor) for tensor in seen.weights.values()}) == len(seen.weights)
    assert set(seen.aliases) == set(tiny_bert.state_dict())


@every_family
def test_every_weight_has_one_dimension_per_axis_of_its_size(family: str) -> None:
    row = ARCHITECTURES[family]
    model = row.build()
    seen = trace(model, row.inputs)
    shapes = {name: tuple(dim.size for dim in dims) for name, dims in seen.weight_dims.items()}
    assert shapes == {name: tuple(weight.shape) for name, weight in seen.weights.items()}
    assert {id(weight) for weight in seen.weights.values()} >= {id(p) for p in model.parameters()}


def scales(family: str, strategy: str) -> dict[str, float]:
    plan = planned(family, strategy)
    assert plan.unfolded == ()
    return {carrier.parameter: factor for carrier, factor in plan.scales.items()}


def test_query_weights_carry_the_changed_attention_scale_of_narrower_heads() -> None:
    assert scales("bert", "dim") == pytest.approx(
        {f"bert.encoder.layer.{n}.attention.self.query.weight": sqrt(6 / 12) for n in (0, 1)}
    )


def test_heads_that_keep_their_width_change_no_scale() -> None:
    assert scales("bert", "head") == scales("llama", "head") == scales("gpt2", "head") == {}


def test_the_query_third_of_a_fused_projection_carries_the_attention_scale() -> None:
    assert planned("gpt2", "dim").scales == pytest.approx(
        {Carrier(f"transformer.h.{n}.attn.c_attn.weight", 1, 0, 48): sqrt(6 / 12) for n in (0, 1)}
    )


def test_the_scale_of_a_tied_head_lands_on_the_last_normalisation_of_the_decoder() -> None:
    assert scales("t5", "head") == pytest.approx({"decoder.final_layer_norm.weight": sqrt(24 / 48)})


@every_family
def test_each_narrower_head_has_its_attention_scale_folded(family: str) -> None:
    if "dim" not in ARCHITECTURES[family].strategies:
        with pytest.raises(ValueError, match="rotary positions"):
            scales(family, "dim")
    elif family == "llama":  # heads of its own stated width keep it: rotary positions
        assert scales(family, "dim") == {}
    elif family == "t5":  # no attention scale at all
        assert set(scales(family, "dim")) == {"decoder.final_layer_norm.weight"}
    else:
        layers = 1 if family == "albert" else 2
        assert list(scales(family, "dim").values()) == pytest.approx([sqrt(1 / 2)] * layers)


class Routed(nn.Module):
    """Of five experts, each token takes the one with the largest score."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.router = nn.Linear(6, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)) for _ in range(5))
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        scores, chosen = self.router(x).softmax(-1).max(-1, keepdim=True)
        mixed = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            mixed = torch.where(chosen == number, scores * self.experts[number](x), mixed)
        return self.leave(x + mixed)


def seen_routed(model: Routed) -> Trace:
    x = torch.randn(2, 1, 4)
    seen = Trace(model)
    seen.run(Example({"x": x}))
    for rows in rolled_routers(seen):
        seen.run(Example({"x": x}, rolled=rows), optional=True)
    seen.finish()
    return seen


def test_experts_that_got_no_token_are_reached_by_moving_the_rows_of_their_router_round() -> None:
    torch.manual_seed(0)
    model = Routed()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    alone = trace(model, {"x": torch.randn(2, 1, 4)})
    assert any(name.startswith("experts.") for name in alone.unreached)
    seen = seen_routed(model)
    assert seen.unreached == []
    residual = seen.weight_dims["enter.weight"][0]
    for expert in range(5):
        inner = seen.weight_dims[f"experts.{expert}.0.weight"][0]
        assert find(inner).frozen is None
        assert key(seen.weight_dims[f"experts.{expert}.0.weight"][1]) == key(residual)
        assert key(seen.weight_dims[f"experts.{expert}.2.weight"][0]) == key(residual)
    assert find(residual).frozen is None
    assert verify(model, seen) == 1 + 5 + 1
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


class Siblings(nn.Module):
    """Two layers of one list, the second of which works on another stream, and only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 6), nn.Linear(4, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor, both: bool = False) -> tuple[Tensor, Tensor]:
        one, other = self.layers[0](self.one(x)), self.other(x)
        return one, self.layers[1](other) if both else other


def test_a_layer_that_no_example_reached_does_not_follow_a_sibling() -> None:
    seen = trace(Siblings(), {"x": torch.randn(3, 7, 4)})
    frozen = [find(dim).frozen for dim in seen.weight_dims["layers.1.weight"]]
    assert all(why is not None and "not reached" in why.text for why in frozen)


class Idle(nn.Module):
    """A weight-normed convolution that no forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 2)
        self.idle = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_weight_in_parts_that_no_forward_reaches_is_frozen() -> None:
    seen = trace(Idle(), {"x": torch.randn(3, 7, 4)})
    direction = seen.weight_dims["idle.parametrizations.weight.original1"]
    assert [dim.frozen is not None for dim in map(find, direction)] == [True] * 3


class Towers(nn.Module):
    """A part with a projection; the model's own forward uses the part only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.part = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        x = self.enter(x)
        return x if side is None else x + self.part(side)


def test_a_further_example_couples_what_the_first_leaves_out() -> None:
    model, x = Towers(), torch.randn(3, 7, 4)
    alone = trace(model, {"x": x})
    assert alone.unreached == ["part.0.weight", "part.0.bias", "part.1.weight", "part.1.bias"]
    both = trace(model, {"x": x}, [Example({"x": x, "side": x})])
    assert both.unreached == []
    assert key(both.weight_dims["part.1.weight"][0]) == key(both.weight_dims["enter.weight"][0])
    assert verify(model, both) == 2


def test_what_a_part_returns_is_frozen_where_nothing_shows_how_the_model_uses_it() -> None:
    model, x = Towers(), torch.randn(3, 7, 4)
    seen = trace(model, {"x": x}, [Example({"input": x}, part="part")])
    assert seen.unreached == []
    assert find(seen.weight_dims["part.0.weight"][0]).frozen is None
    frozen = find(seen.weight_dims["part.1.weight"][0]).frozen
    assert frozen is not None and "returned by a part of the model" in frozen.text


def test_a_further_example_that_fails_reaches_nothing() -> None:
    model, x = Towers(), torch.randn(3, 7, 4)
    seen = Trace(model)
    seen.run(Example({"x": x}))
    before, steps = seen.unreached, dict(seen.steps)
    with pytest.raises(RuntimeError):
        seen.run(Example({"x": x, "side": torch.randn(2, 7, 4)}))  # the part runs, its sum does not
    assert seen.unreached == before
    assert dict(seen.steps) == steps


class Positions(nn.Module):
    """Adds or multiplies a table that no checkpoint holds."""

    def __init__(self, multiply: bool) -> None:
        super().__init__()
        self.enter, self.leave, self.multiply = nn.Linear(4, 6), nn.Linear(6, 2), multiply
        self.register_buffer("table", torch.randn(20, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table[: x.shape[1]]
        return self.leave(self.enter(x) * rows if self.multiply else self.enter(x) + rows)


@pytest.mark.parametrize("multiply", [False, True])
def test_a_computed_table_may_shrink_where_it_is_added_but_not_where_it_multiplies(multiply: bool) -> None:
    model = Positions(multiply)
    seen = trace(model, {"x": torch.randn(3, 7, 4)})
    dim = find(seen.weight_dims["enter.weight"][0])
    assert key(dim) == key(seen.computed_dims["table"][1])
    assert (dim.frozen is not None) == multiply
    assert verify(model, seen) == (1 if multiply else 2)  # the output is free as well
    if multiply:
        assert "meets buffer `table`" in str(dim.frozen)


def test_a_module_that_the_forward_itself_puts_in_place_is_named() -> None:
    class Swapping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.inner = torch.nn.Sequential(self.inner)
            return self.inner(x)

    seen = trace(Swapping(), {"x": torch.randn(3, 4)})
    assert {name for name, _ in seen.steps} >= {"inner.0"}


def test_a_weight_norm_that_nothing_reached_is_frozen() -> None:
    class Idle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(4, 6)
            self.idle = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x)

    seen = trace(Idle(), {"x": torch.randn(3, 4)})
    idle = [dims for name, dims in seen.weight_dims.items() if name.startswith("idle.")]
    assert idle and all(dim.frozen is not None for dims in idle for dim in dims)


class Gated(nn.Module):
    """A gate that other inputs use, or training only, or that is computed and dropped."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 2)
        self.gate = nn.Parameter(torch.randn(6))
        self.way = way

    def forward(self, x: Tensor, often: bool = False) -> Tensor:
        x = self.enter(x)
        if self.way == "dropped":
            scale = self.gate.sigmoid()
        elif self.way == "summed":
            self.gate.sum()
            scale = self.gate
        elif self.way == "shape":
            x = x + self.gate.new_zeros(x.shape[-1])
            scale = self.gate
        else:
            scale = self.gate
        if often or (self.way == "training" and self.training) or (self.way == "longer" and x.shape[1] > 100):
            x = x * scale
        return self.leave(x)


@pytest.mark.parametrize("way", ["flag", "training", "longer", "dropped", "summed", "shape"])
@pytest.mark.parametrize("value", ["random", "ones", "zeros"])
def test_a_weight_that_no_example_reached_is_frozen_whatever_it_holds(way: str, value: str) -> None:
    model = Gated(way)
    if value != "random":
        getattr(nn.init, f"{value}_")(model.gate)
    seen = trace(model, {"x": torch.randn(3, 7, 4)})
    assert seen.unreached == ["gate"]
    frozen = find(seen.weight_dims["gate"][0]).frozen
    assert frozen is not None and "not reached" in frozen.text
    assert find(seen.weight_dims["enter.weight"][0]).frozen is None


def test_a_weight_that_an_example_reached_is_coupled_whatever_it_holds() -> None:
    model = Gated("flag")
    nn.init.ones_(model.gate)
    seen = trace(model, {"x": torch.randn(3, 7, 4), "often": True})
    assert key(seen.weight_dims["gate"][0]) == key(seen.weight_dims["enter.weight"][0])
    assert verify(model, seen) == 2


class Buffered(nn.Module):
    """A saved buffer that no forward reads."""

    def __init__(self, entries: Tensor) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.register_buffer("kept", entries)

    def forward(self, x: Tensor) -> Tensor:
        return self.enter(x)


def test_an_unreached_buffer_is_free_only_where_all_its_entries_are_one_number() -> None:
    """Whichever are kept are the same, and no optimizer makes them differ; I-BERT has such, all zero."""
    same, other = (trace(Buffered(e), {"x": torch.randn(3, 7, 4)}) for e in (torch.zeros(6), torch.arange(6.0)))
    assert find(same.weight_dims["kept"][0]).frozen is None
    assert find(other.weight_dims["kept"][0]).frozen is not None


class LastLayerDropped(nn.Module):
    """Two streams; of the second one's last layer nothing is returned (LXMERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 2)
        self.up, self.down, self.loose = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(9, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        inner = self.up(x).relu()
        x + self.down(inner), self.loose(inner)  # dropped
        return self.leave(x)


def test_what_two_dropped_weights_have_in_common_stays_free_and_what_they_give_does_not() -> None:
    seen = trace(LastLayerDropped(), {"x": torch.randn(3, 7, 4)})
    assert find(seen.weight_dims["up.weight"][0]).frozen is None
    assert key(seen.weight_dims["down.weight"][0]) == key(seen.weight_dims["enter.weight"][0])
    assert find(seen.weight_dims["down.weight"][0]).frozen is None
    assert find(seen.weight_dims["loose.weight"][0]).frozen is not None


def test_a_write_into_a_part_of_a_tensor_is_seen_in_the_whole() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.leave = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            joined = x.new_zeros(*x.shape[:-1], 6)
            joined[..., :3] = self.first(x)
            joined[..., 3:].copy_(self.second(x))
            return self.leave(joined)

    seen = trace(Written(), {"x": torch.randn(3, 7, 4)})
    assert seen.unreached == []
