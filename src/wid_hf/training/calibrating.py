"""Makes the calibrated start from training data, in any trainer.

Takes a wid model and the data loader of a training; calibrates the model on some of its rows. Called by `WidCallback`
before the first step, and so by `WidTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainingArguments
from transformers.trainer_pt_utils import IterableDatasetShard as TrainersIterableDatasetShard

from ..calibration.batches import prepared
from ..config import CalibrationConfig
from ..coupling.trace import quiet_forward
from ..errors import DataError
from .collation import random_state
from .one_start import start_once

LAYERS_FIRST = (
    "The layers that stay are chosen by calibration, which makes the student anew, with parameters that the optimizer "
    "does not have. Call model.base_model.calibrate(batches) before the optimizer is made, or use WidTrainer."
)
BY_HAND = "call model.calibrate(batches) before training, or pass calibration_data to get_wid_model"


def calibrate_first(model: PeftModel, loader: DataLoader | None, args: TrainingArguments) -> None:
    """Calibrate a model on rows of its training data, if it still needs calibration: the first process does, for all.

    Raises:
        TrainingError: in other processes, if the first one could not calibrate.
        DataError: there is no training data, or the teacher's forward does not accept its batches.
    """
    tuner = model.base_model
    if tuner.calibrated:
        return
    config = model.peft_config[model.active_adapter].calibration_config

    def make() -> None:
        # Of the first process: a dataset may be divided among processes already.
        given = _with_data(loader)
        batches = drawn_batches(given.dataset, given.collate_fn, config, args.seed)
        if batches:
            _refuse_unfit(tuner.teacher, batches[0])
        tuner.calibrate(batches)

    start_once(model, args, make)


def calibration_batches(model: PeftModel, loader: DataLoader | None, args: TrainingArguments) -> list[dict[str, Any]]:
    """Return batches of `CalibrationConfig.samples` training rows, the same in every process of a run.

    Rows are taken from the loader's dataset and collated by its `collate_fn`. The loader is not iterated and random
    states are restored, so training is not affected.

    Args:
        model: a wid model; its config has the number of rows, and of rows per batch.
        loader: the training's, as a callback gets it.
        args: their seed decides which rows of a dataset are taken; if it has no length, the first ones are.

    Raises:
        DataError: there is no training data, or batches are not dictionaries.
    """
    loader = _with_data(loader)
    config = model.peft_config[model.active_adapter].calibration_config
    made = drawn_batches(loader.dataset, loader.collate_fn, config, args.seed)
    # A dataset may be divided among processes already; with different starts they would train different students.
    return broadcast_object_list(made) if args.world_size > 1 else made


def drawn_batches(
    dataset: Any, collate: Callable[[list[Any]], Any], config: CalibrationConfig, seed: int
) -> list[dict[str, Any]]:
    """Return batches of some rows of a dataset; random states are restored.

    Args:
        dataset: of features.
        collate: puts rows together.
        config: how many rows, and of how many a batch is.
        seed: decides which rows are taken; of a dataset without a length they are the first ones.

    Raises:
        DataError: batches are not dictionaries.
    """
    with random_state(seed):
        rows = _rows(dataset, config.samples, seed)
        chunks = iter(lambda: list(islice(rows, config.batch_size)), [])
        batches = [collate(chunk) for chunk in chunks]
    if strange := [batch for batch in batches if not isinstance(batch, Mapping)]:
        raise DataError(
            f"The data collator returns a {type(strange[0]).__name__}, not a dictionary of arguments for the model's "
            f"forward, so the training data cannot calibrate: {BY_HAND}."
        )
    return [dict(batch) for batch in batches]


def _with_data(loader: DataLoader | None) -> DataLoader:
    """Refuse a loader without rows to calibrate on."""
    if loader is None or not hasattr(loader, "dataset") or not hasattr(loader, "collate_fn"):
        what = "no training data" if loader is None else f"no dataset in a {type(loader).__name__}"
        raise DataError(f"There is {what} to calibrate on: pass train_dataset, or {BY_HAND}.")
    return loader


def _rows(dataset: Any, samples: int, seed: int) -> Iterator[Any]:
    """Yield the rows of `dataset` to calibrate on."""
    while isinstance(dataset, (IterableDatasetShard, TrainersIterableDatasetShard)):
        dataset = dataset.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        yield from islice(iter(dataset), samples)
        return
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    for row in order[:samples].tolist():
        yield dataset[row]


def _refuse_unfit(teacher: Any, batch: Mapping[str, Any]) -> None:
    """Refuse batches that the teacher's forward does not accept, such as those that a trainer's own loss splits up."""
    try:
        with quiet_forward(teacher):
            teacher(**prepared(teacher, batch))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a forward may raise anything for arguments that it does not have
        raise DataError(
            f"The model is not calibrated, and the training data cannot calibrate it: "
            f"{type(teacher).__name__}.forward does not accept a batch with the arguments {', '.join(batch)} "
            f"({type(error).__name__}: {error}). Instead, {BY_HAND}."
        ) from error
