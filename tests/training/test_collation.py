"""Masks that depend on the batch alone: whatever was drawn before, and in whichever process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from toys import word_tokenizer
from transformers import BatchEncoding, DataCollatorForLanguageModeling

from wid_hf.training.collation import SteadyCollator

ROWS = [{"input_ids": [2, *range(5, 15), 3], "attention_mask": [1] * 12} for _ in range(8)]
OTHERS = [{"input_ids": [2, *range(6, 15), 5, 3], "attention_mask": [1] * 12} for _ in range(8)]


def masks(collator: SteadyCollator, rows: list[Any] = ROWS) -> list[list[bool]]:
    return (collator(rows)["labels"] != -100).tolist()


def collator(seed: int = 42) -> SteadyCollator:
    return SteadyCollator(DataCollatorForLanguageModeling(word_tokenizer()), seed)


def test_a_batch_has_the_same_masks_whatever_was_drawn_before() -> None:
    first = masks(collator())
    torch.rand(100)
    later = collator()
    masks(later, OTHERS)
    assert masks(later) == first and any(map(any, first))


def test_other_batches_epochs_and_seeds_have_other_masks() -> None:
    first, next_epoch = collator(), collator()
    next_epoch.epoch = 1
    found = [
        masks(first),
        masks(first, OTHERS),
        masks(first, ROWS[::-1][:7]),
        masks(next_epoch),
        masks(collator(seed=7)),
    ]
    assert all(one != other for at, one in enumerate(found) for other in found[:at])


def test_the_random_states_of_the_process_stay() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def draws(rows: list[Any]) -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand())]

    steady = SteadyCollator(draws, 0)
    assert steady([1]) == steady([1]) != steady([2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(
    "wrap", [torch.tensor, np.array, lambda row: BatchEncoding({"x": row})], ids=["tensor", "array", "encoding"]
)
def test_rows_of_tensors_arrays_and_encodings_are_told_apart(wrap: Any) -> None:
    steady = SteadyCollator(lambda rows: float(torch.rand(())), 0)
    assert steady([wrap([1, 2])]) == steady([wrap([1, 2])]) != steady([wrap([1, 3])])


def test_rows_that_cannot_be_told_apart_are_collated_as_without_it() -> None:
    steady = SteadyCollator(lambda rows: float(torch.rand(())), 0)
    torch.manual_seed(3)
    expected = float(torch.rand(()))
    torch.manual_seed(3)
    assert steady([object()]) == expected
    assert steady([object()]) != expected
