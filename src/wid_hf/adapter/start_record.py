"""Detects whether a student was changed since its start was made: calibrating again would lose the changes."""

from __future__ import annotations

from torch import nn

from ..layers import first_indices, folded_weights, is_at_start
from ..planning.student_plan import StudentPlan
from .fingerprint import Fingerprint, digest


class StartRecord:
    """Remembers a digest of the compactors at a student's start.

    Args:
        student: the model that trains.
        student_plan: the plan that it was made from.
        fingerprint: of the teacher's weights before any training.
    """

    def __init__(self, student: nn.Module, student_plan: StudentPlan, fingerprint: Fingerprint) -> None:
        self._student, self._student_plan, self._fingerprint = student, student_plan, fingerprint
        self._made: bytes | None = None

    def note(self) -> None:
        """Remember the compactors as they are now: a start was just made."""
        self._made = self._digest()

    def is_untouched(self, calibrated: bool) -> bool:
        """Return whether neither compactors nor the teacher's weights have changed since the last start was made.

        Args:
            calibrated: whether the student was calibrated, here or before it was saved.
        """
        weights, plan = self._student_plan.trace.weights, self._student_plan.plan
        if any(self._fingerprint.changed(name, weight) for name, weight in weights.items()):
            return False
        if self._made is not None:
            return self._made == self._digest()
        return not calibrated and is_at_start(self._student, weights, plan, first_indices(plan))

    def _digest(self) -> bytes:
        made = sorted(folded_weights(self._student).items())
        return b"".join(digest(f"{name} {key}", p) for name, each in made for key, p in each.named_parameters())
