"""Training in half precision, compiled, and with length-grouped batches ends where plain training does."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toys import word_tokenizer
from training_runs import HALF, arguments, logits, masked_rows
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling

from wid_hf import WidTrainer, get_wid_model


def trained(teacher: BertForMaskedLM, folder: Path, **given: object) -> WidTrainer:
    trainer = WidTrainer(
        model=get_wid_model(teacher, HALF), args=arguments(folder, **given), train_dataset=masked_rows()
    )
    trainer.train()
    return trainer


# What dynamo does itself; and a choice of the backend, none of ours.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_compiled_training_equals_eager_training(tiny_bert: BertForMaskedLM, tmp_path: Path, accumulation: int) -> None:
    common = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    teachers = [deepcopy(tiny_bert) for _ in range(2)]
    eager = trained(teachers[0], tmp_path / "eager", **common)
    compiled = trained(
        teachers[1], tmp_path / "compiled", **common, torch_compile=True, torch_compile_backend="aot_eager"
    )
    one, other = (trainer.model.merge_and_unload() for trainer in (eager, compiled))
    assert (logits(one) - logits(other)).abs().max() <= 1e-5


@pytest.mark.slow
def test_training_in_bfloat16_stays_near_float32(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    teachers = [deepcopy(tiny_bert) for _ in range(2)]
    whole = trained(teachers[0], tmp_path / "fp32", learning_rate=1e-3)
    half = trained(teachers[1], tmp_path / "bf16", learning_rate=1e-3, bf16=True)
    one, other = (logits(trainer.model.merge_and_unload()) for trainer in (whole, half))
    before = logits(get_wid_model(tiny_bert, HALF))
    assert 0 < (one - other).norm() < 0.1 * (one - before).norm()
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


@pytest.mark.slow
def test_texts_of_like_length_come_in_one_batch_by_a_flag(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    lengths = torch.randint(3, 20, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Dataset.from_dict({"input_ids": [[5] * length for length in lengths]})
    padded = {}
    for strategy in ("random", "group_by_length"):
        args = arguments(tmp_path, train_sampling_strategy=strategy, per_device_train_batch_size=8, max_steps=2)
        trainer = WidTrainer(
            model=get_wid_model(tiny_bert, HALF),
            args=args,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(word_tokenizer()),
        )
        batches = list(trainer.get_train_dataloader())
        assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(lengths)
        padded[strategy] = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
        trainer.train()
    assert padded["group_by_length"] < 0.75 * padded["random"]
