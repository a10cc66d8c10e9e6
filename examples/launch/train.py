"""Makes a smaller masked language model, in one process or in several.

    accelerate launch --config_file examples/launch/fsdp2.yaml examples/launch/train.py \
        --teacher FOLDER_OR_NAME --texts texts.txt --hidden_size 384 --intermediate_size 1536 --output_dir run

It takes every option of `WidTrainingArguments` as well. The student is written to `<output_dir>/student`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    set_seed,
)

from wid_hf import WidConfig, WidTrainer, WidTrainingArguments, get_wid_model


@dataclass
class Request:
    """What shall become smaller, on which texts."""

    teacher: str = field(metadata={"help": "A folder, or a name on the Hub."})
    texts: str = field(metadata={"help": "A file with one text a line."})
    hidden_size: int
    intermediate_size: int
    max_length: int = 128
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir."})


def main() -> None:
    """Train, merge and save."""
    request, others = HfArgumentParser(Request).parse_args_into_dataclasses(return_remaining_strings=True)
    set_seed(0)  # every process must have the same teacher, also where a head is new
    teacher = AutoModelForMaskedLM.from_pretrained(request.teacher)
    # Made after the teacher: with ZeRO-3 they let everything that is loaded later be divided at once.
    (args,) = HfArgumentParser(WidTrainingArguments).parse_args_into_dataclasses(others)
    tokenizer = AutoTokenizer.from_pretrained(request.teacher)
    with args.main_process_first():
        rows = load_dataset("text", data_files=request.texts, split="train").map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=request.max_length),
            batched=True,
            remove_columns="text",
        )
    sizes = WidConfig(hidden_size=request.hidden_size, intermediate_size=request.intermediate_size)
    model = get_wid_model(teacher, sizes)
    trainer = WidTrainer(
        model=model, args=args, train_dataset=rows, data_collator=DataCollatorForLanguageModeling(tokenizer)
    )
    trainer.train(resume_from_checkpoint=request.resume or None)
    student = model.merge_and_unload()  # in every process: each may hold a part of the weights
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir) / "student"
        student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
