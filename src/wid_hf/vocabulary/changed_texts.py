"""How often texts are divided into other tokens after some tokens have gone.

Takes both tokenizers and texts; gives counts, for a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .pieces import tokens_of


@dataclass(frozen=True)
class ChangedTexts:
    """What fewer tokens did to texts.

    Attributes:
        texts: how many there are.
        changed: how many are divided into other tokens than before.
        tokens_before: tokens of all texts with the old tokenizer, with those around each text.
        tokens_after: the same with the new one.
    """

    texts: int
    changed: int
    tokens_before: int
    tokens_after: int

    def __str__(self) -> str:
        """Return the share of changed texts and the tokens per text, on one line."""
        return (
            f"{self.changed / self.texts:.1%} of {self.texts:,} texts are divided into other tokens: "
            f"{self.tokens_before / self.texts:.1f} per text before, {self.tokens_after / self.texts:.1f} now"
        )


def changed_texts(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, kept: Sequence[int], texts: Sequence[str]
) -> ChangedTexts:
    """Count the texts that `after` divides into other tokens than `before`.

    Args:
        before: the tokenizer with all tokens.
        after: the one with only those `kept`.
        kept: numbers of tokens in `before`; `after` calls token `kept[i]` `i`.
        texts: at least one.

    Raises:
        DataError: there are no texts.
    """
    if not texts:
        raise DataError("There are no texts to divide into tokens. Pass at least one.")
    changed = tokens_before = tokens_after = 0
    pairs = zip(tokens_of(before, texts, special=True), tokens_of(after, texts, special=True), strict=True)
    for old, new in pairs:
        changed += old != [kept[token] for token in new]
        tokens_before += len(old)
        tokens_after += len(new)
    return ChangedTexts(len(texts), changed, tokens_before, tokens_after)
