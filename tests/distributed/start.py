"""One of two processes whose data differ: a plain `Trainer` with `WidCallback` on a stream that is split already.

Writes the sum of every weight before the first step, and the gradients of the first, to `<folder>/rank-<n>.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from wid_hf import CalibrationConfig, WidCallback, WidConfig, get_wid_model


class Stream(IterableDataset):
    """Rows of this process alone."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(self.rank)
        for _ in range(64):
            ids = torch.randint(5, 60, (8,), generator=generator)
            yield {"input_ids": ids, "labels": ids}


class Note(TrainerCallback):
    """Keeps what the model is at its first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.start = [float(p.detach().double().sum()) for p in model.parameters()]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.end = [float(p.detach().double().sum()) for p in model.parameters()]


def main(folder: Path) -> None:
    args = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        accelerator_config={"dispatch_batches": False},
    )
    set_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    model = get_wid_model(
        BertForMaskedLM(config).eval(), WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=32))
    )
    note = Note()
    Trainer(model=model, args=args, train_dataset=Stream(args.process_index), callbacks=[WidCallback(), note]).train()
    found = {"processes": args.world_size, "start": note.start, "end": note.end}
    (folder / f"rank-{args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
