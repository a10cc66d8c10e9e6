"""The calibrated start of a student: in closed form, then by gradient where that is asked for or there is no other.

Takes teachers, a student, its plan and batches; writes the student's maps and gives a report. Called by the tuner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calibration import Calibration, Start, initialize, refine
from ..calibration.batches import Batch
from ..calibration.precision import Precision
from ..calibration.refinement.pieces import can_be_divided
from ..config import WidConfig
from ..coupling import Dim
from ..planning.student_plan import StudentPlan
from .teachers import Teachers


@dataclass(frozen=True)
class StartSteps:
    """Which steps of a start are taken; `WidModel.calibrate` says what each does."""

    reconstruction: bool
    head_svd: bool
    pca: bool
    quick: bool


class StartMaker:
    """Makes the start of one student.

    Args:
        teachers: that it is folded from.
        student: an installed student.
        student_plan: that it was made from.
        config: how it is calibrated.
        batches: keyword dictionaries for the teacher's forward.
    """

    def __init__(
        self, teachers: Teachers, student: Any, student_plan: StudentPlan, config: WidConfig, batches: list[Batch]
    ) -> None:
        self._teachers, self._config, self._batches = teachers, config, batches
        self._given = teachers.planned, student, student_plan.trace, student_plan.plan, batches
        self._example = student_plan.trace.examples[0]

    def closed_form(self, steps: StartSteps) -> Start:
        """Set every map in closed form, and return which indices stay, which streams turned, and the report."""
        solved = self._config.init == "calibrated"
        assert self._config.selection is not None  # the config has filled it in
        return initialize(
            *self._given,
            selection=self._config.selection,
            head_svd=steps.head_svd and solved,
            pca=steps.pca and solved,
            reconstruction=steps.reconstruction and solved,
            ridge=self._config.calibration_config.ridge,
            output=self._config.calibration_config.output,
            tries=not steps.quick,
            whole=self._computing_all,
        )

    def refined(self, start: Start, map_of: Callable[[Dim], Tensor], folder: Path | None) -> Calibration:
        """Take the gradient steps that were asked for, and those of a head that has no closed form.

        Args:
            start: what `closed_form` returned.
            map_of: the map `(n, k)` from the teacher's activations along an axis to the student's.
            folder: where finished layers are saved.

        Returns:
            The report of the start, with that of these steps if there were any.
        """
        wanted = self._config.calibration_config
        if not wanted.refine and not (start.has_head and can_be_divided(self._batches)):
            return start.report
        with self._computing_all():
            refinement = refine(
                *self._given,
                maps=lambda dim: map_of(dim).T,
                steps=wanted.refine,
                seconds=wanted.refine_seconds,
                precision=Precision.of_caller(self._teachers.planned.device),
                folder=folder,
            )
        report = start.report
        return replace(report, refined=refinement.parts, seconds=report.seconds + refinement.seconds)

    def _computing_all(self) -> Any:
        return self._teachers.computing_all(self._example)
