"""A teacher that answers questions: MiniLM with a head for both ends of an answer, fine-tuned by transformers' Trainer.

Takes the encoder's folder and rows with answers; gives a folder of transformers. Training that was killed goes on from
its last checkpoint.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from once import write_folder
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, Trainer, TrainingArguments, set_seed

from wid_hf.errors import WidError
from wid_hf.rows import load_rows
from wid_hf.tools.compression import find_task
from wid_hf.training.checkpoints import last_whole_checkpoint

STEPS, BATCH, RATE = 400, 24, 3e-4
SAVED = 50  # steps between checkpoints
LENGTH = 192  # tokens in a window
TAKEN = ("input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions")


def train_answerer(encoder: Path, rows: Path, output: Path, steps: int = STEPS) -> None:
    """Train on the file `rows` and save to `output`, unless that is there."""
    if output.exists():
        return
    set_seed(0)  # of the head
    model = AutoModelForQuestionAnswering.from_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    task = find_task(model, tokenizer)
    windows = task.features(load_rows(str(rows)), LENGTH)
    work = output.with_name(f"{output.name}-work")
    args = TrainingArguments(
        str(work),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
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
        train_dataset=windows.select_columns([name for name in TAKEN if name in windows.column_names]),
    )
    trainer.train(resume_from_checkpoint=_checkpoint(work))

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_folder(output, write)
    shutil.rmtree(work)


def _checkpoint(work: Path) -> str | None:
    """Return the last whole checkpoint; None if there is none."""
    try:
        return str(last_whole_checkpoint(work, processes=1))
    except (WidError, FileNotFoundError):
        return None
