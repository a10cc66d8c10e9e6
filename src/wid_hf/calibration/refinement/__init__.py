"""Refinement of a calibrated student: every layer by itself learns to return what the teacher's layer returns."""

from .layer_by_layer import Refinement, refine

__all__ = ["Refinement", "refine"]
