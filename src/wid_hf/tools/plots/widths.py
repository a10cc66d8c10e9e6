"""A picture of widths over steps.

Takes a trainer's log, gives a PNG. Called by `WidCallback` and `report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...atomic_write import atomic_write

KEPT = "wid/kept/"
WIDTHS_PICTURE = "widths.png"


def widths_over_steps(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return `(step, kept indices)` for each coupled dimension in a trainer's log."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name.startswith(KEPT):
                found.setdefault(name.removeprefix(KEPT), []).append((int(entry["step"]), float(value)))
    return found


def narrow_from(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step after which the model was narrow, None if a trainer's log does not tell of one."""
    return next((int(entry["step"]) for entry in history if entry.get("wid/wide") == 0.0), None)


def draw_widths(widths: Mapping[str, Sequence[tuple[int, float]]], narrow: int | None, path: Path) -> None:
    """Draw kept indices over steps, and where the model became narrow, to `path` (PNG)."""
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
