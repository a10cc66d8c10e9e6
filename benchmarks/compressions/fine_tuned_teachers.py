"""Teachers that are fine-tuned here, by transformers' Trainer: for answers to questions and for parts of speech.

Takes an encoder's folder and rows with labels; gives a folder of transformers. Training that was killed goes on from
its last checkpoint.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from once import write_folder
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from wid_hf.errors import WidError
from wid_hf.tools.compression import find_task
from wid_hf.tools.training_data import load_prepared
from wid_hf.training.checkpoints import last_whole_checkpoint

SAVED = 50  # steps between checkpoints
TAKEN = ("input_ids", "attention_mask", "token_type_ids", "labels", "start_positions", "end_positions")


@dataclass(frozen=True)
class FineTuning:
    """How one head is trained.

    Attributes:
        head: auto class of transformers.
        steps: optimizer steps.
        batch: rows, or windows of them, in a step.
        rate: learning rate.
        length: tokens in a row or window.
        classes: names of classes; none if the head has no classes.
    """

    head: Any
    steps: int
    batch: int
    rate: float
    length: int
    classes: tuple[str, ...] = ()

    def train(self, encoder: Path, rows: Path, output: Path) -> None:
        """Train on the file `rows` and save to `output`, unless that is there."""
        if output.exists():
            return
        set_seed(0)  # of the head
        names = dict(enumerate(self.classes))
        labels = {"id2label": names, "label2id": {name: at for at, name in names.items()}} if names else {}
        model = self.head.from_pretrained(encoder, ignore_mismatched_sizes=bool(names), **labels)
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        task = find_task(model, tokenizer)
        features = task.features(load_prepared(str(rows), "train", task).rows, self.length)
        work = output.with_name(f"{output.name}-work")
        args = TrainingArguments(
            str(work),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch,
            learning_rate=self.rate,
            warmup_steps=0.1,
            save_steps=SAVED,
            save_total_limit=1,
            report_to=[],
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            args,
            data_collator=task.collator,
            train_dataset=features.select_columns([name for name in TAKEN if name in features.column_names]),
        )
        trainer.train(resume_from_checkpoint=_checkpoint(work))

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        write_folder(output, write)
        shutil.rmtree(work)


UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
ANSWERS = FineTuning(AutoModelForQuestionAnswering, steps=400, batch=24, rate=3e-4, length=192)
PARTS_OF_SPEECH = FineTuning(AutoModelForTokenClassification, steps=300, batch=16, rate=5e-5, length=96, classes=UPOS)


def _checkpoint(work: Path) -> str | None:
    """Return the last whole checkpoint; None if there is none."""
    try:
        return str(last_whole_checkpoint(work, processes=1))
    except (WidError, FileNotFoundError):
        return None
