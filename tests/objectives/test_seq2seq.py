"""Encoder-decoders: targets that rows have or lack, and figures on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from encoder_decoders import bart, m2m, t5
from task_rows import sources
from toys import word_tokenizer

from wid_hf.inputs import TextInputs
from wid_hf.objectives.seq2seq import Seq2Seq


def objective(made: Any = bart, seed: int = 0) -> Seq2Seq:
    return Seq2Seq(made(seed), TextInputs(word_tokenizer()))


def test_targets_of_rows_are_labels_and_cut() -> None:
    rows = Dataset.from_dict({"text": ["one two", "three"], "target": ["four five six", "seven"]})
    made = objective()
    features = made.features(rows, 4)
    assert features["labels"][:] == [[2, 8, 9, 3], [2, 11, 3]]
    (batch,) = made.scored(features, 2, 0)
    assert batch["labels"].tolist() == [[2, 8, 9, 3], [2, 11, 3, -100]]
    assert batch["decoder_input_ids"].tolist() == [[3, 2, 8, 9], [3, 2, 11, 3]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_the_token_that_decoding_starts_with_does_not_stand_in_a_target_as_well() -> None:
    made = objective()
    made.teacher.config.decoder_start_token_id = 2  # the first token that the tokenizer gives a text
    features = made.features(Dataset.from_dict({"text": ["one"], "target": ["seven"]}), 4)
    assert features["labels"][:] == [[11, 3]]


def test_what_the_teacher_writes_is_no_label_but_is_compared_and_scored() -> None:
    made = objective()
    features = made.features(Dataset.from_dict(sources(6, False)), 8)
    assert "labels" not in features.column_names
    full = features["decoder_input_ids"][:]
    (batch,) = made.scored(features, 6, 0)
    for row, target in enumerate(full):
        count = len(target) - 1
        assert batch["decoder_input_ids"][row, :count].tolist() == target[:-1]
        assert batch["labels"][row].tolist() == [*target[1:], *[-100] * (batch["labels"].shape[1] - count)]
        assert int(batch["decoder_attention_mask"][row].sum()) == count
    assert made.score(made.teacher, [batch], made.wanted([batch]))["agreement"] == 1
    # Each token is the teacher's most probable one.
    assert torch.equal(made.wanted([batch]), batch["labels"][batch["labels"] != -100])


@pytest.mark.parametrize("model", [t5, bart, m2m])
def test_figures_are_over_all_tokens_of_targets(model: Any) -> None:
    made, other = objective(model), model(1)
    batches = made.scored(made.features(Dataset.from_dict(sources(10)), 12), 4, 0)
    wanted = made.wanted(batches)
    found = made.score(other, batches, wanted)
    losses, same = [], []
    with torch.no_grad():
        for batch in batches:
            given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            counted = batch["labels"] != -100
            mine, theirs = (each(**given).logits[counted] for each in (other, made.teacher))
            losses.append(torch.nn.functional.cross_entropy(mine, batch["labels"][counted], reduction="none"))
            same.append(mine.argmax(-1) == theirs.argmax(-1))
    loss = float(torch.cat(losses).mean())
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)
    assert found["agreement"] == pytest.approx(float(torch.cat(same).float().mean()))
    assert found["agreement"] < made.score(made.teacher, batches, wanted)["agreement"] == 1
