"""The calibrated start: moments of the teacher's activations, and the student's weights that follow in closed form."""

from .initialize import Start, initialize
from .report import Calibration, InputReconstruction
from .variance import variance_indices

__all__ = ["Calibration", "InputReconstruction", "Start", "initialize", "variance_indices"]
