"""Subset selection: what is kept explains what is dropped, with ties and degenerate covariances decided."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from wid_hf.calibration.column_subset import PANEL, block_subset, column_subset


def left_over(covariance: Tensor, kept: list[int]) -> float:
    """The variance that regression on the kept indices leaves."""
    across = covariance[kept]
    return float(covariance.trace() - (torch.linalg.solve(across[:, kept], across) * across).sum())


def test_the_first_pivot_varies_most_and_each_next_most_of_what_is_left() -> None:
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(7, 9, generator=g, dtype=torch.float64)
    covariance = factor @ factor.T
    kept: list[int] = []
    for count in range(1, 7):
        explained = torch.zeros(7, dtype=torch.float64)
        if kept:
            across = covariance[kept]
            explained = (torch.linalg.solve(across[:, kept], across) * across).sum(0)
        kept.append(int((covariance.diagonal() - explained).argmax()))
        assert column_subset(covariance, count).tolist() == sorted(kept)


def test_many_pivots_are_those_that_vary_most_after_regression_on_all_before_them() -> None:
    """Pivots are found in panels; the matrix is brought up to date between two of them."""
    g = torch.Generator().manual_seed(2)
    factor = torch.randn(2 * PANEL + 60, 300, generator=g, dtype=torch.float64)
    left = covariance = factor @ factor.T
    kept: list[int] = []
    for _ in range(2 * PANEL + 10):
        kept.append(int(left.diagonal().argmax()))
        left = left - torch.outer(left[kept[-1]], left[kept[-1]]) / left[kept[-1], kept[-1]]
    assert column_subset(covariance, len(kept)).tolist() == sorted(kept)


def test_a_copy_of_a_kept_index_is_dropped_however_much_it_varies() -> None:
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(500, 4, generator=g, dtype=torch.float64) * torch.tensor([9.0, 9.0, 1.0, 0.5])
    rows[:, 1] = rows[:, 0]
    assert column_subset(rows.T @ rows / 500, 2).tolist() == [0, 2]


def test_pivots_of_equal_or_missing_variance_are_the_lowest_indices() -> None:
    assert column_subset(torch.eye(6, dtype=torch.float64), 3).tolist() == [0, 1, 2]
    assert column_subset(torch.zeros(6, 6, dtype=torch.float64), 3).tolist() == [0, 1, 2]
    rank_one = torch.ones(6, 6, dtype=torch.float64)
    assert column_subset(rank_one, 3).tolist() == [0, 1, 2]


def test_blocks_explain_the_outputs_best_among_all_choices() -> None:
    g = torch.Generator().manual_seed(2)
    mix = torch.randn(12, 12, generator=g, dtype=torch.float64)
    covariance = mix @ torch.diag(torch.tensor([9.0] * 3 + [0.1] * 3 + [4.0] * 3 + [1.0] * 3)).double() @ mix.T
    weight = torch.randn(20, 12, generator=g, dtype=torch.float64)
    reader = weight.T @ weight

    def gain(kept: tuple[int, ...]) -> float:
        inside = [3 * block + at for block in kept for at in range(3)]
        across = covariance[inside]
        return float((torch.linalg.solve(across[:, inside], across @ reader) * across).sum())

    assert block_subset([covariance], [reader], 4, 1).tolist() == list(max(combinations(range(4), 1), key=gain))
    first = block_subset([covariance], [reader], 4, 1).tolist()[0]
    pairs = [pair for pair in combinations(range(4), 2) if first in pair]
    assert block_subset([covariance], [reader], 4, 2).tolist() == list(max(pairs, key=gain))
    assert block_subset([covariance * 0], [reader], 4, 2).tolist() == [0, 1]


def test_a_head_that_nobody_reads_is_the_first_to_go() -> None:
    covariance, reader = torch.eye(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64)
    covariance[:3] *= 100
    reader[:3, :3] = 0
    assert block_subset([covariance], [reader], 4, 3).tolist() == [1, 2, 3]


def test_heads_of_fewer_texts_than_indices_are_chosen_and_the_first_follow_where_all_is_explained() -> None:
    torch.manual_seed(0)
    rows = torch.randn(20, 64).double() * torch.rand(64).double() @ torch.randn(64, 64).double()
    reader = torch.randn(64, 64).double()
    covariance, gram = rows.T @ rows / 20, reader.T @ reader
    two = block_subset([covariance], [gram], 8, 2).tolist()
    rest = [block for block in range(8) if block not in two]  # with any third, there are more indices than texts
    assert block_subset([covariance], [gram], 8, 5).tolist() == sorted(two + rest[:3])
