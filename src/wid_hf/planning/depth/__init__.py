"""Fewer layers: which config entries count layers, and shallower teachers on the same tensors."""

from .deepened import can_be_deepened, deepened
from .shallow_teacher import fits, shallow_teacher, spread_layers
from .stacks import Stack, requested_stacks, source

__all__ = [
    "Stack",
    "can_be_deepened",
    "deepened",
    "fits",
    "requested_stacks",
    "shallow_teacher",
    "source",
    "spread_layers",
]
