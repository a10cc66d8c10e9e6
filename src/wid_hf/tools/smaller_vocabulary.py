"""A teacher with the tokens that the rows to train on need, or with so many of them.

Takes a teacher and rows; gives the tokens that stay, a tokenizer of these, and what that does to the rows. Called by
`compression`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import CORPUS, Vocabulary
from ..errors import ConfigError
from ..objectives import Objective
from ..planning.fewer_tokens import named_tokens
from ..vocabulary import ChangedTexts, changed_texts, kept_tokens, smaller_tokenizer
from .recipe import CompressSettings
from .teachers import Teacher
from .training_data import Source, load_prepared

COUNTED = 2000  # texts of which the report tells how they changed


@dataclass(frozen=True)
class SmallerVocabulary:
    """What became of a teacher's tokens.

    Attributes:
        kept: numbers of those that stay, ascending.
        tokenizer: of these alone.
        before: how many there were.
        texts: how the first texts of the rows are divided into tokens before and after.
    """

    kept: list[int]
    tokenizer: PreTrainedTokenizerBase
    before: int
    texts: ChangedTexts

    def __str__(self) -> str:
        """Return it in one sentence."""
        return f"Vocabulary: {self.before:,} -> {len(self.kept):,} tokens; {self.texts}."


def smaller_vocabulary(
    teacher: Teacher, objective: Objective, wanted: Vocabulary, train: Source, settings: CompressSettings
) -> SmallerVocabulary:
    """Return which of a teacher's tokens stay, and what that means for the rows to train on.

    Args:
        teacher: reads texts with a fast tokenizer.
        objective: which columns of a row hold texts.
        wanted: "corpus", a number of tokens, or numbers of tokens.
        train: the rows to train on.
        settings: columns and split.

    Raises:
        ConfigError: the teacher reads something else than texts, or the tokens are too few.
        DataError: the rows cannot be used.
    """
    tokenizer = teacher.processor
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"vocabulary={wanted!r} is for teachers that read texts with a tokenizer; {teacher.name} has a "
            f"{type(tokenizer).__name__}. Leave it out."
        )
    rows = load_prepared(
        train, settings.split, objective, column=settings.column, streaming=settings.streaming, labels=False
    ).rows
    kept = _kept(tokenizer, teacher, wanted, _texts(rows, objective))
    smaller = smaller_tokenizer(tokenizer, kept)
    found = changed_texts(tokenizer, smaller, kept, [*islice(_texts(rows, objective), COUNTED)])
    return SmallerVocabulary(kept, smaller, len(tokenizer), found)


@contextmanager
def no_warning_of_other_tables() -> Iterator[None]:
    """Silence PEFT, which takes a table of fewer tokens than the teacher's folder has for one that must be saved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`")
        yield


def _kept(tokenizer: PreTrainedTokenizerBase, teacher: Teacher, wanted: Vocabulary, texts: Iterable[str]) -> list[int]:
    """Return the numbers of the tokens that stay, with those that the teacher's configs name."""
    if isinstance(wanted, list):
        return wanted
    names = tokenizer.convert_ids_to_tokens(sorted(named_tokens(teacher.model)))
    named = [name for name in names if name is not None]  # tables may have more rows than the tokenizer has tokens
    if wanted == CORPUS:
        return kept_tokens(tokenizer, texts=texts, tokens=named)
    if isinstance(wanted, int):
        try:
            return kept_tokens(tokenizer, texts=texts, tokens=named, size=wanted)
        except ConfigError as refusal:
            raise ConfigError(f"vocabulary={wanted}: {refusal}") from refusal
    raise ConfigError(f"vocabulary={wanted!r} is neither {CORPUS!r} nor a number of tokens.")


def _texts(rows: Iterable[Mapping[str, Any]], objective: Objective) -> Iterator[str]:
    """Yield every text in some rows."""
    names = [role.name for role in objective.roles if role.holds in ("text", "texts", "words")]
    for row in rows:
        for name in names:
            value = row.get(name)
            if value is not None:
                yield from [value] if isinstance(value, str) else [" ".join(value)]
