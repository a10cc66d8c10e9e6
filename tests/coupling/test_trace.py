"""A trace leaves no trace, sees every weight once, and knows which weights carry a changed number."""

from __future__ import annotations

import importlib
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, every_family, planned
from torch import Tensor, nn
from transformers import BertForMaskedLM

from wid_hf.coupling import Example, make_plan, trace, verify
from wid_hf.coupling.carrier import Carrier
from wid_hf.coupling.dims import find
from wid_hf.coupling.plan import key
from wid_hf.coupling.trace import Trace


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


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
    """Three experts of which tokens above 0 take the first, the others the second; the third gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(3))
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.experts[0](x) + self.experts[1](x))


def test_an_expert_that_got_no_token_follows_a_sibling_that_got_some() -> None:
    model = Routed()
    seen = trace(model, {"x": torch.randn(3, 7, 4)})
    assert seen.twins["experts.2.0.weight"] == "experts.0.0.weight"
    residual, inner = seen.weight_dims["enter.weight"][0], seen.weight_dims["experts.0.0.weight"][0]
    assert [key(dim) for dim in seen.weight_dims["experts.2.0.weight"]] == [key(inner), key(residual)]
    shapes = {name: tuple({6: 3, 5: 5, 4: 4, 2: 2}[size] for size in w.shape) for name, w in seen.weights.items()}
    assert any("experts.2.0.weight` was not reached and follows" in note for note in make_plan(seen, shapes).notes)


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


class Forgetful(nn.Module):
    """Makes a layer that its forward never uses, and one that it uses for other inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 2)
        self.forgotten_layer = nn.Linear(6, 6)
        self.sometimes = nn.Linear(6, 6)

    def forward(self, x: Tensor, often: bool = False) -> Tensor:
        x = self.enter(x)
        return self.leave(self.sometimes(x) if often else x)


def test_a_weight_that_no_code_reads_is_free_and_one_that_other_inputs_reach_is_frozen() -> None:
    seen = trace(Forgetful(), {"x": torch.randn(3, 7, 4)})
    forgotten = "forgotten" + "_layer"  # in one piece the name would stand in this file twice
    assert seen.idle == [f"{forgotten}.weight", f"{forgotten}.bias"]
    assert find(seen.weight_dims[f"{forgotten}.weight"][0]).frozen is None
    frozen = find(seen.weight_dims["sometimes.weight"][0]).frozen
    assert frozen is not None and "not reached" in frozen.text


BASE = """
from torch import nn

class Base(nn.Module):
    def forward(self, x, often=False):
        x = self.enter(x)
        return self.leave(self.unusual(x) if often else x)
"""
MADE_ELSEWHERE = """
from torch import nn
from base_of_it import Base

class Made(Base):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 2)
        self.unusual = nn.Linear(6, 6)
"""


def test_a_weight_that_a_base_class_in_another_file_reads_is_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base_of_it.py").write_text(BASE, encoding="utf-8")
    (tmp_path / "made_of_it.py").write_text(MADE_ELSEWHERE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("made_of_it").Made()
    seen = trace(model, {"x": torch.randn(3, 7, 4)})
    assert seen.idle == []
    frozen = find(seen.weight_dims["unusual.weight"][0]).frozen
    assert frozen is not None and "not reached" in frozen.text


def test_nothing_is_idle_where_a_class_has_no_source_file() -> None:
    made: dict[str, Any] = {"__name__": "a_notebook"}
    exec(MADE_ELSEWHERE.replace("from base_of_it import Base", BASE), made)
    seen = trace(made["Made"](), {"x": torch.randn(3, 7, 4)})
    assert seen.idle == []
    assert find(seen.weight_dims["unusual.weight"][0]).frozen is not None
