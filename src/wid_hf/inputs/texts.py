"""Texts, or pairs of texts, by a tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..errors import DataError
from ..rows.roles import TEXT, TEXT_PAIR
from .inputs import Columns, Inputs, More, present


class TextInputs(Inputs):
    """Tokens of a text, of a text and its second one, or of a list of words; `max_length` counts tokens.

    Args:
        processor: a working tokenizer: it has a padding token. It is not changed: a length would be saved in its file.
    """

    argument = "input_ids"
    unit = "texts"
    numbers = "tokens"
    roles = (TEXT, TEXT_PAIR)
    processor: PreTrainedTokenizerBase

    def __init__(self, processor: PreTrainedTokenizerBase) -> None:
        super().__init__(processor)
        self._tokenizer = copy.deepcopy(processor)

    def features(self, rows: Dataset, max_length: int, more: More | None = None) -> Dataset:
        """Return tokens, cut after `max_length`.

        Raises:
            DataError: all tokens are special or unknown.
        """
        made = super().features(rows, max_length, more)
        if isinstance(made, Dataset):
            check_content(made, self._tokenizer, max_length)
        return made

    def encode(self, columns: Columns, max_length: int) -> BatchEncoding:
        """Return what the tokenizer makes; token types only of pairs, for a single text has one type."""
        texts = present(columns, self.roles)
        return self._tokenizer(
            *texts,
            is_split_into_words=isinstance(texts[0][0], list),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_special_tokens_mask=True,
            return_token_type_ids=len(texts) > 1 and "token_type_ids" in self._tokenizer.model_input_names,
        )

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads."""
        return DataCollatorWithPadding(self.processor)


def tokenize(texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Return the features of rows with the column "text": input_ids, attention_mask and special_tokens_mask.

    Raises:
        DataError: all tokens are special or unknown.
    """
    return TextInputs(tokenizer).features(texts, max_length)


def check_content(tokens: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise DataError if no token in all rows of `tokens`, cut at `max_length`, is other than special or unknown."""
    empty = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    if all(empty.issuperset(ids) for ids in tokens["input_ids"]):
        raise DataError(
            f"The {len(tokens)} texts contain only special or unknown tokens after tokenization, cut at "
            f"max_length={max_length}. Use texts in the tokenizer's language, or a larger max_length."
        )
