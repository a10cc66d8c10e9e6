"""Fewer tokens: a teacher without the rows of the others, on its own tensors."""

from .smaller_model import named_tokens, vocabulary_size, with_fewer_tokens

__all__ = ["named_tokens", "vocabulary_size", "with_fewer_tokens"]
