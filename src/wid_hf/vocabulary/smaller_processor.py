"""A processor with fewer tokens: its tokenizer has them alone, what reads sounds or images stays as it is.

Takes a tokenizer, or a processor that has one, and the numbers of the tokens to keep; gives another of the same class.
"""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import TeacherError
from .smaller_tokenizer import smaller_tokenizer


def tokenizer_of(processor: Any) -> PreTrainedTokenizerBase | None:
    """Return a tokenizer itself, or that of a processor; None if there is none."""
    found = getattr(processor, "tokenizer", processor)
    return found if isinstance(found, PreTrainedTokenizerBase) else None


def smaller_processor(processor: Any, kept: Sequence[int]) -> Any:
    """Return a processor whose tokenizer has only the tokens `kept`, without changing the one given.

    Args:
        processor: a fast tokenizer, or a processor with one, such as Whisper's.
        kept: see `smaller_tokenizer`.

    Returns:
        a processor of the same class, as saving and loading gives it: some look up numbers of tokens when they are
        made.

    Raises:
        ConfigError: see `smaller_tokenizer`.
        TeacherError: there is no fast tokenizer, or one that does not load as it was saved.
    """
    tokenizer = tokenizer_of(processor)
    if tokenizer is None:
        raise TeacherError(f"{type(processor).__name__} has no tokenizer from which tokens could go. Keep all tokens.")
    smaller = smaller_tokenizer(tokenizer, kept)
    if not isinstance(processor, ProcessorMixin):
        return smaller
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        smaller.save_pretrained(folder)
        loaded = type(processor).from_pretrained(folder)
    loaded.tokenizer = smaller  # with what it has beside its files
    return loaded
