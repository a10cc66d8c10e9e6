"""A picture of a search: parameters against divergence, the winner marked.

Takes a `SearchResult`, writes a PNG. Called by `plan`.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

from ..atomic_write import atomic_write
from ..budget.result import SearchResult
from ..budget.shapes import words_of
from ..extras import extra

FRONT_PICTURE = "front.png"


def draw_front(result: SearchResult, path: Path) -> None:
    """Draw every candidate that was scored to `path` (PNG), those of a rung in one colour.

    A candidate stands at the score of the last rung that it reached; what its start was calibrated on is in the legend.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with extra("cli"):
        from matplotlib.figure import Figure  # slow to import, and only pictures need it

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for texts in result.texts:
        points = [
            (each.candidate.needs["params"] / 1e6, each.scores[-1])
            for each in result.scored
            if texts in each.texts[-1:] and isfinite(each.scores[-1])
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=30, label=f"calibrated on {texts} texts")
    best = result.scored[0]
    if isfinite(best.scores[-1]):
        at = best.candidate.needs["params"] / 1e6, best.scores[-1]
        axes.scatter(at[0], at[1], s=220, marker="*", color="none", edgecolor="black", zorder=3, label="winner")
        axes.set_yscale("symlog", linthresh=max(best.scores[-1], 1e-6))
    axes.set(xlabel="parameters, millions", ylabel=result.measure)
    axes.set_title(f"Starts of the shapes that fill the target\nwinner: {words_of(result.winner)}", fontsize="medium")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")
