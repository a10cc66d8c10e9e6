"""A picture of widths over steps.

Takes what `progressive.history` found in a trainer's log, gives a PNG. Called by `WidCallback` and `report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..atomic_write import atomic_write
from ..extras import extra

WIDTHS_PICTURE = "widths.png"


def draw_widths(widths: Mapping[str, Sequence[tuple[int, float]]], narrow: int | None, path: Path) -> None:
    """Draw kept indices over steps, and where the model became narrow, to `path` (PNG).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with extra("cli"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in widths.items():
        steps, kept = zip(*points, strict=True)
        axes.step(steps, kept, where="post", label=name, linewidth=1.5)
    if narrow is not None:
        axes.axvline(narrow, color="0.4", linestyle="--", linewidth=1)
        axes.text(narrow, axes.get_ylim()[1], " narrow from here", color="0.3", va="top", fontsize=8)
    axes.set(xlabel="step", ylabel="kept indices", ylim=(0, None), title="Widths over training")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")
