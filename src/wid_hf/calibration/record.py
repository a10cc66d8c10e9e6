"""What calibration found: how well each read of the student restores what the teacher reads there.

Takes one `Site` per read, gives a table and a dictionary for `wid_report.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Site:
    """One read of a weight along an axis that shrinks.

    Attributes:
        weight: which weight reads.
        axis: along which axis.
        teacher_size: indices of what the teacher reads.
        student_size: indices of what the student reads.
        positions: how many positions were compared.
        before: share of the teacher's energy that the start misses, `E|x_t - C x_s|^2 / E|x_t|^2`; about the
            mean where the module has a bias. `C` selects, or undoes the rotation inside heads.
        after: the same with the lift; equal to `before` where nothing could be fitted.
        note: why nothing was fitted, or empty.
    """

    weight: str
    axis: int
    teacher_size: int
    student_size: int
    positions: int
    before: float
    after: float
    note: str = ""


@dataclass(frozen=True)
class Calibration:
    """One calibration.

    Attributes:
        sites: every read that was looked at, in the order of the forward.
        positions: positions of the data that were not padding, as the widest read counted them.
        seconds: wall time.
    """

    sites: tuple[Site, ...]
    positions: int
    seconds: float

    def table(self) -> Table:
        """Return one row per read: what the start missed of it, and what the lift does."""
        table = Table(title=f"Calibrated on {self.positions:,} positions in {self.seconds:.0f} s")
        table.add_column("read by", overflow="fold")
        for title in ("teacher", "student", "missed by the start", "missed by the lift"):
            table.add_column(title, justify="right")
        for site in self.sites:
            after = f"{site.after:.1%}" if not site.note else site.note
            table.add_row(site.weight, str(site.teacher_size), str(site.student_size), f"{site.before:.1%}", after)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
