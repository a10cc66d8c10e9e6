"""Pictures of several runs: training losses, and quality against size.

Takes recipes; writes PNGs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from ....atomic_write import atomic_write
from ....extras import extra
from .recipes import Recipe, Spread

with extra("cli"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, NullLocator

PANEL = (5.2, 3.6)  # inches
APART = 1.25  # ratio of two sizes that can both be named on an axis


def draw_losses(recipes: Sequence[Recipe], path: Path) -> None:
    """Draw training loss over steps to `path` (PNG): a line per run, a colour per recipe."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for at, recipe in enumerate(recipes):
        label: str | None = recipe.label
        for run in recipe.runs:
            if run.losses:
                steps, losses = zip(*run.losses, strict=True)
                marker = "o" if len(steps) == 1 else None
                axes.plot(steps, losses, color=f"C{at % 10}", label=label, linewidth=1.4, marker=marker, alpha=0.85)
                label = None
    axes.set(xlabel="step", ylabel="training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes)
    _save(figure, path)


def draw_quality(
    recipes: Sequence[Recipe], teacher: Mapping[str, Spread], teacher_size: float, figures: Sequence[str], path: Path
) -> None:
    """Draw figures of students over their encoder parameters to `path` (PNG), a panel per figure.

    A point is the mean over the seeds of one recipe, its bar the standard deviation; the teacher is a star.

    Args:
        recipes: of one teacher.
        teacher: its figures.
        teacher_size: its encoder parameters.
        figures: which to draw.
        path: where to write; an existing file is replaced.
    """
    columns = min(2, len(figures))
    rows = ceil(len(figures) / columns)
    figure = Figure(figsize=(max(6.4, PANEL[0] * columns), PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    every = list(dict.fromkeys(recipe.series for recipe in recipes))
    for axes, name in zip(panels, figures, strict=False):
        sizes = [teacher_size]
        for at, series in enumerate(every):
            points = [
                (size, spread)
                for recipe in recipes
                if recipe.series == series
                and (size := recipe.first.number("sizes", "student", "encoder"))
                and (spread := recipe.figure(name))
            ]
            if points:
                x = [size for size, _ in points]
                bars = [spread.deviation or 0.0 for _, spread in points]
                line = "-" if len(set(x)) == len(x) else ""  # of several recipes at one size no line can be drawn
                axes.errorbar(
                    x,
                    [spread.mean for _, spread in points],
                    bars,
                    fmt=f"o{line}",
                    color=f"C{at % 10}",
                    label=series,
                    markersize=5,
                    linewidth=1.4,
                    capsize=3,
                )
                sizes += x
        if name in teacher:
            axes.plot([teacher_size], [teacher[name].mean], "*", color="0.2", markersize=12, label="teacher")
            axes.axhline(teacher[name].mean, color="0.6", linestyle=":", linewidth=1)
        axes.set(xlabel="encoder parameters", title=name)
        _name_sizes(axes, sizes)
        _finish(axes)
    for axes in panels[len(figures) :]:
        axes.set_axis_off()
    _save(figure, path)


def _name_sizes(axes: Axes, sizes: Sequence[float]) -> None:
    """Give the logarithmic axis a tick at each size, as far as their names do not overlap."""
    named: list[float] = []
    for size in sorted(set(sizes), reverse=True):
        if not named or named[-1] / size > APART:
            named.append(size)
    axes.set_xscale("log")
    axes.set_xticks(named)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(places=1))


def _finish(axes: Axes) -> None:
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=140)
