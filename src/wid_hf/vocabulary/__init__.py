"""Fewer tokens: which of them to keep, the tokenizer without the others, and the model without their rows."""

from __future__ import annotations

from ..planning.fewer_tokens import with_fewer_tokens
from .changed_texts import ChangedTexts, changed_texts
from .kept_tokens import kept_tokens
from .smaller_processor import smaller_processor, tokenizer_of
from .smaller_tokenizer import smaller_tokenizer

__all__ = [
    "ChangedTexts",
    "changed_texts",
    "kept_tokens",
    "smaller_processor",
    "smaller_tokenizer",
    "tokenizer_of",
    "with_fewer_tokens",
]
