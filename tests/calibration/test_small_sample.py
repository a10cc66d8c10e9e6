"""Few positions improve what is known where they tell something, and leave it alone where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wid_hf.calibration.moments import Regression
from wid_hf.calibration.small_sample import Known, fit_few

READER = torch.eye(9, dtype=torch.float64)


def made(rows: int, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a teacher (9 indices) and a student (20) read, and the map between them that is exact but for noise."""
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 20, generator=g, dtype=torch.float64)
    true = torch.randn(9, 20, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return student @ true.T + noise * torch.randn(rows, 9, generator=g, dtype=torch.float64), student, true


def missed(columns: Tensor, seed: int = 99) -> float:
    teacher, student, _ = made(500, 0.0, seed)
    return float((teacher - student @ columns.T).square().mean())


@pytest.mark.parametrize("seed", range(3))
def test_positions_that_tell_something_bring_a_start_nearer(seed: int) -> None:
    teacher, student, true = made(30, 0.1, seed)
    start = true + 0.5 * torch.randn(true.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lift = fit_few(teacher, student, READER, Known(start, None, 1e-4, 40), True)
    assert lift is not None
    assert missed(lift.columns) < 0.6 * missed(start)


@pytest.mark.parametrize("seed", range(3))
def test_positions_lean_on_the_moments_of_the_latest_lift(seed: int) -> None:
    """Ten positions alone cannot fix twenty columns; beside the moments of many they correct what differs."""
    many, student, true = made(400, 0.1, 50 + seed)
    prior = Regression(9, 20, many.device)
    prior.add(many + 0.3 * student[:, :9], student)  # related almost as the few are
    teacher, few, _ = made(30, 0.1, seed)
    known = Known(torch.zeros_like(true), prior, 1e-4, 40)
    lift = fit_few(teacher, few, READER, known, True)
    assert lift is not None
    assert missed(lift.columns) < 0.8 * missed(prior.solve(known.start, 1e-4, True).columns)


def test_positions_that_tell_nothing_leave_the_known_alone() -> None:
    kept = 0
    for seed in range(10):
        teacher, student, true = made(30, 5.0, seed)
        kept += fit_few(teacher, student, READER, Known(true, None, 1e-4, 40), True) is None
    assert kept >= 8


def test_one_position_decides_nothing() -> None:
    teacher, student, true = made(1, 0.1, 0)
    assert fit_few(teacher, student, READER, Known(true, None, 1e-4, 40), True) is None


def test_only_what_the_weight_reads_counts() -> None:
    """A start that is wrong where nothing is read is as good as can be."""
    teacher, student, true = made(30, 0.1, 0)
    start = true.clone()
    start[5:] += 3
    blind = READER.clone()
    blind[5:] = 0
    assert fit_few(teacher, student, blind, Known(start, None, 1e-4, 40), True) is None
    assert fit_few(teacher, student, READER, Known(start, None, 1e-4, 40), True) is not None


@pytest.mark.parametrize("seed", range(3))
def test_a_good_start_stays_where_earlier_positions_were_of_another_kind(seed: int) -> None:
    """As those of patches are for the one token that a classifier of pictures reads."""
    teacher, student, true = made(12, 0.1, seed)
    others, theirs, _ = made(400, 0.1, 50 + seed)
    prior = Regression(9, 20, others.device)
    prior.add(-others, theirs)
    known = Known(true, prior, 1e-4, 40)
    fit = fit_few(teacher + 4, student, READER, known, True)
    assert fit is not None
    torch.testing.assert_close(fit.columns, true)
    torch.testing.assert_close(fit.offset, torch.full((9,), 4.0).double(), rtol=0, atol=0.2)
    assert missed(fit.columns) < 0.1 * missed(prior.solve(known.start, 1e-4, True).columns)


@pytest.mark.parametrize("intercept", [True, False])
def test_float32_positions_have_the_fit_of_float64_ones(intercept: bool) -> None:
    many, student, true = made(400, 0.1, 50)
    prior = Regression(9, 20, many.device)
    prior.add(many + 0.3 * student[:, :9], student)
    teacher, few, _ = made(30, 0.1, 0)
    known = Known(torch.zeros_like(true), prior, 1e-4, 40)
    exact = fit_few(teacher, few, READER, known, intercept)
    found = fit_few(teacher.float(), few.float(), READER.float(), known, intercept)
    assert exact is not None and found is not None
    assert torch.allclose(found.columns, exact.columns, atol=1e-4)
