"""Rows of the table, as text.

Takes records, gives cells.
"""

from __future__ import annotations

from cases import Case, Sizes
from store import Record

COLUMNS = (
    "layers",
    "width",
    "batch",
    "dtype",
    "teacher",
    "what",
    "seconds",
    "tokens/s",
    "x bare",
    "GFLOP",
    "of it fold",
    "peak GB",
    "allowed GB",
)


def step_rows(case: Case, variants: dict[str, Record]) -> list[tuple[str, ...]]:
    """Return the table's rows about a case, one a variant."""
    width, batch = f"{case.sizes.teacher_width} → {case.sizes.width}", f"{case.rows}x{case.length}"
    return [
        (
            str(case.sizes.layers),
            width,
            batch,
            case.dtype,
            case.teacher,
            name,
            *_step_cells(made),
            *(format(made[key], ".2f") if made.get(key) else "" for key in ("peak_gigabytes", "allowed_gigabytes")),
        )
        for name, made in variants.items()
    ]


def once_rows(sizes: Sizes, calibrated: str, seconds: dict[str, float]) -> list[tuple[str, ...]]:
    """Return the table's rows about what happens once in a training; `calibrated` is rows x tokens of the data."""
    width = f"{sizes.teacher_width} → {sizes.width}"
    return [
        (str(sizes.layers), width, calibrated if what == "calibration" else "", "", "", what, f"{took:.3f}", *[""] * 6)
        for what, took in seconds.items()
    ]


def _step_cells(made: Record) -> tuple[str, ...]:
    if "seconds" not in made:
        return "out of memory", "", "", "", ""
    return (
        _spread(made, "seconds", ".3f"),
        f"{made['tokens_per_second']:,.0f}",
        _spread(made, "ratio", ".2f"),
        f"{made['step_flops'] / 1e9:,.1f}",
        f"{made['fold_flops'] / 1e9:,.1f}" if "fold_flops" in made else "",
    )


def _spread(made: Record, key: str, style: str) -> str:
    low, high = (format(made[f"{end}_{key}"], style) for end in ("least", "greatest"))
    return f"{format(made[key], style)} ({low} to {high})"
