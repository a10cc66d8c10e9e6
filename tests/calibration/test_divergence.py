"""How far outputs are from the teacher's, in the measure of each task, and that padding does not count."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput, TokenClassifierOutput

from wid_hf.calibration.divergence import divergence, output_divergence, seen_by_callers

PLAIN = {"input_ids": torch.zeros(4, 6, dtype=torch.long)}
PADDED = {**PLAIN, "attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 6, [1, 0, 0, 0, 0, 0]])}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_callers_see_all_logits_or_the_first_tensor() -> None:
    one, other = noise(4, 6), noise(4, 6, seed=1)
    answers = QuestionAnsweringModelOutput(loss=torch.zeros(()), start_logits=one, end_logits=other)
    assert [id(each) for each in seen_by_callers(answers)] == [id(one), id(other)]
    tags = TokenClassifierOutput(logits=one, hidden_states=(other,))
    assert [id(each) for each in seen_by_callers(tags)] == [id(one)]
    hidden = BaseModelOutput(last_hidden_state=other, hidden_states=(one,))
    assert [id(each) for each in seen_by_callers(hidden)] == [id(other)]
    assert [id(each) for each in seen_by_callers((torch.tensor(1.0), other))] == [id(other)]  # not a scalar loss
    assert seen_by_callers(()) == []


@pytest.mark.parametrize("batch", [PLAIN, PADDED])
def test_scores_are_compared_by_the_divergence_of_their_softmax(batch: dict[str, Tensor]) -> None:
    wanted, found = noise(4, 6, 9), noise(4, 6, 9, seed=1)
    score, measure = divergence([[wanted]], [[found]], [batch])
    at = batch.get("attention_mask", torch.ones(4, 6)).bool()
    expected = kl_divergence(Categorical(logits=wanted[at]), Categorical(logits=found[at])).mean()
    assert score == pytest.approx(float(expected), rel=1e-5)
    assert measure == "KL of the scores, nats"
    found[~at] = inf  # what a student makes of padding does not count
    assert divergence([[wanted]], [[found]], [batch])[0] == pytest.approx(score, rel=1e-6)


def test_batches_count_by_their_positions_and_all_logits_count() -> None:
    wanted = [[noise(4, 6), noise(4, 6, seed=1)], [noise(2, 6, seed=2), noise(2, 6, seed=3)]]
    found = [[noise(4, 6, seed=4), noise(4, 6, seed=5)], [noise(2, 6, seed=6), noise(2, 6, seed=7)]]
    batches = [PLAIN, {"input_ids": torch.zeros(2, 6, dtype=torch.long)}]
    parts = [
        kl_divergence(Categorical(logits=p), Categorical(logits=q))
        for ours, theirs in zip(wanted, found, strict=True)
        for p, q in zip(ours, theirs, strict=True)
    ]
    assert divergence(wanted, found, batches)[0] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-5)


def test_single_scores_are_compared_by_squares_as_a_share_of_the_variance() -> None:
    wanted, found = [noise(4, 1), noise(4, 1, seed=1)], [noise(4, 1, seed=2), noise(4, 1, seed=3)]
    score, measure = divergence([[each] for each in wanted], [[each] for each in found], [PLAIN, PLAIN])
    p, q = torch.cat(wanted), torch.cat(found)
    assert score == pytest.approx(float((p - q).square().mean() / p.var(correction=0)), rel=1e-5)
    assert measure == "squared error / variance"
    assert divergence([[wanted[0]]], [[wanted[0]]], [PLAIN])[0] == 0


@pytest.mark.parametrize("batch", [PLAIN, PADDED])
def test_vectors_are_compared_by_the_cosines_of_mean_vectors(batch: dict[str, Tensor]) -> None:
    wanted, found = noise(4, 6, 9), noise(4, 6, 5, seed=1)
    score, measure = divergence([[wanted]], [[found]], [batch])
    at = batch.get("attention_mask", torch.ones(4, 6)).bool()

    def cosines(hidden: Tensor) -> Tensor:
        means = torch.stack([text[mask].mean(0) for text, mask in zip(hidden, at, strict=True)]).double()
        unit = means / means.norm(dim=1, keepdim=True)
        return torch.stack([unit[i] @ unit[j] for i in range(4) for j in range(i + 1, 4)])

    expected = 1 - torch.corrcoef(torch.stack([cosines(wanted), cosines(found)]))[0, 1]
    assert score == pytest.approx(float(expected), rel=1e-5)
    assert measure == "1 - correlation of cosines"


def test_hidden_states_are_vectors_although_they_are_as_wide_as_the_teachers() -> None:
    wanted, found = noise(4, 6, 9), noise(4, 6, 9, seed=1)
    outputs = [[BaseModelOutput(last_hidden_state=each)] for each in (wanted, found)]

    score, measure = output_divergence(*outputs, [PLAIN])

    assert measure == "1 - correlation of cosines"
    assert score == divergence([[wanted]], [[found]], [PLAIN], are_scores=False)[0]


def test_vectors_that_were_turned_are_no_farther_away() -> None:
    wanted = noise(4, 6, 5)
    turn = torch.linalg.qr(noise(9, 5, seed=2)).Q
    assert divergence([[wanted]], [[wanted @ turn.T]], [PLAIN])[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("width", [1, 9, 5])
@pytest.mark.parametrize("bad", [float("nan"), inf])
def test_what_is_not_finite_is_infinitely_far_away(width: int, bad: float) -> None:
    wanted, found = noise(4, 6, 9 if width == 5 else width), noise(4, 6, width, seed=1)
    found[0, 0, 0] = bad
    assert divergence([[wanted]], [[found]], [PLAIN])[0] == inf


def test_outputs_without_any_tensor_do_not_differ() -> None:
    nothing: list[Any] = []
    assert divergence(nothing, nothing, nothing) == (0.0, "nothing to compare")
    assert divergence([[]], [[]], [PLAIN])[0] == 0.0
    assert divergence([[noise(1, 9)]], [[noise(1, 5)]], [{}])[0] == 0.0  # one text has no pairs


def test_rounding_makes_no_divergence_less_than_none() -> None:
    """Of scores that differ in their last digits the sum may be below zero, and then no start would be the best."""
    for seed in range(20):
        wanted = noise(4, 6, 9, seed=seed)
        found = wanted * (1 + 1e-7 * noise(4, 6, 9, seed=100 + seed))
        assert divergence([[wanted]], [[found]], [PLAIN])[0] >= 0
