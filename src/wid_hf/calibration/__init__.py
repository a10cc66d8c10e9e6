"""What a teacher does with real inputs, and the start of a student that follows from it in closed form."""

from .record import Calibration, Site
from .start import calibrated_start
from .variance import variance_indices

__all__ = ["Calibration", "Site", "calibrated_start", "variance_indices"]
