"""A plan as a `rich` table, for terminals.

Takes a `Plan`; what shrinks is bold. Called by `wid-hf plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..coupling.plan import SAME, TITLES, Plan
from ..extras import extra

if TYPE_CHECKING:
    from rich.table import Table

RATIOS = (4, 1, 2, 2, 4)  # of the columns' widths


def plan_table(plan: Plan) -> Table:
    """Return the coupled dimensions, a row for all that differ in layer numbers only.

    Raises:
        MissingExtraError: rich is not installed.
    """
    with extra("cli"):
        from rich.table import Table

    table = Table(expand=True)
    for title, ratio in zip(TITLES, RATIOS, strict=True):
        table.add_column(title, overflow="fold", ratio=ratio)
    for row in plan.rows():
        table.add_row(*row, style="dim" if SAME in row else "bold")
    return table
