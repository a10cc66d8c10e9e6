"""Training losses and widths over steps, one line for each run.

Takes records of trainings, gives a PNG.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from store import Record


def draw_curves(runs: Mapping[str, Record], path: Path) -> None:
    """Draw losses above and the width of the first coupled dimension, the residual stream, below."""
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    losses, widths = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for at, (name, record) in enumerate(runs.items()):
        colour = f"C{at}"
        losses.plot(*zip(*record["losses"], strict=True), label=name, color=colour, linewidth=1.5)
        for points in list(record["widths"].values())[:1]:
            widths.step(*zip(*points, strict=True), where="post", color=colour, linewidth=1.5)
        if record["narrow_from"]:
            for axes in (losses, widths):
                axes.axvline(record["narrow_from"], color=colour, linestyle=":", linewidth=1)
    losses.set(ylabel="training loss (nats)", title="Losses and widths; dotted: where the model becomes narrow")
    widths.set(xlabel="step", ylabel="kept of the\nresidual stream", ylim=(0, None))
    losses.legend(frameon=False, fontsize=8)
    for axes in (losses, widths):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
