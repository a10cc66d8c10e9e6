"""What calibration found: the reconstruction error of every weight input of the student.

Takes one `InputReconstruction` per weight input; gives rows of text and a dictionary for `wid_report.json`. Tables and
pictures are made of these in `tools`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any

from ..coupling.plan import Plan

LONG = 24  # weight inputs; more than these are shown layer by layer
ERRORS = ("before", "after")
BY_INPUT = ("input of", "teacher", "student", "start", "fitted")
BY_LAYER = ("layer", "start", "fitted", "worst", "where")
REFINED = ("refined", "before", "after", "steps", "seconds", "note")
REFINED_TITLE = "Refined layer by layer: error on held-out texts"
HEAD = "head"

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
class Dropped:
    """One layer that a student does not have.

    Attributes:
        layer: its module's name.
        influence: 1 less the cosine of its stream before and after it, over tokens.
        divergence: of the teacher's outputs without this layer and those dropped before it; None where layers were
            chosen by influence alone.
        measure: of the divergence, in words.
    """

    layer: str
    influence: float
    divergence: float | None = None
    measure: str = ""

    def __str__(self) -> str:
        """Return one line."""
        then = "" if self.divergence is None else f", then {self.divergence:.3g} ({self.measure})"
        return f"{self.layer}, influence {self.influence:.3f}{then}"


@dataclass(frozen=True)
class RefinedPart:
    """What refinement did to one layer, or to the head.

    Attributes:
        name: of the layer's module; `head` for all that stands behind the layers.
        before: error on held-out texts of the closed form: of a layer's stream relative to the teacher's, of a head in
            nats where its outputs are scores.
        after: the same of what was written back.
        steps: optimizer steps that were taken.
        lost: share of the squared change of the weights that their maps could not take over.
        seconds: wall time.
        note: why it stayed as it was, or empty.
    """

    name: str
    before: float
    after: float
    steps: int
    lost: float
    seconds: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for NaN."""
        return asdict(self) | _errors(self)


@dataclass(frozen=True)
class Calibration:
    """One calibration.

    Attributes:
        inputs: every weight input that was fitted, in the order of the forward.
        positions: positions of the data that were not padding, at the weight input with the most.
        seconds: wall time.
        turned: which streams were turned instead of selected, in words; empty if none was.
        trials: the starts that were tried on a part of the data; none if there was no choice.
        refined: layers in the order of the forward, then the head; empty without refinement.
        dropped: layers that the student does not have, in the order in which they were chosen to go.
    """

    inputs: tuple[InputReconstruction, ...]
    positions: int
    seconds: float
    turned: str = ""
    trials: tuple[Trial, ...] = ()
    refined: tuple[RefinedPart, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Calibration:
        """Return the calibration that `to_dict` gave."""
        return cls(
            tuple(InputReconstruction(**_restored(entry, ERRORS)) for entry in saved["sites"]),
            saved["positions"],
            saved["seconds"],
            saved["turned"],
            tuple(Trial(**_restored(trial, ("divergence",))) for trial in saved["trials"]),
            tuple(RefinedPart(**_restored(part, ERRORS)) for part in saved.get("refined", ())),
            tuple(Dropped(**layer) for layer in saved.get("dropped", ())),
        )

    @property
    def title(self) -> str:
        """The title of the rows, on one line."""
        return f"Calibrated on {self.positions:,} positions in {self.seconds:.0f} s: reconstruction error"

    def rows(self) -> list[tuple[str, ...]]:
        """Return the reconstruction errors as text after a header: a row per weight input, or per layer if many."""
        if len(self.inputs) > LONG:
            return [BY_LAYER, *_layer_rows(self.inputs)]
        return [BY_INPUT, *map(_input_row, self.inputs)]

    def refined_rows(self) -> list[tuple[str, ...]]:
        """Return what refinement did as text after a header: a row per layer, and one for the head."""
        return [REFINED, *map(_refined_row, self.refined)] if self.refined else []

    def __str__(self) -> str:
        """Return the title and the rows as text."""
        lines = [*(f"layer left out: {layer}" for layer in self.dropped), self.title, *_aligned(self.rows())]
        lines += [
            f"{'kept' if trial.chosen else 'tried'}: {trial.name}, {trial.divergence:.3g} ({trial.measure})"
            for trial in self.trials
        ]
        if self.turned:
            lines.append(self.turned)
        if self.refined:
            lines += [REFINED_TITLE, *_aligned(self.refined_rows())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for NaN."""
        found: dict[str, Any] = {
            "sites": [asdict(entry) | _errors(entry) for entry in self.inputs],
            "positions": self.positions,
            "seconds": self.seconds,
            "turned": self.turned,
            "trials": [
                asdict(trial) | {"divergence": trial.divergence if isfinite(trial.divergence) else None}
                for trial in self.trials
            ],
        }
        if self.refined:
            found["refined"] = [part.to_dict() for part in self.refined]
        if self.dropped:
            found["dropped"] = [asdict(layer) for layer in self.dropped]
        return found


def percent(share: float) -> str:
    """Return a share as it is printed and drawn; a dash if nothing was compared."""
    return f"{share:.1%}" if isfinite(share) else "-"


def _errors(entry: InputReconstruction | RefinedPart) -> dict[str, float | None]:
    """Return the errors of an entry for JSON."""
    return {name: value if isfinite(value := getattr(entry, name)) else None for name in ERRORS}


def _restored(saved: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return values from JSON, with NaN for None under some names."""
    return {**saved, **{name: nan for name in names if saved[name] is None}}


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _refined_row(part: RefinedPart) -> tuple[str, ...]:
    told = [f"{error:.3f}" if part.name == HEAD else percent(error) for error in (part.before, part.after)]
    return part.name, *told, str(part.steps), f"{part.seconds:.1f}", part.note


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
