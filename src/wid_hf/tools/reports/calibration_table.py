"""The errors of a calibration as tables in the terminal.

Takes a `Calibration`, gives `rich` tables. Called by `compress` on the command line.
"""

from __future__ import annotations

from rich.table import Table

from ...calibration import Calibration
from ...calibration.report import REFINED_TITLE

WORDS = {"input of", "layer", "where", "refined", "note"}  # columns of names; all others are numbers


def calibration_table(calibration: Calibration) -> Table:
    """Return the errors of the start and of the fit, a row per weight input, or per layer if there are many."""
    return _table(calibration.title, calibration.rows(), calibration.turned or None)


def refined_table(calibration: Calibration) -> Table:
    """Return the errors before and after refinement, a row per layer and one for the head."""
    return _table(REFINED_TITLE, calibration.refined_rows())


def _table(title: str, rows: list[tuple[str, ...]], caption: str | None = None) -> Table:
    head, *rest = rows
    table = Table(title=title, caption=caption)
    for name in head:
        if name in WORDS:
            table.add_column(name, no_wrap=name == "layer", overflow="fold")
        else:
            table.add_column(name, justify="right")
    for row in rest:
        table.add_row(*row)
    return table
