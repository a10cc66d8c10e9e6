"""`WidCallback` calibrates in any trainer, from the data that the trainer trains on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_runs
from peft import PeftModel
from torch.utils.data import Dataset, IterableDataset
from toys import labelled_rows
from transformers import BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

from wid_hf import CalibrationConfig, DataError, WidCallback, WidConfig, WidTrainer, get_wid_model

SIZES = {"hidden_size": 12, "intermediate_size": 24, "calibration_config": CalibrationConfig(32, 12)}


class Rows(Dataset):
    def __init__(self) -> None:
        self.rows = [{name: torch.tensor(value) for name, value in row.items()} for row in labelled_rows(40)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return self.rows[at]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(Rows().rows)


arguments = partial(training_runs.arguments, kind=TrainingArguments, max_steps=2)


def uncalibrated(teacher: BertForMaskedLM, **given: Any) -> PeftModel:
    return get_wid_model(deepcopy(teacher), WidConfig(**{**SIZES, **given}))


class Starts(TrainerCallback):
    """Keeps the weights before the first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}


SOURCES = {
    "rows": Rows,
    "stream": Stream,
    "table": lambda: labelled_rows(40),
    "lazy table": lambda: labelled_rows(40).to_iterable_dataset(),
}
every_source = pytest.mark.parametrize(
    "source", ["rows", "stream", *(pytest.param(name, marks=pytest.mark.slow) for name in ("table", "lazy table"))]
)


@every_source
def test_a_plain_trainer_starts_where_wid_trainer_does(source: str, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    ended = []
    for kind, more in ((Trainer, [WidCallback()]), (WidTrainer, [])):
        starts, model = Starts(), uncalibrated(tiny_bert)
        trainer = kind(
            model=model, args=arguments(tmp_path), train_dataset=SOURCES[source](), callbacks=[*more, starts]
        )
        trainer.train()
        assert model.base_model.calibration.positions == 32 * 8
        ended.append((starts.weights, trainer.state.log_history[-1]["train_loss"]))
        assert model.merge_and_unload()
    (of_stock, stock_loss), (of_wid, wid_loss) = ended
    assert all(torch.equal(of_stock[name], of_wid[name]) for name in of_stock)
    assert wid_loss == pytest.approx(stock_loss, rel=1e-4)
    plain = dict(uncalibrated(tiny_bert).named_parameters())
    assert any(not torch.equal(plain[name], of_stock[name]) for name in plain)


@pytest.mark.slow
@every_source
def test_training_goes_on_as_if_nothing_had_been_drawn(source: str, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    """The batches and the random numbers are those of a run whose model was calibrated before."""

    class Note(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            drawn.append((torch.get_rng_state().sum().item(), random.getstate()[1][-1], np.random.get_state()[2]))

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        made = {name: torch.stack([torch.as_tensor(row[name]) for row in batch]) for name in ("input_ids", "labels")}
        noise = torch.rand(1).item(), random.random(), np.random.rand()
        seen.append((made["input_ids"].sum().item(), noise))
        return made

    ended = []
    for before in (False, True):
        drawn: list[Any] = []
        seen: list[Any] = []
        model = uncalibrated(tiny_bert)
        if before:
            ids = torch.arange(5, 60).repeat(2)[:104].view(13, 8)
            model.base_model.calibrate([{"input_ids": ids}])
        trainer = Trainer(
            model=model,
            args=arguments(tmp_path, remove_unused_columns=False),
            data_collator=collate,
            train_dataset=SOURCES[source](),
            callbacks=[WidCallback(), Note()],
        )
        trainer.train()
        ended.append((drawn, seen[0 if before else 3 :]))  # three batches of calibration
    assert ended[0] == ended[1] and len(ended[0][0]) == 2


def test_the_loader_is_not_iterated(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    class Spy(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **_: Any) -> None:
            assert train_dataloader.gradient_state.active_dataloader is None
            assert train_dataloader.iteration == 0

    trainer = Trainer(
        model=uncalibrated(tiny_bert), args=arguments(tmp_path), train_dataset=Rows(), callbacks=[WidCallback(), Spy()]
    )
    trainer.train()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_start(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    first = Trainer(model=uncalibrated(tiny_bert), args=args, train_dataset=Rows(), callbacks=[WidCallback()])
    first.train()
    second = Trainer(model=uncalibrated(tiny_bert), args=args, train_dataset=Rows(), callbacks=[WidCallback()])
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert second.model.base_model.calibrated and second.model.base_model.calibration is None
    for (name, a), (_, b) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_model_that_is_calibrated_is_left_alone(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model, starts = uncalibrated(tiny_bert), Starts()
    model.base_model.calibrate([{"input_ids": torch.arange(5, 60).repeat(2)[:104].view(13, 8)}])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model=model, args=arguments(tmp_path), train_dataset=Rows(), callbacks=[WidCallback(), starts]).train()
    assert all(torch.equal(before[name], starts.weights[name]) for name in before)


class Pairs(Rows):
    """What a trainer of preferences takes apart itself."""

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"chosen_input_ids": self.rows[at]["input_ids"], "rejected_input_ids": self.rows[at]["input_ids"]}


def test_batches_that_the_model_does_not_take_are_refused(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = uncalibrated(tiny_bert)
    args = arguments(tmp_path, remove_unused_columns=False)
    trainer = Trainer(model=model, args=args, train_dataset=Pairs(), callbacks=[WidCallback()])
    words = "with the arguments chosen_input_ids, rejected_input_ids.*model\\.calibrate\\(batches\\)"
    with pytest.raises(DataError, match=words):
        trainer.train()
    assert not model.base_model.calibrated
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Rows(),
        data_collator=lambda batch: [row["input_ids"] for row in batch],
        callbacks=[WidCallback()],
    )
    with pytest.raises(DataError, match=r"collator returns a list.*calibration_data to get_wid_model"):
        trainer.train()


def test_no_training_data_is_refused(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    trainer = WidTrainer(model=uncalibrated(tiny_bert), args=arguments(tmp_path))
    with pytest.raises(DataError, match="no training data"):
        trainer.calibration_batches()


def test_shards_of_accelerate_are_unwrapped(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    from accelerate.data_loader import IterableDatasetShard
    from torch.utils.data import DataLoader

    from wid_hf.training.calibrating import calibration_batches

    model, args = uncalibrated(tiny_bert), arguments(tmp_path)
    whole = calibration_batches(model, DataLoader(Stream(), batch_size=4), args)
    for process in (0, 1):
        shard = IterableDatasetShard(Stream(), batch_size=4, num_processes=2, process_index=process)
        found = calibration_batches(model, DataLoader(shard, batch_size=4), args)
        assert [len(batch["input_ids"]) for batch in found] == [12, 12, 8]
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(whole, found, strict=True))


def test_rows_are_the_same_for_the_same_seed(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    first, again, other = (
        WidTrainer(
            model=uncalibrated(tiny_bert), args=arguments(tmp_path, seed=seed), train_dataset=rows
        ).calibration_batches()
        for seed, rows in ((1, labelled_rows(60)), (1, labelled_rows(60)), (2, labelled_rows(60)))
    )
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])
