"""Refinement of a calibrated student: every layer by itself learns to return what the teacher's layer returns."""

from .axis_maps import AxisMaps
from .layer_by_layer import Refinement, refine

__all__ = ["AxisMaps", "Refinement", "refine"]
