"""A teacher with the tokens that the rows to train on need, or with so many of them.

Takes a teacher and rows; gives the tokens that stay, a processor of these, and what that does to the rows. Called by
`compression`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import CORPUS, Vocabulary, WidConfig
from ..errors import ConfigError, DataError
from ..objectives import Objective
from ..planning.fewer_tokens import named_tokens, vocabulary_size
from ..rows import Prepared, Role
from ..vocabulary import ChangedTexts, changed_texts, kept_tokens, smaller_processor, tokenizer_of
from .recipe import CompressSettings
from .teachers import Teacher
from .training_data import Source, load_prepared

COUNTED = 2000  # texts of which the report tells how they changed


@dataclass(frozen=True)
class SmallerVocabulary:
    """What became of a teacher's tokens.

    Attributes:
        kept: numbers of those that stay, ascending.
        processor: the teacher's with these alone: a tokenizer, or a processor that has one.
        before: how many there were, without rows of the table that stood for none.
        texts: how the first texts of the rows are divided into tokens before and after.
        all_stay: whether no row of the teacher's tables goes.
    """

    kept: list[int]
    processor: Any
    before: int
    texts: ChangedTexts
    all_stay: bool = False

    def settled(self, config: WidConfig) -> WidConfig:
        """Return a request with the numbers of the tokens, or without a vocabulary if all of them stay.

        Raises:
            ConfigError: nothing else is to become smaller.
        """
        if not self.all_stay:
            return replace(config, vocabulary=self.kept)
        if [*config.requested] == ["vocabulary"]:
            raise ConfigError(
                f"vocabulary={config.vocabulary!r}: no token can go, for all {self.before:,} are used or must stay, "
                "and nothing else is to become smaller. Give a number of tokens that is smaller, or a size."
            )
        return replace(config, vocabulary=None)

    def __str__(self) -> str:
        """Return it in one sentence."""
        if self.all_stay:
            return f"Vocabulary: all {self.before:,} tokens stay, for they are used or must stay."
        return f"Vocabulary: {self.before:,} -> {len(self.kept):,} tokens; {self.texts}."


def smaller_vocabulary(
    teacher: Teacher, objective: Objective, wanted: Vocabulary, train: Source, settings: CompressSettings
) -> SmallerVocabulary:
    """Return which of a teacher's tokens stay, and what that means for the rows to train on.

    Args:
        teacher: reads or writes texts with a fast tokenizer.
        objective: which columns of a row hold texts.
        wanted: "corpus", a number of tokens, or numbers of tokens.
        train: the rows to train on.
        settings: columns and split.

    Raises:
        ConfigError: the teacher has no tokenizer, or the tokens are too few.
        DataError: the rows cannot be used, or lack texts that the teacher would write.
    """
    tokenizer = tokenizer_of(teacher.processor)
    if tokenizer is None:
        raise ConfigError(
            f"vocabulary={wanted!r} is for teachers that have a tokenizer; {teacher.name} has a "
            f"{type(teacher.processor).__name__}. Leave it out."
        )
    prepared = load_prepared(
        train, settings.split, objective, column=settings.column, streaming=settings.streaming, labels=False
    )
    texts = _Texts(prepared, objective)
    kept = _kept(tokenizer, teacher, wanted, texts)
    last = max(tokenizer.get_vocab().values())
    named = [number for number in kept if number <= last]
    smaller = smaller_processor(teacher.processor, named)
    after = tokenizer_of(smaller)
    assert after is not None
    all_stay = len(kept) == vocabulary_size(teacher.model)
    found = changed_texts(tokenizer, after, kept, [*islice(texts, COUNTED)])
    return SmallerVocabulary(kept, smaller, len(tokenizer) + len(kept) - len(named), found, all_stay)


@contextmanager
def no_warning_of_other_tables() -> Iterator[None]:
    """Silence PEFT, which takes a table of fewer tokens than the teacher's folder has for one that must be saved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`")
        yield


def _kept(tokenizer: PreTrainedTokenizerBase, teacher: Teacher, wanted: Vocabulary, texts: Iterable[str]) -> list[int]:
    """Return the numbers of the tokens that stay, with those that the teacher's configs name.

    Tables may have more rows than the tokenizer has tokens, behind these: such a row stays if the configs name it.
    """
    if isinstance(wanted, list):
        return wanted
    numbers = sorted(named_tokens(teacher.model))
    names = dict(zip(numbers, tokenizer.convert_ids_to_tokens(numbers), strict=True))
    named = [name for name in names.values() if name is not None]
    rows = [number for number in numbers if number > max(tokenizer.get_vocab().values())]
    if wanted == CORPUS:
        return [*kept_tokens(tokenizer, texts=texts, tokens=named), *rows]
    if isinstance(wanted, int):
        try:
            return [*kept_tokens(tokenizer, texts=texts, tokens=named, size=wanted - len(rows)), *rows]
        except ConfigError as refusal:
            raise ConfigError(f"vocabulary={wanted}: {refusal}") from refusal
    raise ConfigError(f"vocabulary={wanted!r} is neither {CORPUS!r} nor a number of tokens.")


class _Texts:
    """Every text in some rows, read anew each time: what a model reads, and what it is to write."""

    def __init__(self, prepared: Prepared, objective: Objective) -> None:
        target = objective.target
        roles = {role.name: role for role in (*objective.roles, *([target] if target is not None else []))}
        self._names = [name for name, role in roles.items() if _holds_texts(role) and name in prepared.columns]
        if target is not None and _holds_texts(target) and target.name not in self._names:
            raise DataError(
                f"The rows have no column for {target.name}: {objective.one} writes texts, and nothing says which of "
                f"its tokens these need. Give rows with such a column (column='{target.name}=NAME'), or leave the "
                "vocabulary out."
            )
        self._rows = prepared.rows.select_columns(self._names)

    def __iter__(self) -> Iterator[str]:
        for row in self._rows:
            for value in row.values():
                if value is not None:
                    yield from [value] if isinstance(value, str) else [" ".join(value)]


def _holds_texts(role: Role) -> bool:
    return role.holds in ("text", "texts", "words")
