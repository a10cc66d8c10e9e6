"""Texts to tokens, and tokens to batches.

Takes a `datasets.Dataset` with the column "text" and a tokenizer; gives rows of tokens, then batches. Called by
objectives, scores and commands; knows nothing about models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .errors import DataError


def tokenize(texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokens of each text, cut after `max_length` tokens and not padded.

    The columns are input_ids, attention_mask and special_tokens_mask, each a list of ints per row.
    The tokenizer is not changed: the length would otherwise be saved in its file.
    Raises DataError when no token in the whole dataset is other than special or unknown.
    """
    tokenizer = copy.deepcopy(tokenizer)

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(
            rows["text"],
            truncation=True,
            max_length=max_length,
            padding=False,
            return_special_tokens_mask=True,
            return_token_type_ids=False,
        )
        return dict(encoded)

    tokens = texts.map(encode, batched=True, remove_columns=texts.column_names, desc="Tokenizing")
    check_content(tokens, tokenizer, max_length)
    return tokens


def check_content(tokens: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise DataError if no token in all rows of `tokens`, cut at `max_length`, is other than special or unknown."""
    empty = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    if all(empty.issuperset(ids) for ids in tokens["input_ids"]):
        raise DataError(
            f"The {len(tokens)} texts contain only special or unknown tokens after tokenization, cut at "
            f"max_length={max_length}. Use texts in the tokenizer's language, or a larger max_length."
        )


def batches(
    dataset: Dataset, collator: Callable[[list[dict[str, Any]]], Any], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of up to `batch_size` rows, in order, none dropped, collated by `collator`."""
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[row] for row in range(start, min(start + batch_size, len(dataset)))]
        yield dict(collator(rows))
