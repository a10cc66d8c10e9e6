"""The reconstruction errors of a calibration as a table in the terminal.

Takes a `Calibration`, gives a `rich` table. Called by `compress` on the command line.
"""

from __future__ import annotations

from rich.table import Table

from ...calibration import Calibration

WORDS = {"input of", "layer", "where"}  # columns of names; all others are numbers


def calibration_table(calibration: Calibration) -> Table:
    """Return the errors of the start and of the fit, a row per weight input, or per layer if there are many."""
    head, *rows = calibration.rows()
    table = Table(title=calibration.title, caption=calibration.turned or None)
    for title in head:
        if title in WORDS:
            table.add_column(title, no_wrap=title == "layer", overflow="fold")
        else:
            table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
