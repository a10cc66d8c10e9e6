"""A table fitted to both of its uses: the sum that is minimised, and what degenerate moments do to it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from wid_hf.calibration import tied_table
from wid_hf.calibration.stream_span import Place
from wid_hf.calibration.tied_table import SCORES, TiedTable, fit_table
from wid_hf.calibration.turned_map import centred_map, principal_map

N, K, WORDS = 10, 6, 40


@dataclass
class Case:
    """A teacher's table, the factors and bias before it, its stream at some positions, and what is looked up there."""

    table: Tensor
    factors: Tensor
    bias: Tensor
    stream: Tensor  # normalised, before the scores
    sums: Tensor  # of what is looked up
    map_: Tensor

    @property
    def rows(self) -> Tensor:
        """The table about the mean of its rows."""
        return self.table - self.table.mean(0)

    @property
    def mean(self) -> Tensor:
        return self.stream.mean(0)

    def fit(self) -> TiedTable:
        z, x = self.stream - self.mean, self.sums - self.sums.mean(0)
        moments, looked_up, gram = (each.T @ each for each in (z, x, self.rows))
        return fit_table(self.map_, self.factors, self.bias, self.mean, moments, looked_up, gram)

    def loss(self, columns: Tensor, vector: Tensor) -> Tensor:
        """The sum in the docstring of `fit_table`, from its words; `A z` is regressed on the positions themselves."""
        x, y, e = self.sums - self.sums.mean(0), self.stream - self.mean, self.rows
        z = y @ self.map_.T
        estimate = z @ torch.linalg.lstsq(z, y, driver="gelsd").solution
        wanted, found = (estimate * self.factors) @ e.T, (z * vector) @ (e @ columns).T
        turned = x @ self.map_.T
        lost = (x @ columns - turned).square().sum() / turned.square().sum()
        return lost + SCORES * (found - wanted).square().sum() / wanted.square().sum()


def case(centred: bool = False, rank: int = N, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    stream = noise(200, rank) @ noise(rank, N) * torch.linspace(1, 0.3, N).double()
    moments = stream.T @ stream
    map_ = (centred_map if centred else principal_map)([Place(moments, torch.eye(N).double() / N)], K).matrix
    if centred:
        stream = stream - stream.mean(1, keepdim=True)
    table = noise(WORDS, N)
    sums = table[torch.randint(WORDS, (200,), generator=g)] + noise(200, N)
    return Case(table, 1 + 0.5 * noise(N), noise(N), stream + noise(N), sums, map_)


@pytest.mark.parametrize("centred", [False, True])
def test_columns_and_vector_minimise_both_errors(centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied_table, "ROUNDS", 300)
    monkeypatch.setattr(tied_table, "RIDGE", 1e-9)
    given = case(centred)
    found = given.fit()
    columns, vector = found.columns.requires_grad_(True), found.vector.requires_grad_(True)
    loss = given.loss(columns, vector)
    slopes = torch.autograd.grad(loss, (columns, vector))
    least = float(loss.detach())
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-3 * least
    assert least < 1.001 * _descended(given)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_few_rounds_come_near_the_minimum(centred: bool, seed: int) -> None:
    given = case(centred, seed=seed)
    found = given.fit()
    ones = torch.ones(K, dtype=torch.float64)
    best, plain = _descended(given), float(given.loss(given.map_.T, ones * found.vector.abs().mean()))
    assert float(given.loss(found.columns, found.vector)) - best < 0.2 * (plain - best)


def _descended(given: Case) -> float:
    """The smallest sum that L-BFGS finds from the turned table."""
    columns = given.map_.T.contiguous().requires_grad_(True)
    vector = torch.ones(K, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([columns, vector], max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = given.loss(columns, vector)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(given.loss(columns, vector).detach())


def test_a_vector_of_equal_numbers_needs_no_compromise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied_table, "RIDGE", 1e-9)
    given = case()
    given.factors = torch.full((N,), 1.7, dtype=torch.float64)
    given.stream = given.stream @ given.map_.T @ given.map_  # nothing is dropped
    found = given.fit()
    assert torch.allclose(found.columns, given.map_.T, atol=1e-6)
    assert torch.allclose(found.vector, torch.full((K,), 1.7).double(), atol=1e-6)


def test_the_bias_gives_the_scores_that_bias_and_mean_do_as_far_as_columns_reach() -> None:
    given = case()
    found = given.fit()
    # Of the teacher: scores of the stream's mean. Of the student: the same, but for its bias.
    wanted = given.rows @ (given.factors * given.mean + given.bias)
    without = given.rows @ found.columns @ (found.vector * (given.map_ @ given.mean))
    exact = torch.linalg.lstsq(given.rows @ found.columns, (wanted - without)[:, None]).solution[:, 0]
    assert torch.allclose(found.bias, exact, rtol=1e-3, atol=1e-3)
    given.bias, given.stream = torch.zeros(N, dtype=torch.float64), given.stream - given.mean
    assert given.fit().bias.abs().max() < 1e-12


@pytest.mark.parametrize("rank", [1, 3, K - 1])
@pytest.mark.parametrize("centred", [False, True])
def test_singular_moments_give_finite_tables_that_are_no_worse_than_turned_ones(rank: int, centred: bool) -> None:
    given = case(centred, rank)
    found = given.fit()
    assert all(each.isfinite().all() for each in (found.columns, found.vector, found.bias))
    ones = torch.ones(K, dtype=torch.float64)
    assert given.loss(found.columns, found.vector) < 1.02 * given.loss(given.map_.T, ones)
    assert found.columns.abs().max() < 100
