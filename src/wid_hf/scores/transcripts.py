"""How far transcripts are from those that are right: edits per word, per character or per token.

Takes sequences, gives numbers. Called by objectives whose models write down what they hear.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np


def word_error_rate(found: Sequence[str], right: Sequence[str]) -> float:
    """Return edits of words per word of the `right` texts; above 1 where a model writes too much."""
    return error_rate([text.split() for text in found], [text.split() for text in right])


def as_said(text: str) -> str:
    """Return `text` in lower case without punctuation, which nobody says; apostrophes in words stay."""
    return " ".join(re.sub(r"[^\w']+|_", " ", text.lower()).split())


def error_rate(found: Sequence[Sequence[Hashable]], right: Sequence[Sequence[Hashable]]) -> float:
    """Return the edits that make all `found` sequences the `right` ones, per item of the right ones."""
    edits = sum(edit_distance(mine, wanted) for mine, wanted in zip(found, right, strict=True))
    return edits / max(sum(map(len, right)), 1)


def edit_distance(found: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return how many insertions, deletions and replacements make `found` equal to `right` (Levenshtein)."""
    numbers = {item: number for number, item in enumerate({*found, *right})}
    wanted = np.array([numbers[item] for item in right], np.int64)
    columns = np.arange(len(right) + 1)
    row = columns
    for count, item in enumerate(found, start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (wanted != numbers[item]))
        row = np.concatenate([[count], changed])
        row = np.minimum.accumulate(row - columns) + columns  # insertions, from left to right
    return int(row[-1])
