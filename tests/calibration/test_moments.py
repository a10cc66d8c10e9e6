"""Second moments: batch by batch they are those of all rows at once, and regressions are the least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wid_hf.calibration.moments import Covariance, Regression

CPU = torch.device("cpu")


def streams(rows: int = 400, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """What a teacher (9 indices) and a student (5) read: related, correlated, far from zero."""
    g = torch.Generator().manual_seed(0)
    student = torch.randn(rows, 5, generator=g, dtype=torch.float64) @ torch.randn(
        5, 5, generator=g, dtype=torch.float64
    )
    noise = 0.1 * torch.randn(rows, 9, generator=g, dtype=torch.float64)
    teacher = student @ torch.randn(5, 9, generator=g, dtype=torch.float64) + noise + 3.0
    return teacher.to(dtype), (student - 2.0).to(dtype)


def observed(teacher: Tensor, student: Tensor, sizes: list[int]) -> Regression:
    regression = Regression(9, 5, CPU)
    for x, y in zip(teacher.split(sizes), student.split(sizes), strict=True):
        regression.add(x, y)
    return regression


@pytest.mark.parametrize("centred", [True, False])
def test_a_covariance_of_batches_is_that_of_all_rows(centred: bool) -> None:
    rows, _ = streams()
    covariance = Covariance(9, CPU)
    for batch in rows.split([1, 0, 150, 249]):
        covariance.add(batch)
    about = rows - rows.mean(0) if centred else rows
    assert covariance.count == 400
    assert torch.allclose(covariance.matrix(centred), about.T @ about / 400, rtol=1e-12, atol=1e-12)


def test_a_mean_a_million_times_the_deviation_does_not_drown_it_in_float32() -> None:
    rows = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 0.01 + 1e3
    covariance = Covariance(3, CPU)
    for batch in rows.split(500):
        covariance.add(batch)
    exact = torch.cov(rows.double().T, correction=0)
    assert (covariance.matrix(True) - exact).abs().max() < 1e-3 * exact.max()


@pytest.mark.parametrize("intercept", [True, False])
def test_a_lift_is_the_least_squares_solution(intercept: bool) -> None:
    teacher, student = streams()
    regression = observed(teacher, student, [100, 300])
    lift = regression.solve(torch.zeros(9, 5), 1e-14, intercept)
    design = torch.cat([student, torch.ones(400, 1)], 1) if intercept else student
    exact = torch.linalg.lstsq(design, teacher).solution.T
    assert torch.allclose(lift.columns, exact[:, :5], atol=1e-8)
    assert torch.allclose(lift.offset, exact[:, 5] if intercept else torch.zeros(9).double(), atol=1e-8)
    residual = teacher - student @ lift.columns.T - lift.offset
    about = teacher - teacher.mean(0) if intercept else teacher
    expected = float(residual.square().sum() / about.square().sum())
    assert regression.error(lift.columns, intercept) == pytest.approx(expected, rel=1e-6)
    assert expected < regression.error(torch.zeros(9, 5), intercept) == pytest.approx(1.0)


def test_the_ridge_is_tikhonovs_towards_the_start() -> None:
    teacher, student = streams()
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lift = observed(teacher, student, [400]).solve(start, 0.5, intercept=False)
    strength = 0.5 * student.square().mean(0).mean()
    stacked = torch.cat([student / 400**0.5, strength.sqrt() * torch.eye(5)])
    targets = torch.cat([teacher / 400**0.5, strength.sqrt() * start.T])
    assert torch.allclose(lift.columns, torch.linalg.lstsq(stacked, targets).solution.T, atol=1e-10)


def test_adding_two_regressions_is_observing_both() -> None:
    teacher, student = streams()
    whole, parts = observed(teacher, student, [400]), observed(teacher[:70], student[:70], [70])
    parts += observed(teacher[70:], student[70:], [330])
    for intercept in (True, False):
        one, two = (r.solve(torch.zeros(9, 5), 1e-6, intercept) for r in (whole, parts))
        assert torch.allclose(one.columns, two.columns, rtol=1e-9, atol=1e-12)
        assert torch.allclose(one.offset, two.offset, rtol=1e-9, atol=1e-12)


def test_constant_features_keep_the_start_and_give_no_nan() -> None:
    teacher, student = streams()
    student[:, 2] = 7.0
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lift = observed(teacher, student, [400]).solve(start, 1e-4, intercept=True)
    assert torch.allclose(lift.columns[:, 2], start[:, 2], atol=1e-9)
    assert lift.columns.isfinite().all() and lift.offset.isfinite().all()
    still = observed(torch.ones_like(teacher), torch.ones_like(student), [400])
    assert torch.equal(still.solve(start, 1e-4, intercept=True).columns, start)
    assert still.error(start, intercept=True) == 0.0


def test_half_precision_is_added_up_in_float64() -> None:
    teacher, student = streams(dtype=torch.bfloat16)
    exact = observed(teacher.double(), student.double(), [400]).solve(torch.zeros(9, 5), 1e-6, True)
    lift = observed(teacher, student, [100] * 4).solve(torch.zeros(9, 5), 1e-6, True)
    assert lift.columns.dtype == torch.float64
    assert torch.allclose(lift.columns, exact.columns, atol=1e-5)


def test_positions_that_lack_are_filled_up_with_how_others_are_related() -> None:
    teacher, student = streams()
    prior, few = observed(teacher, student, [400]), observed(teacher[:8] + 5, student[:8] - 1, [8])
    assert few.count == 8 and prior.count == 400
    filled = few.filled(prior, 400)
    columns = filled.solve(torch.zeros(9, 5), 1e-12, True)
    x, y = (
        torch.cat([each - each.mean(0), part - part.mean(0)])
        for each, part in ((teacher, teacher[:8]), (student, student[:8]))
    )
    exact = torch.linalg.lstsq(y, x).solution.T
    assert torch.allclose(columns.columns, exact, atol=1e-8)
    assert torch.allclose(columns.offset, (teacher[:8] + 5).mean(0) - exact @ (student[:8] - 1).mean(0), atol=1e-8)
    assert torch.allclose(few.filled(prior, 0).solve(exact, 1e-3, True).columns, few.solve(exact, 1e-3, True).columns)


@pytest.mark.parametrize("intercept", [True, False])
def test_rows_and_errors_of_a_fit_are_those_of_its_columns(intercept: bool) -> None:
    g = torch.Generator().manual_seed(0)
    student = torch.randn(60, 7, generator=g, dtype=torch.float64) + 1
    teacher = student @ torch.randn(7, 9, generator=g, dtype=torch.float64) + torch.randn(60, 9, generator=g).double()
    start, weight = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((9, 7), (4, 9)))
    moments = Regression(9, 7, student.device)
    moments.add(teacher, student)
    fit = moments.solve(start, 0.1, intercept)
    made = student[:5] @ fit.columns.T + fit.offset
    assert torch.allclose(moments.predicted(start, 0.1, intercept, student[:5]), made)
    through = moments.through(weight)
    assert torch.allclose(through.predicted(weight @ start, 0.1, intercept, student[:5]), made @ weight.T)
    assert fit.error == pytest.approx(moments.error(fit.columns, intercept))
