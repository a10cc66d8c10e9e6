"""What calibration found: the reconstruction error of every weight input of the student.

Takes one `InputReconstruction` per weight input; gives rows of text and a dictionary for `wid_report.json`. Tables and
pictures are made of these in `tools`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any

from ..coupling.plan import Plan

LONG = 24  # weight inputs; more than these are shown layer by layer
ERRORS = ("before", "after")
BY_INPUT = ("input of", "teacher", "student", "start", "fitted")
BY_LAYER = ("layer", "start", "fitted", "worst", "where")

FEW = "too few positions"
ROUTED = "positions of teacher and student differ"
UNSCALED = "scores are nearer without scaling"


@dataclass(frozen=True)
class InputReconstruction:
    """How well the teacher's input of one weight follows from the student's.

    Attributes:
        weight: the weight's name.
        axis: its axis that the input is contracted with.
        teacher_size: indices of the teacher's input.
        student_size: indices of the student's.
        positions: how many positions were compared.
        before: reconstruction error of the start, `E|x_t - C x_s|^2 / E|x_t|^2`, a share of the teacher's energy; about
            the mean where the module has a bias. `C` selects, or undoes the rotation inside heads. For a table that is
            also looked up it is the error of its outputs. NaN if nothing could be compared.
        after: the same with the fitted columns; equal to `before` if nothing was fitted.
        note: why there is no plain fit, or empty.
    """

    weight: str
    axis: int
    teacher_size: int
    student_size: int
    positions: int
    before: float
    after: float
    note: str = ""

    @classmethod
    def of(
        cls, plan: Plan, at: int, positions: int, before: float, after: float, note: str = ""
    ) -> InputReconstruction:
        """Return the entry of weight input number `at` of the plan."""
        weight_input = plan.weight_inputs[at]
        dim = plan.dim_of(weight_input)
        sizes = dim.size, plan.size(dim)
        return cls(weight_input.weight, weight_input.axis, *sizes, positions, before, after, note)

    @property
    def layer(self) -> str:
        """The name up to the first number in it, `bert.encoder.layer.3`; empty if there is none."""
        parts = self.weight.split(".")
        number = next((at for at, part in enumerate(parts) if part.isdigit()), -1)
        return ".".join(parts[: number + 1])

    @property
    def place(self) -> str:
        """The module's name inside its layer, `attention.self.query`; the whole name outside of layers."""
        return self.weight.removeprefix(f"{self.layer}.").removesuffix(".weight")


@dataclass(frozen=True)
class Trial:
    """A start that was tried.

    Attributes:
        name: of the candidate.
        divergence: from the teacher, on batches that it was not calibrated on.
        measure: what it is, in words.
        chosen: whether the student starts there.
    """

    name: str
    divergence: float
    measure: str
    chosen: bool


@dataclass(frozen=True)
class Calibration:
    """One calibration.

    Attributes:
        inputs: every weight input that was fitted, in the order of the forward.
        positions: positions of the data that were not padding, at the weight input with the most.
        seconds: wall time.
        turned: which streams were turned instead of selected, in words; empty if none was.
        trials: the starts that were tried on a part of the data; none if there was no choice.
    """

    inputs: tuple[InputReconstruction, ...]
    positions: int
    seconds: float
    turned: str = ""
    trials: tuple[Trial, ...] = ()

    @property
    def title(self) -> str:
        """The title of the rows, on one line."""
        return f"Calibrated on {self.positions:,} positions in {self.seconds:.0f} s: reconstruction error"

    def rows(self) -> list[tuple[str, ...]]:
        """Return the reconstruction errors as text after a header: a row per weight input, or per layer if many."""
        if len(self.inputs) > LONG:
            return [BY_LAYER, *_layer_rows(self.inputs)]
        return [BY_INPUT, *map(_input_row, self.inputs)]

    def __str__(self) -> str:
        """Return the title and the rows as text."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        tried = [
            f"{'kept' if trial.chosen else 'tried'}: {trial.name}, {trial.divergence:.3g} ({trial.measure})"
            for trial in self.trials
        ]
        return "\n".join([self.title, *lines, *tried, *filter(None, [self.turned])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for NaN."""
        entries = [
            asdict(entry) | {name: value if isfinite(value := getattr(entry, name)) else None for name in ERRORS}
            for entry in self.inputs
        ]
        trials = [
            asdict(trial) | {"divergence": trial.divergence if isfinite(trial.divergence) else None}
            for trial in self.trials
        ]
        return {
            "sites": entries,
            "positions": self.positions,
            "seconds": self.seconds,
            "turned": self.turned,
            "trials": trials,
        }


def percent(share: float) -> str:
    """Return a share as it is printed and drawn; a dash if nothing was compared."""
    return f"{share:.1%}" if isfinite(share) else "-"


def _input_row(entry: InputReconstruction) -> tuple[str, ...]:
    after = entry.note or percent(entry.after)
    return entry.weight, str(entry.teacher_size), str(entry.student_size), percent(entry.before), after


def _layer_rows(inputs: Sequence[InputReconstruction]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each layer; weight inputs outside of layers count as one."""
    layers: dict[str, list[InputReconstruction]] = {}
    for entry in inputs:
        layers.setdefault(entry.layer or "outside", []).append(entry)
    for name, members in layers.items():
        yield _layer_row(name, members)


def _layer_row(name: str, members: Sequence[InputReconstruction]) -> tuple[str, ...]:
    """Return the mean errors of a layer, its worst weight input, and how many were not fitted."""
    fitted = [entry for entry in members if not entry.note]
    before, after = (_mean([getattr(entry, which) for entry in fitted]) for which in ERRORS)
    worst = max(fitted, key=lambda entry: entry.after, default=None)
    where = [worst.place] if worst is not None else []
    if notes := {entry.note: None for entry in members if entry.note}:
        where.append(f"{len(members) - len(fitted)} not fitted ({', '.join(notes)})")
    return name, percent(before), percent(after), percent(worst.after if worst else nan), "; ".join(where)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
