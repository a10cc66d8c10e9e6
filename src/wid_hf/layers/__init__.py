"""The student's weights as a function of the teacher's: compactors, their folds, and folds that serve a whole step."""

from .compactors import (
    Compactor,
    FoldedWeight,
    IndexSelect,
    compactor_axes,
    first_indices,
    folded_weights,
    install,
    is_at_start,
    restart,
    shrinking_leaves,
    student_weights,
)

__all__ = [
    "Compactor",
    "FoldedWeight",
    "IndexSelect",
    "compactor_axes",
    "first_indices",
    "folded_weights",
    "install",
    "is_at_start",
    "restart",
    "shrinking_leaves",
    "student_weights",
]
