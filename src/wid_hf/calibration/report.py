"""What calibration found: how well each read of the student restores what the teacher reads there.

Takes one `Site` per read, gives a table and a dictionary for `wid_report.json`; `picture` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any

from rich.table import Table

LONG = 24  # reads; more than these are shown layer by layer


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
            mean where the module has a bias. `C` selects, or undoes the rotation inside heads. Of a table that is also
            looked up it is the share of its outputs. NaN where nothing could be compared.
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

    @property
    def layer(self) -> str:
        """The name up to the first number in it, `bert.encoder.layer.3`; empty where there is none."""
        parts = self.weight.split(".")
        number = next((at for at, part in enumerate(parts) if part.isdigit()), -1)
        return ".".join(parts[: number + 1])

    @property
    def place(self) -> str:
        """The reading module's name inside its layer, `attention.self.query`; the whole name outside of layers."""
        return self.weight.removeprefix(f"{self.layer}.").removesuffix(".weight")


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
        """Return the shares that start and lift miss: a row per read, or per layer if there are many."""
        by_layer = len(self.sites) > LONG
        table = Table(title=f"Calibrated on {self.positions:,} positions in {self.seconds:.0f} s: energy missed by")
        table.add_column("layer" if by_layer else "read by", no_wrap=by_layer, overflow="fold")
        for title in (*(() if by_layer else ("teacher", "student")), "start", "lift"):
            table.add_column(title, justify="right")
        if by_layer:
            table.add_column("worst", justify="right")
            table.add_column("where", overflow="fold")
        for row in _layer_rows(self.sites) if by_layer else map(_site_row, self.sites):
            table.add_row(*row)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no NaN: None stands for it."""
        sites = [
            asdict(site) | {name: value if isfinite(value := getattr(site, name)) else None for name in MISSED}
            for site in self.sites
        ]
        return asdict(self) | {"sites": sites}


MISSED = ("before", "after")


def percent(share: float) -> str:
    """Return a share as it is printed and drawn; a dash where nothing was compared."""
    return f"{share:.1%}" if isfinite(share) else "-"


def _site_row(site: Site) -> tuple[str, ...]:
    after = site.note or percent(site.after)
    return site.weight, str(site.teacher_size), str(site.student_size), percent(site.before), after


def _layer_rows(sites: Sequence[Site]) -> Iterator[tuple[str, ...]]:
    """Yield each layer with its mean shares and its worst read; reads outside of layers count as one."""
    layers: dict[str, list[Site]] = {}
    for site in sites:
        layers.setdefault(site.layer or "outside", []).append(site)
    for name, members in layers.items():
        fitted = [site for site in members if not site.note]
        before, after = (_mean([getattr(site, which) for site in fitted]) for which in MISSED)
        worst = max(fitted, key=lambda site: site.after, default=None)
        where = [worst.place] if worst is not None else []
        if notes := {site.note: None for site in members if site.note}:
            where.append(f"{len(members) - len(fitted)} not fitted ({', '.join(notes)})")
        yield name, percent(before), percent(after), percent(worst.after if worst else nan), "; ".join(where)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
