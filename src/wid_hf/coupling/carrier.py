"""Which weights must be rescaled where the student's own code multiplies by another number than the teacher's.

A value that the rules of `ops` attach to tensors, `trace` records and `plan` turns into factors (the attention scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Carrier:
    """A stretch of indices of one weight's axis such that scaling it scales the tensor that carries it.

    Where the tensor was cut inside the stretch, it is a `share` of what the stretch scales: the other shares
    may be used elsewhere, so no factor is given to the weights until all shares are joined again.
    """

    parameter: str
    axis: int
    start: int
    stop: int
    share: Fraction = Fraction(1)

    def overlaps(self, other: Carrier) -> bool:
        """Return whether some index of the same weight's axis is in both stretches."""
        same_axis = (self.parameter, self.axis) == (other.parameter, other.axis)
        return same_axis and self.start < other.stop and other.start < self.stop
