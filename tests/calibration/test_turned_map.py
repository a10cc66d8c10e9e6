"""The map of a turned stream: what it keeps exactly, for any moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import layer_norm

from wid_hf.calibration.stream_span import Place
from wid_hf.calibration.turned_map import OUTLYING, centred_map, outlying, principal_map

EXACT = 1e-9


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """n, k < n, the rank of the moments and a seed."""
    n = draw(st.integers(2, 24))
    return n, draw(st.integers(1, n - 1)), draw(st.integers(0, n)), draw(st.integers(0, 1000))


def moments(n: int, rank: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(n, rank, dtype=torch.float64, generator=g) * torch.logspace(0, -3, rank, dtype=torch.float64)
    return factor @ factor.T


def read(matrix: Tensor) -> list[Place]:
    """One place at which all of a stream with these moments is needed."""
    return [Place(matrix, torch.eye(len(matrix)).to(matrix) / len(matrix))]


def centre(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64) - 1 / n


@settings(max_examples=80, deadline=None)
@given(shapes())
def test_a_centred_map_keeps_means_and_lengths(shape: tuple[int, int, int, int]) -> None:
    n, k, rank, seed = shape
    found = centred_map(read(moments(n, rank, seed)), k)
    t = found.matrix
    assert t.shape == (k, n) and t.isfinite().all()
    assert t.sum(1).abs().max() < EXACT  # T 1 = 0
    assert t.sum(0).abs().max() < EXACT  # 1^T T = 0
    assert torch.allclose(t @ t.T, centre(k), atol=EXACT)
    assert found.nearest.tolist() == sorted(set(found.nearest.tolist())) and len(found.nearest) == k


@settings(max_examples=80, deadline=None)
@given(shapes())
def test_centring_commutes_with_a_centred_map(shape: tuple[int, int, int, int]) -> None:
    n, k, rank, seed = shape
    t = centred_map(read(moments(n, rank, seed)), k).matrix
    x = torch.randn(5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(x @ t.T @ centre(k), x @ centre(n) @ t.T, atol=EXACT)


def test_a_layer_norm_of_what_lies_in_the_span_commutes_up_to_the_ratio_of_widths() -> None:
    t = centred_map(read(moments(16, 16, 0)), 7).matrix
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ t + 3  # any mean
    mine, theirs = layer_norm(x @ t.T, (7,), eps=0), layer_norm(x, (16,), eps=0) @ t.T
    assert torch.allclose(mine, theirs * (7 / 16) ** 0.5, atol=EXACT)


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_a_centred_map_spans_the_leading_directions(shape: tuple[int, int, int, int]) -> None:
    n, k, _, seed = shape
    own = moments(n, n, seed)
    t = centred_map(read(own), k).matrix
    centred = centre(n) @ own @ centre(n)
    best = torch.linalg.eigvalsh(centred)[n - (k - 1) :].sum() if k > 1 else torch.zeros(())
    assert float((t @ own @ t.T).trace()) == pytest.approx(float(best), rel=1e-6, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 24), st.integers(0, 1000), st.data())
def test_outliers_are_kept_as_centred_unit_vectors(n: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(3, n - 1))
    kept = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=max(1, (k - 1) // 2), unique=True))
    found = centred_map(read(moments(n, n, seed)), k, sorted(kept))
    t, unit = found.matrix, centre(n)[:, sorted(kept)]
    assert set(kept) <= set(found.nearest.tolist())
    # They lie in the span of T's rows: what T keeps of them is all of them.
    assert torch.allclose(t.T @ t @ unit, unit, atol=1e-8)
    assert torch.allclose(t @ t.T, centre(k), atol=EXACT) and t.sum(1).abs().max() < EXACT


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (3, 2), (8, 7), (8, 5)])
def test_maps_are_as_wide_as_asked_whatever_the_moments(n: int, k: int, rank: int) -> None:
    for matrix in (moments(n, min(rank, n), 0), torch.zeros(n, n, dtype=torch.float64), torch.eye(n).double()):
        centred, principal = centred_map(read(matrix), k).matrix, principal_map(read(matrix), k).matrix
        assert torch.linalg.matrix_rank(centred, tol=1e-6) == k - 1
        assert torch.allclose(principal @ principal.T, torch.eye(k).double(), atol=EXACT)


def test_a_principal_map_has_the_leading_eigenvectors() -> None:
    own = moments(10, 10, 3)
    found = principal_map(read(own), 4)
    values, vectors = torch.linalg.eigh(own)
    assert torch.allclose((found.matrix @ vectors.flip(1)[:, :4]).abs(), torch.eye(4).double(), atol=1e-6)
    assert torch.allclose((found.matrix @ own @ found.matrix.T).diagonal(), values.flip(0)[:4], atol=1e-10)


def test_a_centred_map_is_as_near_to_a_selection_as_its_span_allows() -> None:
    """So diagonal matrices stay nearly diagonal; no rotation of the student's side comes nearer."""
    found = centred_map(read(moments(12, 12, 5)), 5)
    selection = torch.eye(12, dtype=torch.float64)[found.nearest]
    distance = (found.matrix - selection).norm()
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.cat([torch.ones(5, 1, dtype=torch.float64), torch.eye(5).double()[:, :4]], 1)).Q
    for scale in (0.01, 0.1, 1.0):
        skew = scale * torch.randn(4, 4, dtype=torch.float64, generator=g)
        inner = torch.linalg.matrix_exp(skew - skew.T)
        turn = basis @ torch.block_diag(torch.ones(1, 1).double(), inner) @ basis.T
        assert (turn @ found.matrix - selection).norm() > distance


def test_outlying_indices_are_those_that_deviate_most_from_the_median() -> None:
    one, other = torch.full((40,), 2.0), torch.full((40,), -1.0)
    one[7], one[30] = 2 * (1 + OUTLYING + 0.1), 2 * (1 + OUTLYING - 0.1)
    other[3] = 5.0
    assert outlying([one, other], 32) == [3, 7]
    assert outlying([one, other], 8) == [3]  # one in eight at most: the worst
    assert outlying([one, other], 7) == [] and outlying([], 32) == []
