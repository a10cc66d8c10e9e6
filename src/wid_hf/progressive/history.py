"""The widths in the log of a progressive training.

Takes a trainer's `state.log_history`; gives numbers for reports and pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEPT = "wid/kept/"


def widths_over_steps(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return `(step, kept indices)` for each coupled dimension in a trainer's log."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name.startswith(KEPT):
                found.setdefault(name.removeprefix(KEPT), []).append((int(entry["step"]), float(value)))
    return found


def narrow_from(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step after which the model was narrow, None if a trainer's log has no such step."""
    return next((int(entry["step"]) for entry in history if entry.get("wid/wide") == 0.0), None)
