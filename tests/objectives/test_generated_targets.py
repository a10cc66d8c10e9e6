"""What a teacher writes itself: its own greedy tokens, to the end of each text, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from encoder_decoders import bart, t5
from task_rows import sources
from toys import word_tokenizer

from wid_hf.inputs import TextInputs
from wid_hf.objectives.generated_targets import with_generated_targets, written


def features(count: int = 5) -> Dataset:
    return TextInputs(word_tokenizer()).features(Dataset.from_dict(sources(count, False)), 12)


def greedy(model: Any, ids: list[int], start: int, most: int) -> list[int]:
    """Token by token, without a cache."""
    made = [start]
    while len(made) <= most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([made])).logits
        made.append(int(logits[0, -1].argmax()))
        if made[-1] == model.generation_config.eos_token_id:
            break
    return made


@pytest.mark.parametrize(("made", "start"), [(t5, 0), (bart, 3)])  # decoding of BART starts with its last token
@pytest.mark.parametrize("seed", [0, 3])
def test_targets_are_the_most_probable_tokens_one_after_the_other(made: Any, start: int, seed: int) -> None:
    model, rows = made(seed), features()
    model.generation_config.num_beams, model.generation_config.do_sample = 3, True  # as some have it
    found = with_generated_targets(rows, model, TextInputs(word_tokenizer()).collator, 6)
    for row, target in zip(rows, found["decoder_input_ids"], strict=True):
        assert target == greedy(model, row["input_ids"], start, 6)
    assert found["input_ids"][:] == rows["input_ids"][:]


def test_padding_of_a_batch_is_left_out() -> None:
    model = bart(0)
    collator = TextInputs(word_tokenizer()).collator
    rows = [dict(row) for row in features(8).remove_columns("special_tokens_mask")]
    lengths = {len(target) for target in written(model, collator(rows), 12)}
    alone = [written(model, collator([row]), 12)[0] for row in rows]
    assert written(model, collator(rows), 12) == alone
    assert len(lengths) > 1 or lengths == {13}


def test_a_stream_gets_them_when_it_is_read() -> None:
    model, collator = t5(0), TextInputs(word_tokenizer()).collator
    stream = features().to_iterable_dataset()
    made = with_generated_targets(stream, model, collator, 6)
    assert isinstance(made, IterableDataset)
    known = with_generated_targets(features(), model, collator, 6)["decoder_input_ids"][:]
    assert [row["decoder_input_ids"] for row in made] == known


def test_the_same_teacher_does_not_write_the_same_targets_twice(tmp_path: Path, monkeypatch: Any) -> None:
    features().save_to_disk(tmp_path / "rows")
    collator = TextInputs(word_tokenizer()).collator
    wrote = []

    def counted(teacher: Any, batch: Any, max_length: int) -> list[list[int]]:
        wrote.append(teacher)
        return written(teacher, batch, max_length)

    monkeypatch.setattr("wid_hf.objectives.generated_targets.written", counted)
    teachers = [t5(seed) for seed in (0, 0, 1)]
    for teacher in teachers:
        with_generated_targets(Dataset.load_from_disk(tmp_path / "rows"), teacher, collator, 6)
    assert wrote == [teachers[0], teachers[2]]
