"""Distillation of hidden states: the student's, carried to the teacher's width by its own compactors (the lift)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...adapter.tuner import WidModel
from ...coupling import Dim
from ...coupling.plan import Key, key
from ...coupling.weight_inputs import WeightInput
from ...layers import Compactor, IndexSelect, folded_weights
from .counting import attended_positions, full, rows_of
from .term import RowTerm, Setup
from .watching import Call, Seen, pairs

Place = tuple[str, int]  # a weight and one of its axes


class HiddenTerm(RowTerm):
    """The mean of `missed_energy` over all hidden states that weights read.

    Attributes:
        readers: modules that read hidden states, by call, and the map by which those of student and teacher are
            compared: a `Compactor` lifts the student's, an `IndexSelect` selects among the teacher's; None where both
            are equally wide.

    Raises:
        TeacherError: the teacher returns no hidden states, or no weight reads them as `(batch, positions, width)`.
    """

    name = "hidden"
    asks: ClassVar[Mapping[str, Any]] = {"output_hidden_states": True}
    at_all_positions = True  # the head reads hidden states as well

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        places = dict(_readers(self.wid, _streams(setup)))
        # Call by call: DeBERTa-v2's keys read hidden states, and then the table of relative positions.
        self.readers: dict[Call, Place | None] = {
            call: places[call[0]]
            for call, tensor in setup.seen.read.items()
            if call[0] in places and setup.is_batch(tensor)
        }
        if not self.readers:
            setup.refuse(self.name, "has no weight that reads hidden states of (batch, positions, width)")

    @property
    def reading(self) -> set[str]:
        """The modules that read hidden states."""
        return {name for name, _ in self.readers}

    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return per row the mean over all states of what is missed of the teacher's; 0 where both ran no layer."""
        made, losses, done = folded_weights(self.wid.model), [], set()
        for call, (mine, theirs) in pairs(student, student.read, teacher.read).items():
            # Queries, keys and values read one tensor: the first of them lifts it. Others read something else as well.
            if call not in self.readers or id(theirs) in done:
                continue
            done.add(id(theirs))
            place = self.readers[call]
            by = made[place[0]].maps[str(place[1])] if place is not None else None
            lifted, wanted = _in_one_width(by, mine, theirs)
            losses.append(missed_energy(lifted, wanted, attended_positions(theirs, inputs)))
        return torch.stack(losses).mean(0) if losses else torch.zeros(rows_of(inputs), device=self.device)


def missed_energy(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """Return per row `(b,)` the share `|s - t|^2 / |t|^2` over attended positions, of states `(b, s, n)`."""
    mask = attended.unsqueeze(-1)
    student, teacher = full(student), full(teacher)
    energy = (teacher.square() * mask).sum((1, 2)).clamp(min=torch.finfo(teacher.dtype).tiny)
    return ((student - teacher).square() * mask).sum((1, 2)) / energy


def _in_one_width(by: nn.Module | None, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states of student and teacher: the student's lifted, or the teacher's selected, `by` the map."""
    if isinstance(by, Compactor):
        return mine.to(by.matrix.dtype) @ by.matrix, theirs
    if isinstance(by, IndexSelect):
        return mine, theirs[..., by.indices]
    return mine, theirs


def _streams(setup: Setup) -> set[Key]:
    """Return the dimensions of the hidden states that the teacher returns."""
    outputs = setup.wid.student_plan.trace.module_outputs
    fields = [value for name, value in setup.seen.output.items() if name.endswith("hidden_states")]
    states = {id(state) for value in fields if isinstance(value, (tuple, list)) for state in value}
    if not states:
        setup.refuse(HiddenTerm.name, "returns no hidden states (output_hidden_states=True)")
    return {
        key(outputs[path][-1])
        for (path, _), tensor in setup.seen.returned.items()
        if id(tensor) in states and path in outputs
    }


def _readers(wid: WidModel, streams: set[Key]) -> Iterator[tuple[str, Place | None]]:
    """Yield each module that reads one of `streams`, with the map that compares what it reads."""
    plan = wid.plan
    fitted = {plan.weight_inputs[at].weight for at in plan.fitted}
    for path, read in _weight_inputs(wid).items():
        dim = plan.axes[read.weight][read.axis]
        if key(dim) not in streams:
            continue
        if plan.size(dim) == dim.size:
            yield path, None
        elif read.weight in fitted:
            yield path, (read.weight, read.axis)
        elif (place := _selecting(wid, dim)) is not None:  # a tied decoder's columns write as well as read
            yield path, place


def _weight_inputs(wid: WidModel) -> dict[str, WeightInput]:
    """Return what every module that holds a weight multiplies it with, by all names of the module."""
    read = {read.weight: read for read in wid.plan.weight_inputs if not read.routed}
    names = wid.student_plan.trace.aliases
    return {name.rpartition(".")[0]: read[first] for name, first in names.items() if first in read}


def _selecting(wid: WidModel, dim: Dim) -> Place | None:
    """Return a weight that only follows the index set of `dim`, as normalisation weights do, and its axis."""
    for name, weight in folded_weights(wid.model).items():
        for axis, by in weight.maps.items():
            if isinstance(by, IndexSelect) and key(wid.plan.axes[name][int(axis)]) == key(dim):
                return name, int(axis)
    return None
