"""Divergences are those of their definitions, zero for equal scores, and never below zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from wid_hf.objectives.divergences import sigmoid_divergence, softmax_divergence, span_divergence, squared_error


def scores(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


def test_of_classes_it_is_that_of_two_categorical_distributions() -> None:
    student, teacher = scores(0), scores(1)
    wanted = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(softmax_divergence(student, teacher), wanted)


def test_of_labels_it_is_the_sum_of_those_of_yes_and_no() -> None:
    student, teacher = scores(0), scores(1)
    wanted = kl_divergence(Bernoulli(logits=teacher), Bernoulli(logits=student)).sum(-1)
    torch.testing.assert_close(sigmoid_divergence(student, teacher), wanted)


def test_of_sure_labels_it_is_finite() -> None:
    student, teacher = torch.tensor([[80.0, -80.0]]), torch.tensor([[-90.0, -90.0]])
    torch.testing.assert_close(sigmoid_divergence(student, teacher), torch.tensor([80.0]))


def test_of_spans_it_is_the_mean_of_those_of_both_ends_over_what_is_not_padding() -> None:
    student, teacher = (scores(seed).view(3, 5, 2) for seed in range(2))
    attended = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    found = span_divergence(student, teacher, attended)
    for row, which in enumerate(attended):
        ends = [
            kl_divergence(*(Categorical(logits=each[row, which, end]) for each in (teacher, student))) for end in (0, 1)
        ]
        torch.testing.assert_close(found[row], torch.stack(ends).mean())
    assert torch.equal(span_divergence(student, student, attended), torch.zeros(3))


def test_of_numbers_it_is_the_squared_distance() -> None:
    student, teacher = scores(0), scores(1)
    torch.testing.assert_close(squared_error(student, teacher), (student - teacher).norm(dim=1).square())


@pytest.mark.parametrize("divergence", [softmax_divergence, sigmoid_divergence, squared_error])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_scores_have_none_and_half_precision_is_counted_in_full(divergence: object, dtype: torch.dtype) -> None:
    given = scores(0).to(dtype)
    found = divergence(given, given)  # type: ignore[operator]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.zeros(6), atol=1e-5, rtol=0)
