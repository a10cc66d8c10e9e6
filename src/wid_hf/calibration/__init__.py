"""The calibrated start: moments of the teacher's activations, and the student's weights that follow in closed form."""

from .initialize import Start, initialize
from .refinement import refine
from .report import Calibration, InputReconstruction, RefinedPart
from .variance import variance_indices

__all__ = [
    "Calibration",
    "InputReconstruction",
    "RefinedPart",
    "Start",
    "initialize",
    "refine",
    "variance_indices",
]
