"""Fewer layers: which config entries count layers, and shallower teachers on the same tensors."""

from .shallow_teacher import fits, shallow_teacher, source, spread_layers
from .stacks import Stack, requested_stacks

__all__ = ["Stack", "fits", "requested_stacks", "shallow_teacher", "source", "spread_layers"]
