"""The paper's recipe end to end: a narrow masked language model from a Hub teacher and a corpus of texts.

Takes a JSON file, or flags: those of `Recipe` below and every one of `WidTrainingArguments`. Gives checkpoints in
`output_dir`, and in `output_dir/student` the stock student with its tokenizer and `wid_report.json`. Called again with
the same arguments it goes on from its last checkpoint. The paper trained in eight processes:

    torchrun --nproc_per_node 8 examples/pretrain_mlm.py examples/configs/bert-192-dim.json
    python examples/pretrain_mlm.py --teacher google-bert/bert-base-uncased --corpus wikitext:wikitext-103-raw-v1 \\
        --hidden_size 192 --intermediate_size 768 --output_dir bert-12x192 --max_steps 10000 --learning_rate 5e-5
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollatorForLanguageModeling, HfArgumentParser, PreTrainedTokenizerBase, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.trainer_utils import get_last_checkpoint

from wid_hf import (
    DataError,
    TeacherError,
    WidConfig,
    WidError,
    WidSchedule,
    WidTrainer,
    WidTrainingArguments,
    get_wid_model,
)
from wid_hf.hub.model_size import model_size
from wid_hf.hub.own_files import why_not_ours
from wid_hf.progressive.history import narrow_from, widths_over_steps
from wid_hf.rows import load_rows
from wid_hf.scores import masked_batches, masked_lm_score
from wid_hf.tools.output_folder import OutputFolder, write_folder
from wid_hf.tools.recipe import WidRecipe
from wid_hf.tools.reports.wid_report import Report
from wid_hf.tools.teachers import load_teacher, load_tokenizer, save_processor

SHUFFLED = 10_000  # blocks among which a streamed corpus is shuffled

# Narrow from the first step; by the paper's proportions of all steps; by its own numbers, meant for 400,000 steps.
SCHEDULES: dict[str, Any] = {"narrow": "narrow", "progressive": WidSchedule(), "paper": WidSchedule.paper()}


@dataclass
class Recipe:
    """Which student of which teacher, and the texts to train it on."""

    teacher: str = field(metadata={"help": "Folder or Hub id of a masked language model."})
    corpus: str = field(metadata={"help": "Files, a folder, or a dataset, 'name' or 'name:config'."})
    hidden_size: int = field(metadata={"help": "Width of the student's residual stream."})
    intermediate_size: int = field(metadata={"help": "Inner width of its feed-forward blocks."})
    head_strategy: Literal["dim", "head"] = field(
        default="dim", metadata={"help": "'dim' narrows every head, 'head' drops whole heads."}
    )
    schedule: Literal["narrow", "progressive", "paper"] = field(
        default="narrow", metadata={"help": "Narrow at once, or progressively; 'paper' in its own numbers of steps."}
    )
    column: str = field(default="text", metadata={"help": "Which column holds the text."})
    split: str = field(default="train", metadata={"help": "Which split of the dataset."})
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs max_steps."})
    max_length: int = field(default=128, metadata={"help": "Tokens per block."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens that are masked, anew each time."})
    validation_blocks: int = field(default=512, metadata={"help": "First blocks, held out to score both models."})


def pretrain(recipe: Recipe, args: WidTrainingArguments) -> Report:
    """Train the student of `recipe` and save it.

    Raises:
        WidError: with the child class that says what is wrong.
    """
    set_seed(args.seed)
    output = OutputFolder(
        Path(args.output_dir) / "student",
        overwrite=True,
        why_not_ours=why_not_ours,
        sources={"the teacher": [recipe.teacher]},
    )
    args.include_num_input_tokens_seen = "non_padding"
    teacher, tokenizer = load_teacher(recipe.teacher), load_tokenizer(recipe.teacher)
    masked = type(teacher).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    if not masked or teacher.config.is_encoder_decoder:
        raise TeacherError(
            f"{recipe.teacher} is a {type(teacher).__name__}; this recipe is for masked language models."
        )
    config = WidConfig(
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        head_strategy=recipe.head_strategy,
        init="identity",
        schedule=SCHEDULES[recipe.schedule],
    )
    sizes = {"teacher": model_size(teacher)}
    model = get_wid_model(teacher, config)
    train, held_out = hold_out(blocks(recipe, tokenizer), recipe.validation_blocks)
    if isinstance(train, IterableDataset):
        train = train.shuffle(seed=args.seed, buffer_size=SHUFFLED)
    collator = masking(tokenizer, recipe.mlm_probability, args.seed)
    trainer = WidTrainer(model=model, args=args, train_dataset=train, data_collator=collator)
    batches = masked_batches(held_out, tokenizer, args.per_device_eval_batch_size, args.seed)
    scores = {"teacher": masked_lm_score(teacher, batches)}

    stopped = Path(args.output_dir).is_dir() and get_last_checkpoint(args.output_dir) is not None
    outcome = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or stopped)

    student = trainer.model.merge_and_unload()
    scores["student"] = masked_lm_score(student, batches)
    sizes["student"] = model_size(student)
    made = WidRecipe(progressive=isinstance(config.schedule, WidSchedule))
    report = Report(
        teacher=recipe.teacher,
        requested=config.requested,
        head_strategy=recipe.head_strategy,
        method=made.name,
        title=made.title,
        start=f"{config.init}, {config.selection}",
        calibration=None,
        objective="masked-lm",
        sizes=sizes,
        scores={n: {"masked_lm_loss": s.loss, "masked_lm_accuracy": s.accuracy} for n, s in scores.items()},
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        seconds=outcome.metrics["train_runtime"],
        losses=[(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        settings=asdict(recipe) | args.to_sanitized_dict(),
        seed=args.seed,
        schedule=asdict(config.schedule) if isinstance(config.schedule, WidSchedule) else None,
        widths=widths_over_steps(trainer.state.log_history),
        narrow_from=narrow_from(trainer.state.log_history),
    )
    if trainer.is_world_process_zero():

        def write(folder: Path) -> None:
            student.save_pretrained(folder)
            save_processor(tokenizer, folder, recipe.teacher)
            report.draw(folder)
            report.save(folder)

        write_folder(output, write)
    return report


def blocks(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Dataset | IterableDataset:
    """Return the corpus as rows of `max_length` tokens, text after text; what is left of 1,000 texts is dropped."""
    texts = load_rows(recipe.corpus, split=recipe.split, streaming=recipe.streaming)
    first: dict[str, Any] = next(iter(texts), {})
    if not isinstance(first.get(recipe.column), str):
        raise DataError(f"{recipe.corpus} has no text in column {recipe.column!r}; its columns: {list(first)}.")

    def group(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        wanted = [text for text in rows[recipe.column] if text and not text.isspace()]
        encoded = tokenizer(wanted, return_attention_mask=False, return_token_type_ids=False, verbose=False)
        tokens = list(chain.from_iterable(encoded["input_ids"])) if wanted else []
        ends = range(recipe.max_length, len(tokens) + 1, recipe.max_length)
        return {"input_ids": [tokens[end - recipe.max_length : end] for end in ends]}

    return texts.map(group, batched=True, remove_columns=list(first))


def hold_out(rows: Dataset | IterableDataset, count: int) -> tuple[Dataset | IterableDataset, Dataset]:
    """Return the rows after the first `count`, and those."""
    first = list(rows.take(count + 1))
    if len(first) <= count:
        raise DataError(f"The corpus fills {len(first)} blocks, of which {count} are held out; give more texts.")
    return rows.skip(count), Dataset.from_list(first[:count])


def masking(tokenizer: PreTrainedTokenizerBase, share: float, seed: int) -> Callable[[list[dict[str, Any]]], Any]:
    """Return a collator that masks anew whenever blocks are shuffled anew, by the batch itself.

    With torch's own random state a run that is resumed would draw other masks: batches are fetched ahead of training.
    """
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)

    def collate(rows: list[dict[str, Any]]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + crc32(str([row["input_ids"] for row in rows]).encode()))
            return mask(rows)

    return collate


def main() -> None:
    parser = HfArgumentParser((Recipe, WidTrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        recipe, args = parser.parse_json_file(sys.argv[1])
    else:
        recipe, args = parser.parse_args_into_dataclasses()
    try:
        pretrain(recipe, args)
    except WidError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
