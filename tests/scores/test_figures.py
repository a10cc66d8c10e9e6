"""Every figure of a task against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wid_hf.scores.figures import FIGURES


@pytest.mark.parametrize(
    ("name", "predicted", "right", "value"),
    [
        ("accuracy", [1, 0, 1, 1], [1, 0, 0, 1], 0.75),
        ("f1", [1, 0, 1, 1], [1, 0, 0, 1], 0.8),  # 2 of 3 predicted, 2 of 2 there
        ("f1", [0, 0], [0, 0], 0.0),
        ("matthews", [1, 0, 1, 1], [1, 0, 0, 1], (2 * 1 - 1 * 0) / (3 * 2 * 2 * 1) ** 0.5),
        ("matthews", [1, 1], [0, 1], 0.0),
        ("spearman", [1.0, 9.0, 9.5], [1.0, 2.0, 9.0], 1.0),
        ("spearman", [3.0, 3.0, 3.0], [1.0, 2.0, 9.0], 0.0),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson", [3.0, 3.0, 3.0], [1.0, 2.0, 9.0], 0.0),
    ],
)
def test_figures_are_those_worked_out_by_hand(
    name: str, predicted: list[float], right: list[float], value: float
) -> None:
    assert FIGURES[name](np.array(predicted), np.array(right)) == pytest.approx(value)
