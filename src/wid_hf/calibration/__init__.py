"""The calibrated start: moments of the teacher's activations, and the student's weights that follow in closed form."""

from .initialize import initialize
from .report import Calibration, InputReconstruction
from .variance import variance_indices

__all__ = ["Calibration", "InputReconstruction", "initialize", "variance_indices"]
