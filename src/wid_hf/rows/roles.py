"""What a task needs of a row, and in which columns it stands.

Takes rows and roles; gives the column of each role: the user's choice, else the first of its usual names that there is.
Called by `compress` and `load_texts`; objectives name their roles.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal

from datasets import Audio, ClassLabel, Dataset, Features, Image, IterableDataset, LargeList, List, Value

from ..errors import DataError, WidWarning
from .headers import names_look_like_a_row

Kind = Literal["text", "texts", "words", "label", "labels", "several", "image", "audio", "answers"]
HOLDING: dict[Kind, str] = {
    "text": "strings",
    "texts": "lists of strings",
    "words": "lists of strings, or strings",
    "label": "strings or numbers",
    "labels": "lists of strings or numbers",
    "several": "strings or numbers, or lists of these",
    "image": "images, or paths of their files",
    "audio": "sounds, or paths of their files",
    "answers": "answers: the lists `text`, of strings, and `answer_start`, of whole numbers",
}
PEEKED = 100  # rows of a stream that show what its columns hold


@dataclass(frozen=True)
class Role:
    """Something that a task needs of each row.

    Attributes:
        name: in `--column name=COLUMN`, and of the column that `prepare` makes.
        columns: names by which it is found, the first that there is.
        holds: what kind of values its column must have.
        required: whether the task cannot do without.
        beside: for each of `columns`, the column of the role before this one that must be there as well, for columns
            that belong together; empty if `columns` stand for themselves.
    """

    name: str
    columns: tuple[str, ...]
    holds: Kind
    required: bool = True
    beside: tuple[str, ...] = ()


PAIRS = (
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_A", "sentence_B"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "text"),
    ("query", "answer"),
    ("question", "passage"),
    ("question", "answer"),
    ("text1", "text2"),
    ("anchor", "positive"),
)
TEXT = Role(
    "text",
    ("text", "sentence", "content", "document", "article", "passage", "body", "review", "comment", "tweet", "dialogue"),
    "text",
)
TEXT_PAIR = Role(
    "text_pair",
    tuple(second for _, second in PAIRS),
    "text",
    required=False,
    beside=tuple(first for first, _ in PAIRS),
)
# No "class" or "rating": a column that only sounds like labels would train a student on what its teacher never meant.
LABEL = Role("label", ("label", "labels", "score"), "label", required=False)
LABELS = Role("label", ("labels", "label"), "several", required=False)
WORDS = Role("text", ("tokens", "words", *TEXT.columns), "words")
TAGS = Role("tags", ("tags", "ner_tags", "labels", "pos_tags", "upos"), "labels", required=False)
QUESTION = Role("question", ("question", "query"), "text")
CONTEXT = Role("context", ("context", "passage", "paragraph"), "text")
ANSWERS = Role("answers", ("answers", "answer"), "answers", required=False)
TARGET = Role(
    "target", ("target", "summary", "highlights", "translation", "output", "response", "completion"), "text", False
)
PROMPT = Role("question", ("question", "ctx", "context", "prompt", "stem", "premise", "startphrase"), "text")
CHOICES = Role("choices", ("choices", "endings", "options"), "texts")
IMAGE = Role("image", ("image", "img", "picture"), "image")
AUDIO = Role("audio", ("audio", "sound", "speech"), "audio")
TRANSCRIPT = Role("target", ("transcription", "transcript", "text", "sentence", "normalized_text"), "text", False)


def named_columns(words: str | Iterable[str], role: str = TEXT.name) -> dict[str, str]:
    """Return role -> column of one or several words such as `label=class`; one without `=` is the column of `role`."""
    pairs = (word.partition("=") for word in ([words] if isinstance(words, str) else words))
    return {(name if equals else role): (column if equals else name) for name, equals, column in pairs}


def find_columns(
    rows: Dataset | IterableDataset, roles: Sequence[Role], given: Mapping[str, str], source: str
) -> dict[str, str]:
    """Return the column of each role that `rows` have; roles that they may lack are left out.

    A role that `given` names is in the column that the user chose, any other in the first column of its usual names
    that holds the right kind of values and is not taken. The first required role of text may also be the only column
    of strings that is left.

    Args:
        rows: as `load_rows` returns them; of a stream, the first are read.
        roles: what the task needs, the most important first.
        given: role -> column; an empty column leaves out a role that is not required.
        source: where the rows come from, for errors.

    Raises:
        DataError: the names of columns look like a row, a role is unknown, a column of `given` is not there or holds
            something else, a required role is nowhere, or no column with a usual name of another role holds what it
            must. The message lists the columns that there are.
    """
    table = _Table(features_of(rows), source)
    found = _given(roles, given, table)
    free = [role for role in roles if role.name not in given]
    for first, second in pairwise(roles):
        if second.beside and first in free and second in free:
            found |= table.pair(first, second)
    found |= _usual(free, found, table)
    only = _only_text(free, found, table)
    if not found:
        _refuse_row_as_names(rows, table, only)
    found |= only
    for role in free:
        if role.name not in found:
            table.refuse_lack(role, found.values())
    return {role.name: found[role.name] for role in roles if role.name in found}


@dataclass(frozen=True)
class _Table:
    """The columns of a source."""

    features: Mapping[str, Any]
    source: str

    def holds(self, column: str, role: Role) -> bool:
        """Return whether there is such a column, of the kind of values that the role has."""
        return column in self.features and _KINDS[role.holds](self.features[column])

    def check(self, column: str, role: Role) -> None:
        """Raise DataError if there is no such column, or it holds something else."""
        if column not in self.features:
            raise DataError(f"{self.source} has no column {column!r} for {role.name}. {self.advice(role)}")
        if not self.holds(column, role):
            raise DataError(
                f"The column {column!r} of {self.source} holds {_described(self.features[column])}, and {role.name} "
                f"must be {HOLDING[role.holds]}. {self.advice(role)}"
            )

    def refuse_lack(self, role: Role, taken: Collection[str]) -> None:
        """Raise DataError if a role without a column is required, or has one by its name that holds something else.

        To train without it would hide that; a column without any value is only told of.
        """
        if role.required:
            names = ", ".join(dict.fromkeys(role.columns))
            raise DataError(f"{self.source} has no column for {role.name}, such as {names}. {self.advice(role)}")
        if not role.beside:
            self._refuse_other_kinds(role, taken)

    def _refuse_other_kinds(self, role: Role, taken: Collection[str]) -> None:
        named = [name for name in role.columns if name in self.features and name not in taken]
        if not named:
            return
        kinds = "; ".join(f"{name!r} holds {_described(self.features[name])}" for name in named)
        if all(_is_null(self.features[name]) for name in named):
            warnings.warn(f"{self.source} has no {role.name}: {kinds}.", WidWarning, stacklevel=4)
            return
        raise DataError(
            f"The column {kinds} in {self.source}, and {role.name} must be {HOLDING[role.holds]}. "
            f"{self.advice(role)} To use none, say column='{role.name}='."
        )

    def pair(self, first: Role, second: Role) -> dict[str, str]:
        """Return the first columns of both roles that belong together; nothing if there are none."""
        for one, other in zip(second.beside, second.columns, strict=True):
            if self.holds(one, first) and self.holds(other, second):
                return {first.name: one, second.name: other}
        return {}

    def advice(self, role: Role) -> str:
        """Return the columns that there are, and how to name one."""
        listed = ", ".join(f"{name} ({_described(self.features[name])})" for name in sorted(self.features)) or "none"
        return f"Its columns: {listed}. Name one that holds {HOLDING[role.holds]} by column='{role.name}=NAME'."


def _given(roles: Sequence[Role], given: Mapping[str, str], table: _Table) -> dict[str, str]:
    """Return the columns that the user chose, without roles to leave out."""
    known = {role.name: role for role in roles}
    for name, column in given.items():
        if name not in known:
            raise DataError(f"column='{name}={column}' names no role of this task. Its roles: {', '.join(known)}.")
        if column or known[name].required:
            table.check(column, known[name])
    chosen = {name: column for name, column in given.items() if column}
    for column, times in Counter(chosen.values()).items():
        if times > 1:
            named = " and for ".join(name for name, other in chosen.items() if other == column)
            raise DataError(f"The column {column!r} is named for {named}. Name one column for each.")
    return chosen


def _usual(roles: Sequence[Role], taken: Mapping[str, str], table: _Table) -> dict[str, str]:
    """Return the columns of roles that have one of their usual names and stand for themselves."""
    found = dict(taken)
    for role in roles:
        if role.name not in found and not role.beside:
            usual = (name for name in role.columns if table.holds(name, role) and name not in found.values())
            found |= dict(zip([role.name], usual, strict=False))
    return found


def _only_text(roles: Sequence[Role], taken: Mapping[str, str], table: _Table) -> dict[str, str]:
    """Return the only column of strings that is left for the first required role of text that has none."""
    left = [name for name, feature in table.features.items() if _is_text(feature) and name not in taken.values()]
    main = next((role for role in roles if role.required and role.holds in ("text", "words")), None)
    return {main.name: left[0]} if main is not None and main.name not in taken and len(left) == 1 else {}


def _refuse_row_as_names(rows: Dataset | IterableDataset, table: _Table, only: Mapping[str, str]) -> None:
    """Raise DataError if a column that no usual name tells may be called after the first row of a file."""
    for role, column in only.items():
        if names_look_like_a_row(rows, table.features, column):
            raise DataError(
                f"The first line of {table.source} was taken for the names of its columns, and looks like a row: "
                f"{', '.join(map(repr, table.features))}. If it is one, put a line of names before it, such as {role} "
                f"or {role},{LABEL.name}. If these are names, say so by column='{role}={column}'."
            )


def features_of(rows: Dataset | IterableDataset) -> Features:
    """Return what each column holds; streams may not know it before they are read."""
    if rows.features is not None:
        return rows.features
    return Dataset.from_list(list(islice(rows, PEEKED))).features


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and "string" in feature.dtype


def _is_label(feature: Any) -> bool:
    number = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float", "bool"))
    return number or _is_text(feature) or isinstance(feature, ClassLabel)


def _is_null(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype == "null"


def _is_list_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda feature: isinstance(feature, List | LargeList) and one(feature.feature)


def _is_answers(feature: Any) -> bool:
    """Return whether there are both lists, which have no type where all are empty."""
    if not isinstance(feature, Mapping) or not {"text", "answer_start"} <= feature.keys():
        return False
    texts = _is_list_of(lambda each: _is_text(each) or _is_null(each))(feature["text"])
    return texts and _is_list_of(lambda each: _is_whole(each) or _is_null(each))(feature["answer_start"])


def _is_whole(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))


_KINDS: dict[Kind, Callable[[Any], bool]] = {
    "text": _is_text,
    "texts": _is_list_of(_is_text),
    "words": lambda feature: _is_text(feature) or _is_list_of(_is_text)(feature),
    "label": _is_label,
    "labels": _is_list_of(_is_label),
    "several": lambda feature: _is_label(feature) or _is_list_of(_is_label)(feature),
    "image": lambda feature: isinstance(feature, Image) or _is_text(feature),
    "audio": lambda feature: isinstance(feature, Audio) or _is_text(feature),
    "answers": _is_answers,
}


def _described(feature: Any) -> str:
    """Return what a column holds, in few words."""
    if isinstance(feature, List | LargeList):
        return f"list of {_described(feature.feature)}"
    if isinstance(feature, ClassLabel):
        return f"one of {feature.num_classes} classes"
    if isinstance(feature, Mapping):
        return f"struct of {', '.join(f'{name}: {_described(part)}' for name, part in feature.items())}"
    if _is_null(feature):
        return "no value"
    return str(feature.dtype) if isinstance(feature, Value) else type(feature).__name__.lower()
