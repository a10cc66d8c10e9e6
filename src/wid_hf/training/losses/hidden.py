"""Distillation of hidden states: the teacher's, reconstructed from the student's by the student's compactors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...adapter.tuner import WidModel
from ...adapter.turned import turn
from ...coupling import Dim
from ...coupling.plan import Key, key
from ...coupling.weight_inputs import WeightInput
from ...layers import Compactor, IndexSelect, folded_weights
from .counting import attended_positions, full, rows_of
from .term import RowTerm, Setup
from .watching import Call, Seen, pairs

Place = tuple[str, int]  # a weight and one of its axes
MATRIX = 2  # axes; the input of a convolution has the width elsewhere than last


class HiddenTerm(RowTerm):
    """The mean `reconstruction_error` over all hidden states that are inputs of weights.

    Attributes:
        places: for each call of a module whose input is hidden states, the weight's axis with the map by which student
            and teacher are compared: a `Compactor` reconstructs the teacher's, an `IndexSelect` selects of the
            teacher's, unless its stream was turned; None if both are equally wide.

    Raises:
        TeacherError: the teacher returns no hidden states, or no weight has them as `(batch, positions, width)` input.
    """

    name = "hidden"
    forward_arguments: ClassVar[Mapping[str, Any]] = {"output_hidden_states": True}
    at_all_positions = True  # hidden states are the head's input as well

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        by_module = dict(_places(self.wid, _streams(setup)))
        # By call: the input of DeBERTa-v2's keys is first hidden states, then the table of relative positions.
        self.places: dict[Call, Place | None] = {
            call: by_module[call[0]]
            for call, tensor in setup.seen.given.items()
            if call[0] in by_module and call[0] not in setup.seen.detached and setup.is_batch(tensor)
        }
        if not self.places:
            setup.refuse(self.name, "has no weight whose input is hidden states of (batch, positions, width)")

    @property
    def input_modules(self) -> set[str]:
        """The modules whose inputs are hidden states."""
        return {name for name, _ in self.places}

    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return per row the mean reconstruction error over all states; 0 if no layer ran in both models."""
        made, losses, done = self._maps(), [], set()
        for call, (mine, theirs) in pairs(student, student.given, teacher.given).items():
            # Queries, keys and values have one input: it is compared once. Some modules have other inputs as well.
            if call not in self.places or id(theirs) in done:
                continue
            done.add(id(theirs))
            place = self.places[call]
            student_states, teacher_states = _in_one_width(made[place], mine, theirs)
            attended = attended_positions(self.wid.teacher, theirs, inputs)
            losses.append(reconstruction_error(student_states, teacher_states, attended))
        return torch.stack(losses).mean(0) if losses else torch.zeros(rows_of(inputs), device=self.device)

    def _maps(self) -> dict[Place | None, nn.Module | Tensor | None]:
        """Return the map of each place as it is now; of a turned stream `(n, k)` instead of a selection."""
        made = folded_weights(self.wid.model)
        found: dict[Place | None, nn.Module | Tensor | None] = {None: None}
        for name, axis in filter(None, set(self.places.values())):
            by = made[name].maps[str(axis)]
            turned = self.wid.turned.of(self.wid.plan.axes[name][axis]) if isinstance(by, IndexSelect) else None
            found[name, axis] = by if turned is None else turned.T
        return found


def reconstruction_error(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """Return per row `(b,)` the share `|s - t|^2 / |t|^2` over attended positions, of states `(b, s, n)`."""
    mask = attended.unsqueeze(-1)
    student, teacher = full(student), full(teacher)
    energy = (teacher.square() * mask).sum((1, 2)).clamp(min=torch.finfo(teacher.dtype).tiny)
    return ((student - teacher).square() * mask).sum((1, 2)) / energy


def _in_one_width(by: nn.Module | Tensor | None, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states of both in one width: the student's mapped, or the teacher's selected or turned, by `by`."""
    if isinstance(by, Compactor):
        return mine.to(by.matrix.dtype) @ by.matrix, theirs
    if isinstance(by, IndexSelect):
        return mine, theirs[..., by.indices]
    return mine, turn(theirs, by) if isinstance(by, Tensor) else theirs


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


def _places(wid: WidModel, streams: set[Key]) -> Iterator[tuple[str, Place | None]]:
    """Yield each module whose input is one of `streams`, with the weight's axis whose map compares its inputs."""
    plan = wid.plan
    fitted = {plan.weight_inputs[at].weight for at in plan.fitted}
    for path, weight_input in _weight_inputs(wid).items():
        dim = plan.dim_of(weight_input)
        if key(dim) not in streams or len(plan.axes[weight_input.weight]) != MATRIX:
            continue
        if plan.size(dim) == dim.size:
            yield path, None
        elif weight_input.weight in fitted:
            yield path, (weight_input.weight, weight_input.axis)
        elif (place := _selecting(wid, dim)) is not None:  # a tied decoder's columns are also looked up
            yield path, place


def _weight_inputs(wid: WidModel) -> dict[str, WeightInput]:
    """Return the weight input of every module with a weight, under all names of the module."""
    by_weight = {each.weight: each for each in wid.plan.weight_inputs if not each.routed}
    names = wid.student_plan.trace.aliases
    return {name.rpartition(".")[0]: by_weight[first] for name, first in names.items() if first in by_weight}


def _selecting(wid: WidModel, dim: Dim) -> Place | None:
    """Return a weight that only follows the index set of `dim`, as normalisation weights do, and its axis."""
    for name, weight in folded_weights(wid.model).items():
        for axis, by in weight.maps.items():
            if isinstance(by, IndexSelect) and key(wid.plan.axes[name][int(axis)]) == key(dim):
                return name, int(axis)
    return None
