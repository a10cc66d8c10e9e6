"""The figures of a model as it is, for people as a table and for programs as JSON. Made by `evaluate_as_is`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...extras import extra
from .wid_report import hardware_name, package_versions

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class AsIsReport:
    """One model on rows, perhaps beside its teacher.

    Attributes:
        model: name or folder.
        teacher: the same of its teacher; None if it was scored by labels alone.
        task: name of the objective.
        unit: what rows are called, such as `texts` or `images`.
        scored: how many rows.
        scores: figures of `model` and, if there is one, of `teacher`.
        fingerprints: SHA-256 of the weights of both.
        rows: the column of each role, how many rows were read, and why some were left out, by source.
        settings: what was asked for.
        command: the command line; None for a call from Python.
        hardware: device and number of threads.
        versions: of Python and the packages that matter.
    """

    model: str
    teacher: str | None
    task: str
    unit: str
    scored: int
    scores: Mapping[str, Mapping[str, float]]
    fingerprints: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    command: str | None = None
    hardware: str = field(default_factory=hardware_name)
    versions: Mapping[str, str] = field(default_factory=package_versions)

    def json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    def table(self) -> Table:
        """Return the figures, and those of the teacher beside them."""
        with extra("cli"):
            from rich.table import Table

        table = Table("", *self.scores, title=f"{self.model}: {self.task}, {self.scored:,} {self.unit}")
        for figure in self.scores["model"]:
            table.add_row(figure.replace("_", " "), *(f"{scores[figure]:.4f}" for scores in self.scores.values()))
        return table
