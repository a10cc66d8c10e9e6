"""Which weights must be rescaled where student and teacher multiply by different numbers.

The rules of `ops` attach a `Carrier` to tensors, `trace` records it, `plan` makes factors of it (the attention scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Carrier:
    """Consecutive indices of a weight's axis: scaling the weight there scales the tensor that carries this object.

    Where the tensor was cut inside these indices, it is a `share` of what they scale: the other shares
    may be used elsewhere, so no factor is given to the weights until all shares are joined again.
    """

    parameter: str
    axis: int
    start: int
    stop: int
    share: Fraction = Fraction(1)

    def overlaps(self, other: Carrier) -> bool:
        """Return whether both are of the same weight's axis and have an index in common."""
        same_axis = (self.parameter, self.axis) == (other.parameter, other.axis)
        return same_axis and self.start < other.stop and other.start < self.stop
