"""The student's weights as a function of the teacher's: compactors, their folds, and folds that serve a whole step."""

from .compactors import (
    Choice,
    Compaction,
    Compactor,
    compactions,
    compactor_axes,
    first_indices,
    folded_weights,
    install,
    is_at_start,
    restart,
    shrinking_leaves,
)

__all__ = [
    "Choice",
    "Compaction",
    "Compactor",
    "compactions",
    "compactor_axes",
    "first_indices",
    "folded_weights",
    "install",
    "is_at_start",
    "restart",
    "shrinking_leaves",
]
