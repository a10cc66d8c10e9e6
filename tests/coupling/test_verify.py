"""The permutation proof: it passes for every architecture, and a broken rule cannot pass it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, every_family
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from wid_hf import ProofError, WidConfig, get_wid_model
from wid_hf.coupling import Dim, Example, Trace, op_registry, trace, verify
from wid_hf.coupling.dims import find
from wid_hf.planning.example_inputs import example_inputs

aten = torch.ops.aten
INPUTS = {"input_ids": torch.arange(21).view(3, 7)}


@every_family
def test_every_free_dimension_of_every_architecture_is_proved(family: str) -> None:
    row = ARCHITECTURES[family]
    model = row.build()
    assert verify(model, trace(model, row.inputs)) >= 5


def test_the_proof_counts_residual_feed_forward_heads_and_two_widths_per_layer(tiny_bert: BertForMaskedLM) -> None:
    # The prediction head's transform has a width of its own, but the tied decoder joins it to the residual.
    assert verify(tiny_bert, trace(tiny_bert, INPUTS)) == 1 + 2 * (1 + 3)


def test_the_proof_leaves_weights_modes_and_random_state_alone(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.train()
    weights = {name: tensor.clone() for name, tensor in tiny_bert.state_dict().items()}
    state = torch.get_rng_state()
    verify(tiny_bert, trace(tiny_bert, INPUTS))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_bert.state_dict().items())
    assert all(module.training for module in tiny_bert.modules())
    assert torch.equal(torch.get_rng_state(), state)


def _uncontracted(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> Any:
    return trace.dims(a)[0], trace.dims(b)[1]


def _unrelated(trace: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **scales: float) -> Any:
    return trace.dims(a)[0], Dim(out.shape[1])


def _unscaled(trace: Trace, out: Sequence[Tensor], a: Tensor, *rest: Any) -> Any:
    return [trace.dims(a), *((*trace.dims(a)[:-1], Dim(1)) for _ in range(2))]


def _unwalked(trace: Trace, out: Tensor, table: Tensor, indices: Tensor, *rest: Any) -> Any:
    return (*trace.dims(indices), trace.dims(table)[1])  # does not freeze the rows that are looked up


@pytest.mark.parametrize(
    ("operation", "broken", "culprit"),
    [
        (aten.addmm.default, _unrelated, r"`bert\.encoder\.layer\.0\.intermediate\.dense\.weight` axis 0"),
        (aten.mm.default, _uncontracted, r"`cls\.predictions\.transform\.LayerNorm\.weight` axis 0"),
        (aten.native_layer_norm.default, _unscaled, r"`bert\.embeddings\.LayerNorm\.weight` axis 0 \(24\)"),
        (aten.embedding.default, _unwalked, r"`bert\.embeddings\.position_embeddings\.weight` axis 0 \(32\)"),
    ],
)
def test_a_broken_rule_is_caught_and_the_members_are_named(
    tiny_bert: BertForMaskedLM,
    monkeypatch: pytest.MonkeyPatch,
    operation: Any,
    broken: Callable[..., Any],
    culprit: str,
) -> None:
    if operation is aten.mm.default:  # a linear layer without bias
        tiny_bert.cls.predictions.decoder = torch.nn.Linear(24, 60, bias=False)
    with torch.no_grad():
        for parameter in tiny_bert.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    monkeypatch.setitem(op_registry._RULES, operation, broken)
    with pytest.raises(ProofError, match=rf"(?s)proof failed for BertForMaskedLM.*{culprit}"):
        verify(tiny_bert, trace(tiny_bert, INPUTS))


def test_get_wid_model_proves_on_request_before_anything_is_wrapped(
    tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(op_registry._RULES, aten.native_layer_norm.default, _unscaled)
    with pytest.raises(ProofError, match="renaming indices changed the outputs"):
        get_wid_model(tiny_bert, WidConfig(hidden_size=12), verify=True)
    assert not hasattr(tiny_bert, "peft_config")


class Caching(nn.Module):
    """Keeps in evaluation what it computed from a weight, as LeViT does with its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.bias = nn.Linear(6, 8), nn.Linear(8, 4), nn.Parameter(torch.randn(8))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> Caching:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = self.bias * 2
        return self.down(self.up(x) * self.kept)


def test_what_a_model_keeps_in_evaluation_neither_fools_the_proof_nor_outlives_it() -> None:
    model = Caching().eval()
    x = torch.randn(3, 6)
    before = model(x)
    assert verify(model, trace(model, {"x": x})) == 2
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(("fixture", "hidden"), [("reaction_bert_dir", 256), ("minilm_dir", 384)])
def test_real_teachers_are_proved_on_their_real_weights(
    fixture: str, hidden: int, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    if fixture == "minilm_dir":
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder)
    else:
        model = AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.hidden_size == hidden
    inputs = example_inputs(model)
    layers = model.config.num_hidden_layers
    assert verify(model, trace(model, inputs)) >= 1 + 4 * layers


def test_hidden_states_from_outside_shrink_with_the_weights_whose_input_they_are() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mine, self.theirs = nn.Linear(12, 6), nn.Linear(8, 6)

        def forward(self, x: Tensor, states: Tensor) -> Tensor:
            return self.mine(x) + self.theirs(states)

    model = Crossed()
    states = torch.randn(3, 5, 8)
    seen = Trace(model)
    seen.run(Example({"x": torch.randn(3, 5, 12), "states": states}, streams=frozenset({"states"})))
    seen.finish()
    assert find(seen.weight_dims["theirs.weight"][1]).frozen is None
    assert verify(model, seen) == 2
