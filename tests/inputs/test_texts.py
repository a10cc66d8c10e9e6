"""Texts become tokens that are cut but not padded, and tokens become batches in order."""

from __future__ import annotations

import pytest
import torch
import toys
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from wid_hf.errors import DataError
from wid_hf.inputs import batches, tokenize

TEXTS = ["one two", "three", "four five six"]


@pytest.fixture(name="word_tokenizer")
def fixture_word_tokenizer() -> PreTrainedTokenizerFast:
    return toys.word_tokenizer()  # ids 5 to 10 for the six words of TEXTS


def test_tokens_are_cut_but_not_padded(word_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(Dataset.from_dict({"text": TEXTS}), word_tokenizer, max_length=4)
    assert tokens.column_names == ["input_ids", "attention_mask", "special_tokens_mask"]
    assert tokens["input_ids"][:] == [[2, 5, 6, 3], [2, 7, 3], [2, 8, 9, 3]]
    assert tokens["attention_mask"][:] == [[1, 1, 1, 1], [1, 1, 1], [1, 1, 1, 1]]
    assert tokens["special_tokens_mask"][:] == [[1, 0, 0, 1], [1, 0, 1], [1, 0, 0, 1]]


@pytest.mark.parametrize(("texts", "max_length"), [(["acht neun", "zehn"], 8), (TEXTS, 2)])
def test_texts_of_which_only_special_and_unknown_tokens_remain_are_refused(
    word_tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int
) -> None:
    with pytest.raises(DataError, match=rf"only special or unknown tokens.*max_length={max_length}\."):
        tokenize(Dataset.from_dict({"text": texts}), word_tokenizer, max_length)


def test_one_known_word_among_unknown_ones_is_enough(word_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(Dataset.from_dict({"text": ["acht", "acht one"]}), word_tokenizer, max_length=8)
    assert tokens["input_ids"][:] == [[2, 1, 3], [2, 1, 5, 3]]


def test_batches_come_in_order_with_a_smaller_last_one(word_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(Dataset.from_dict({"text": TEXTS}), word_tokenizer, max_length=8)
    first, last = batches(tokens, DataCollatorWithPadding(word_tokenizer), batch_size=2)
    assert torch.equal(first["input_ids"], torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]))
    assert torch.equal(first["attention_mask"], torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    assert torch.equal(last["input_ids"], torch.tensor([[2, 8, 9, 10, 3]]))
