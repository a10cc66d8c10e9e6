"""What a teacher does with real inputs, and the start of a student that follows from it in closed form."""

from .initialize import calibrated_start
from .report import Calibration, Site
from .variance import variance_indices

__all__ = ["Calibration", "Site", "calibrated_start", "variance_indices"]
