"""A trace leaves no trace, sees every weight once, and knows which weights carry a changed number."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from architectures import ARCHITECTURES, every_family, planned
from transformers import BertForMaskedLM

from wid_hf.coupling import trace
from wid_hf.coupling.carrier import Carrier


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
        with pytest.raises(ValueError, match="Rotary positions"):
            scales(family, "dim")
    elif family == "llama":  # heads of its own stated width keep it: rotary positions
        assert scales(family, "dim") == {}
    elif family == "t5":  # no attention scale at all
        assert set(scales(family, "dim")) == {"decoder.final_layer_norm.weight"}
    else:
        layers = 1 if family == "albert" else 2
        assert list(scales(family, "dim").values()) == pytest.approx([sqrt(1 / 2)] * layers)


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
