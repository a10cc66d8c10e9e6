"""What a teacher does with real inputs, and which of its indices matter: statistics for the start."""

from .variance import variance_indices

__all__ = ["variance_indices"]
