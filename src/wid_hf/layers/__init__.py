"""The student's weights as a function of the teacher's: maps of axes, folded weights, and the cache of folds."""

from .compactor import Compactor, IndexSelect
from .fold_cache import FoldCache, FoldPolicy
from .folded_weight import FoldedWeight, folded_weights
from .install import (
    compactor_axes,
    first_indices,
    install,
    is_at_start,
    restart,
    shrinking_leaves,
    student_weights,
)
from .whole_tensors import is_parted, whole

__all__ = [
    "Compactor",
    "FoldCache",
    "FoldPolicy",
    "FoldedWeight",
    "IndexSelect",
    "compactor_axes",
    "first_indices",
    "folded_weights",
    "install",
    "is_at_start",
    "is_parted",
    "restart",
    "shrinking_leaves",
    "student_weights",
    "whole",
]
