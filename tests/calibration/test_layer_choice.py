"""Which layers stay: those without which outputs change most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from layered_models import batches_for, gpt2
from torch import nn
from transformers import PreTrainedModel

from wid_hf import PlanError
from wid_hf.calibration.batches import Batch, prepared
from wid_hf.calibration.bypass import bypassed
from wid_hf.calibration.divergence import divergence, seen_by_callers
from wid_hf.calibration.division import texts_in
from wid_hf.calibration.layer_choice import Kept, Layers, choose_layers
from wid_hf.calibration.precision import Precision

PRECISION = Precision.of_caller(torch.device("cpu"))


def decoder(layers: int = 4, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = gpt2(layers).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def names(count: int) -> tuple[tuple[str, ...], ...]:
    return tuple((f"transformer.h.{at}",) for at in range(count))


@torch.no_grad()
def without(model: PreTrainedModel, gone: list[str]) -> float:
    """The divergence of a model without these layers, computed plainly."""
    batches = batches_for(model)
    whole = [seen_by_callers(model(**prepared(model, batch))) for batch in batches]
    with bypassed(model, gone):
        part = [seen_by_callers(model(**prepared(model, batch))) for batch in batches]
    return divergence(whole, part, batches)[0]


@pytest.mark.parametrize("by", ["greedy", "influence"])
def test_a_layer_that_does_nothing_goes_first(by: str) -> None:
    model = decoder()
    with torch.no_grad():
        for writer in (model.transformer.h[2].attn.c_proj, model.transformer.h[2].mlp.c_proj):
            writer.weight.zero_()
            writer.bias.zero_()

    (kept,), (dropped,) = choose_layers(model, [Layers(names(4), 3)], batches_for(model), PRECISION, by=by)

    assert kept == (0, 1, 3)
    assert dropped.layer == "transformer.h.2"
    assert dropped.influence == pytest.approx(0, abs=1e-6)
    assert dropped.divergence in (None, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("seed", range(3))
def test_each_layer_that_goes_is_the_one_that_is_missed_least(seed: int) -> None:
    model = decoder(seed=seed)

    (kept,), dropped = choose_layers(model, [Layers(names(4), 2)], batches_for(model), PRECISION)

    gone: list[str] = []
    for each in dropped:
        tried = {name: without(model, [*gone, name]) for (name,) in names(4) if name not in gone}
        assert each.layer == min(tried, key=lambda name: tried[name])
        assert each.divergence == pytest.approx(tried[each.layer])
        gone.append(each.layer)
    assert [f"transformer.h.{at}" for at in kept] == [name for (name,) in names(4) if name not in gone]


def test_greedy_choice_of_one_layer_is_the_best_choice_of_all() -> None:
    model = decoder(3)

    (kept,), _ = choose_layers(model, [Layers(names(3), 2)], batches_for(model), PRECISION)

    found = {
        pair: without(model, [f"transformer.h.{at}" for at in range(3) if at not in pair])
        for pair in combinations(range(3), 2)
    }
    assert found[kept] == min(found.values())


def test_only_layers_without_which_the_others_fit_go() -> None:
    model = decoder()

    def fits(kept: Sequence[Kept]) -> bool:
        return list(kept[0]) == list(range(len(kept[0])))  # the last layer goes, and then the last that is left

    (kept,), _ = choose_layers(model, [Layers(names(4), 2)], batches_for(model), PRECISION, fits=fits)

    assert kept == (0, 1)


def test_a_model_that_fits_without_no_layer_is_refused() -> None:
    with pytest.raises(PlanError, match="differ in kind"):
        choose_layers(decoder(), [Layers(names(4), 3)], batches_for(decoder()), PRECISION, fits=lambda _: False)


def test_after_the_first_trials_few_layers_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counted = decoder(6), Counter[str]()
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, *a, **k: (counted.update(["run"]), forward(self, *a, **k))[1]
    )

    choose_layers(model, [Layers(names(6), 3)], batches_for(model, 1), PRECISION)

    plain = 6 + 5 + 4
    assert 3 + 6 + 3 + 3 <= counted["run"] <= 3 + plain  # for sizes, influences and outputs, then for trials


def test_few_texts_are_tried_where_each_has_many_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = decoder(3), []

    def note(teacher: Any, student: Any, batches: Sequence[Batch]) -> tuple[float, str]:
        seen.append(sum(map(texts_in, batches)))
        return 0.0, ""

    monkeypatch.setattr("wid_hf.calibration.layer_choice.output_divergence", note)
    batches = [{"input_ids": torch.randint(0, 60, (8, 16))} for _ in range(16)]

    choose_layers(model, [Layers(names(3), 2)], batches, PRECISION)
    assert set(seen) == {64}  # of 16 positions each

    seen.clear()
    monkeypatch.setattr("wid_hf.calibration.layer_choice.POSITIONS", 100)
    choose_layers(model, [Layers(names(3), 2)], batches, PRECISION)
    assert set(seen) == {7}


def test_layers_run_as_before_after_a_choice() -> None:
    model = decoder().train()
    batch = batches_for(model, 1)[0]
    with torch.no_grad():
        before = model.eval()(**batch).logits
    model.train()

    choose_layers(model, [Layers(names(4), 3)], batches_for(model), PRECISION)

    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, before)
