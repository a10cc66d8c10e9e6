"""A picture of a calibration: reconstruction errors before and after the fit, layers x weight inputs.

Takes a `Calibration`, writes a PNG. Called by `compress`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_write import atomic_write
from ..calibration.report import Calibration, InputReconstruction, percent
from ..extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = (0.72, 0.3)  # inches
LETTER = 0.09  # inches
MOST = (8.0, 24.0)  # inches of one heat map; if cells need more, they shrink and lose their numbers
READABLE = 0.5  # inches of width that a number needs
LABELS = 40  # names along one axis that can still be read
DARK = 0.55  # of the colour scale: above it numbers are white
TITLES = {"before": "missed by the start", "after": "missed after reconstruction"}


@dataclass(frozen=True)
class _Grid:
    """Layers x weight inputs: for each name in `columns` one entry per row, None if a layer has no such input."""

    rows: Sequence[str]
    columns: dict[str, list[InputReconstruction | None]]


def draw(calibration: Calibration, path: Path) -> None:
    """Draw a heat map into the PNG `path`, which appears when it is complete.

    Rows are layers, columns the weight inputs inside a layer; inputs with the same errors everywhere, such as those of
    queries and keys, share one. Inputs outside of layers are below, each with its name. A dash means that nothing was
    compared, an asterisk that nothing was fitted.

    Args:
        calibration: with at least one weight input.
        path: where to write; an existing file is replaced.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with extra("cli"):
        from matplotlib.figure import Figure  # slow to import, and only pictures need it

    grid = _grid([entry for entry in calibration.inputs if entry.layer])
    outside = [entry for entry in calibration.inputs if not entry.layer]
    named = LETTER * max((len(entry.place) + 7 for entry in outside), default=0)
    width = min(max(CELL[0] * max(len(grid.columns), 4), named), MOST[0])
    heights = [min(CELL[1] * len(part), MOST[1]) for part in (grid.rows, outside)]
    figure = Figure(figsize=(2 * width + 3, sum(heights) + 2.8), layout="constrained")
    figure.suptitle(
        f"What the student misses of the teacher's inputs\n{calibration.positions:,} positions, "
        f"{calibration.seconds:.0f} s",
        fontsize="medium",
    )
    style = _style(calibration.inputs)
    drawn = [height for height in heights if height]
    axes = figure.subplots(len(drawn), 2, squeeze=False, sharex=False, height_ratios=drawn)
    for side, (which, title) in enumerate(TITLES.items()):
        axes[0, side].set_title(title, fontsize="medium", fontweight="bold")
        if grid.rows:
            _draw_layers(axes[0, side], grid, which, style, width / len(grid.columns) >= READABLE, names=side == 0)
        if outside:
            _draw_outside(axes[-1, side], outside, which, style)
    bar = figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.8, pad=0.02, format=lambda share, _: f"{share:.0%}")
    bar.outline.set_visible(False)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)


def _style(entries: Sequence[InputReconstruction]) -> dict[str, Any]:
    """Return how images are drawn: all with the same colours."""
    shown = [share for entry in entries for share in (entry.before, entry.after) if isfinite(share)]
    return {"cmap": "YlOrRd", "vmin": 0.0, "vmax": min(max([0.01, *shown]), 1.0), "aspect": "auto"}


def _grid(entries: Sequence[InputReconstruction]) -> _Grid:
    """Return the entries of layers in rows and columns; a weight that is used again has a second row."""
    stacks = {entry.layer.rpartition(".")[0] for entry in entries}
    cells: dict[str, dict[tuple[int, int], InputReconstruction]] = {}
    times: Counter[str] = Counter()
    for entry in entries:
        stack, _, number = entry.layer.rpartition(".")
        place = entry.place if len(stacks) == 1 else f"{stack}: {entry.place}"
        cells.setdefault(place, {})[int(number), times[entry.weight]] = entry
        times[entry.weight] += 1
    keys = sorted({key for column in cells.values() for key in column})
    rows = [f"{number}" if not again else f"{number}, use {again + 1}" for number, again in keys]
    alike: dict[Any, list[str]] = {}
    for place, column in cells.items():
        alike.setdefault(tuple((k, s.before, s.after, s.note) for k, s in sorted(column.items())), []).append(place)
    return _Grid(rows, {_joined(places): [cells[places[0]].get(key) for key in keys] for places in alike.values()})


def _joined(places: Sequence[str]) -> str:
    """Return one name for several: `attention.{query, key}`."""
    if len(places) == 1:
        return places[0]
    parts = [place.split(".") for place in places]
    shared = next(at for at, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1)
    ends = ", ".join(".".join(part[shared:]) for part in parts)
    return ".".join([*parts[0][:shared], f"{{{ends}}}"])


def _draw_layers(axes: Axes, grid: _Grid, which: str, style: dict[str, Any], numbers: bool, names: bool) -> None:
    columns = [[_share(entry, which) for entry in column] for column in grid.columns.values()]
    axes.imshow(list(zip(*columns, strict=True)), **style)
    _ticks(axes, grid)
    axes.tick_params(labelleft=names)
    if names:
        axes.set_ylabel("layer")
    if numbers:
        for x, column in enumerate(grid.columns.values()):
            for y, entry in enumerate(column):
                _number(axes, x, y, entry, which, style["vmax"])


def _draw_outside(axes: Axes, entries: Sequence[InputReconstruction], which: str, style: dict[str, Any]) -> None:
    axes.imshow([[_share(entry, which)] for entry in entries], **style)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for y, entry in enumerate(entries):
        _number(axes, 0, y, entry, which, style["vmax"], f"{entry.place}  ")


def _ticks(axes: Axes, grid: _Grid) -> None:
    """Name columns and rows, only every n-th if there are too many to read."""
    skip = 1 + len(grid.columns) // LABELS
    names = [name.replace(".{", ".\n{") for name in grid.columns]
    axes.set_xticks(range(0, len(names), skip), names[::skip], rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)


def _number(
    axes: Axes, x: int, y: int, entry: InputReconstruction | None, which: str, most: float, name: str = ""
) -> None:
    if entry is None:
        return
    share = _share(entry, which)
    star = "*" if entry.note and which == "after" else ""
    colour = "white" if isfinite(share) and share > DARK * most else "black"
    axes.text(x, y, f"{name}{percent(share)}{star}", ha="center", va="center", fontsize="small", color=colour)


def _share(entry: InputReconstruction | None, which: str) -> float:
    return nan if entry is None else float(getattr(entry, which))
