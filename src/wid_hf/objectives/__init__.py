"""What models are for: one file per objective, each with its collator, its loss from the teacher and its figures."""

from __future__ import annotations

from .objective import Objective
from .registry import OBJECTIVES, find_objective

__all__ = ["OBJECTIVES", "Objective", "find_objective"]
