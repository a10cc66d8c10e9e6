"""Prompts with choices become pairs, and these tensors with an axis of choices."""

from __future__ import annotations

import torch
from datasets import Dataset
from toys import word_tokenizer

from wid_hf.inputs.choices import ChoiceInputs

ROWS = Dataset.from_dict(
    {"question": ["one two", "ten"], "choices": [["three", "four five"], ["six", "seven eight nine ten ten ten"]]}
)


def test_each_choice_is_a_pair_with_its_prompt_and_cut() -> None:
    made = ChoiceInputs(word_tokenizer()).features(ROWS, 8)
    assert made["input_ids"][:] == [
        [[2, 5, 6, 3, 7, 3], [2, 5, 6, 3, 8, 9, 3]],
        [[2, 14, 3, 10, 3], [2, 14, 3, 11, 12, 13, 14, 3]],
    ]
    assert made["attention_mask"][0] == [[1] * 6, [1] * 7]


def test_batches_have_an_axis_of_choices_and_labels_only_if_there_are_some() -> None:
    inputs = ChoiceInputs(word_tokenizer())
    made = inputs.features(ROWS, 8, lambda columns, _: {"labels": [1, 0]})
    batch = inputs.collator([dict(row) for row in made])
    assert batch["input_ids"].shape == (2, 2, 8)
    assert torch.equal(batch["input_ids"][0, 0], torch.tensor([2, 5, 6, 3, 7, 3, 0, 0]))
    assert torch.equal(batch["attention_mask"].sum(-1), torch.tensor([[6, 7], [5, 8]]))
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))
    unlabelled = inputs.collator([dict(row) for row in made.remove_columns("labels")])
    assert unlabelled.keys() == batch.keys() - {"labels"}
    assert torch.equal(unlabelled["input_ids"], batch["input_ids"])
