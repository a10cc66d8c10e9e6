"""Which size, how long, how good: all that `wid-hf plan` tells, as values.

Takes a teacher, and sizes or a target; gives a `PlanReport`. With rows a target is searched for, and what a training
would take is measured. Called by `wid-hf plan`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..budget import SizeSearch
from ..config import WidConfig
from ..coupling.plan import TITLES
from ..hub.model_size import ModelSize, model_size
from ..planning.empty_student import empty_student
from ..planning.student_plan import StudentPlan, plan_student
from .find_sizes import FoundSizes, find_sizes
from .forecast import Forecast, forecast
from .recipe import CompressSettings
from .teachers import Teacher
from .training_data import Source


@dataclass(frozen=True)
class PlanReport:
    """What would become of a teacher.

    Attributes:
        teacher: its name.
        config: the request, given or found.
        planned: the student that it means.
        sizes: of `teacher` and `student`.
        proved: whether the coupled dimensions were proved by permutation.
        found: how sizes were found for a target; None where they were given.
        forecast: what training would take; None without rows.
    """

    teacher: str
    config: WidConfig
    planned: StudentPlan
    sizes: dict[str, ModelSize]
    proved: bool = False
    found: FoundSizes | None = None
    forecast: Forecast | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        planned = self.planned
        return {
            "teacher": self.teacher,
            "requested": self.config.requested,
            "settled": str(planned.settled) or None,
            "sizes": planned.settled.sizes,
            "layers": [
                {"name": each.title, "teacher": each.old, "student": each.new, "kept": each.kept, "words": str(each)}
                for each in planned.stacks
            ],
            "dimensions": [dict(zip(TITLES, row, strict=True)) for row in planned.plan.rows()],
            "notes": list(planned.plan.notes),
            "parameters": {side: asdict(size) for side, size in self.sizes.items()},
            "proved": self.proved,
            "search": self.found.record if self.found is not None else None,
            "forecast": self.forecast.to_dict() if self.forecast is not None else None,
        }


def plan_report(
    teacher: Teacher,
    asked: WidConfig | SizeSearch,
    *,
    train: Source | None = None,
    settings: CompressSettings | None = None,
    proof: bool = False,
) -> PlanReport:
    """Plan a student, with sizes that are given or found for a target.

    Args:
        teacher: the teacher.
        asked: sizes, or a target.
        train: rows on which candidates are compared and a training is measured; without them a target has a guess.
        settings: how these are read, and how `compress` would train.
        proof: prove the coupled dimensions by permutation.

    Raises:
        WidError: one of its subclasses: there is no such student, or the rows cannot be used.
    """
    settings = settings or CompressSettings()
    found = None
    if isinstance(asked, SizeSearch):
        found = find_sizes(teacher, asked, train, settings)
        asked = found.config
    model = teacher.model
    planned = plan_student(model, asked, proof=proof)
    return PlanReport(
        teacher.name,
        asked,
        planned,
        {"teacher": model_size(model), "student": model_size(empty_student(model, planned.config))},
        proof,
        found,
        forecast(teacher, asked, train, settings) if train is not None else None,
    )
