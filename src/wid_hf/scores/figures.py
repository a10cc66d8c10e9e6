"""Figures of classification and regression, by name.

Takes what was predicted and what is right, both `(n,)`; gives a number. scikit-learn and scipy are imported at the
first use, because they are an extra of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

import numpy as np

from ..extras import extra

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})  # every other figure is at most 1, and 1 is the best


def check_installed() -> None:
    """Raise MissingExtraError if a library that figures are computed by is not installed."""
    with extra("eval"):
        import scipy  # noqa: F401
        import sklearn  # noqa: F401


def accuracy(predicted: np.ndarray, right: np.ndarray) -> float:
    """Share of predictions that are right."""
    with extra("eval"):
        from sklearn.metrics import accuracy_score

    return float(accuracy_score(right, predicted))


def f1(predicted: np.ndarray, right: np.ndarray) -> float:
    """F1 of class 1; 0 where it is neither predicted nor there."""
    with extra("eval"):
        from sklearn.metrics import f1_score

    return float(f1_score(right, predicted, zero_division=0.0))


def macro_f1(predicted: np.ndarray, right: np.ndarray) -> float:
    """Mean of the F1 of every class that is predicted or there."""
    with extra("eval"):
        from sklearn.metrics import f1_score

    return float(f1_score(right, predicted, average="macro", zero_division=0.0))


def matthews(predicted: np.ndarray, right: np.ndarray) -> float:
    """Matthews' correlation, -1 to 1; 0 where all predictions are one class."""
    with extra("eval"):
        from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(right, predicted))


def pearson(predicted: np.ndarray, right: np.ndarray) -> float:
    """Pearson's correlation; 0 where either side is constant, which orders nothing."""
    with extra("eval"):
        from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, right)


def spearman(predicted: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where either side is constant, which orders nothing."""
    with extra("eval"):
        from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, right)


def _correlation(function: Callable, predicted: np.ndarray, right: np.ndarray) -> float:
    if np.ptp(predicted) == 0 or np.ptp(right) == 0:
        return 0.0
    found = float(function(np.asarray(predicted, np.float64), np.asarray(right, np.float64)).statistic)
    return 0.0 if isnan(found) else found


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function for function in (accuracy, f1, macro_f1, matthews, pearson, spearman)
}
