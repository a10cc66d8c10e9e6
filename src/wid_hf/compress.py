"""One call from a teacher's name to a student's folder.

Takes names of a teacher and of texts, gives a folder with the student, its tokenizer, its model card,
`wid_report.json` and, for a calibrated start, `calibration.png`.
Called by `wid-hf compress` and the demo.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .bar import TrainingBar
from .card import CARD_NAME, hub_id, student_card
from .config import WidConfig
from .data import batches, hold_out, load_texts, tokenize
from .errors import OutputError, TeacherError, TrainingError
from .evaluation import embed, latency, masked_batches, masked_lm_score, model_size, sentence_score
from .fingerprint import weights_fingerprint
from .following import FollowingTrainer
from .report import Latency, Report
from .schedule import WidSchedule
from .teachers import load_teacher, load_tokenizer
from .trainer import WidTrainer, WidTrainingArguments
from .tuner import get_wid_model
from .widths import narrow_from, widths_over_steps


@dataclass(frozen=True)
class CompressSettings:
    """How to train; a learning rate that is None is the default for objective and start.

    Attributes:
        steps: optimizer steps; 0 leaves the student at its start.
        batch_size: texts per step.
        max_length: tokens per text, longer ones are cut.
        compactor_learning_rate: of compactors.
        teacher_learning_rate: of the teacher's weights; must be 0 for a headless encoder.
        column: which column of the training file holds the text.
        validation: file or dataset with held-out texts; by default taken from the training texts.
        validation_texts: how many held-out texts are scored.
        seed: of data order, masking and held-out texts.
    """

    steps: int = 1000
    batch_size: int = 32
    max_length: int = 128
    compactor_learning_rate: float | None = None
    teacher_learning_rate: float | None = None
    column: str | None = None
    validation: str | None = None
    validation_texts: int = 512
    seed: int = 0


# Learning rates (compactors, teacher weights) by objective and start: the best of the sweep in docs/starts.md. Lifts
# are dense, so that one step of their compactors moves a weight further than from an identity start.
LEARNING_RATES = {
    ("masked-lm", "calibrated"): (1e-4, 3e-4),
    ("masked-lm", "identity"): (3e-4, 3e-4),
    ("following", "calibrated"): (5e-5, 0.0),
    ("following", "identity"): (2e-4, 0.0),
}
TIMED = 5  # forwards per model
OF_CALIBRATION = ("calibration_samples", "calibration_batch_size", "ridge")  # what the report tells of the config


def compress(
    teacher: str,
    train: str,
    output: str | Path,
    config: WidConfig,
    settings: CompressSettings,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    command: str | None = None,
) -> Report:
    """Make a student of `teacher`, train it on `train`, and write it to `output`.

    A start that needs data is made from rows of `train`, masked as in training. The objective is masked language
    modelling where the teacher has such a head; a headless encoder follows its own originals. `output` appears only
    when everything in it is complete.

    Args:
        teacher: folder or Hub id.
        train: text file, JSON lines or name of a dataset.
        output: folder for the student, its tokenizer, its card and `wid_report.json`.
        config: the student's sizes and its start.
        settings: how to train.
        revision: of the teacher on the Hub.
        trust_remote_code: passed on to transformers.
        overwrite: replace an `output` that exists.
        command: the command line, for the report.

    Returns:
        What `wid_report.json` holds.

    Raises:
        WidError: with the child class that says what is wrong; nothing is written at `output`.
        TrainingError: the loss became NaN; the last good student is in `<output>-last-good`.
    """
    output = Path(output)
    _check_output(output, overwrite)
    if isinstance(config.schedule, WidSchedule):
        config.schedule.timeline(settings.steps)  # refuses what does not end within the steps
    model = load_teacher(teacher, revision=revision, trust_remote_code=trust_remote_code)
    objective = _objective(model)
    tokenizer = load_tokenizer(teacher, revision=revision, trust_remote_code=trust_remote_code)
    sizes = {"teacher": model_size(model)}
    fingerprints = {"teacher": weights_fingerprint(model)}  # before training, which may change the teacher's tensors
    wid_model = get_wid_model(model, config)  # first, because it is what refuses most
    train_set, held_out = _tokens(train, tokenizer, config, settings)
    rates = _learning_rates(objective, config, settings)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(objective, wid_model, train_set, tokenizer, settings, rates, scratch)
        if config.needs_data:
            wid_model.base_model.calibrate(trainer.calibration_batches())
        scorer = _Scorer(objective, model, tokenizer, held_out, settings)
        scores = {"teacher": scorer.score(model)}
        seconds = {"teacher": scorer.latency(model)}
        if settings.steps:
            scores["start"] = scorer.score(wid_model)
        try:
            outcome = trainer.train() if settings.steps else None
        except TrainingError as cause:
            kept = output.with_name(output.name + "-last-good")
            with whole_folder(kept, overwrite=True) as folder:
                _save(wid_model.merge_and_unload(force=True), tokenizer, folder)
            raise TrainingError(f"{cause} The student at those weights is in {kept}.") from cause
    student = wid_model.merge_and_unload()
    scores["student"] = scorer.score(student)
    scores.setdefault("start", scores["student"])
    seconds["student"] = scorer.latency(student)
    sizes["student"] = model_size(student)
    fingerprints["student"] = weights_fingerprint(student)
    report = Report(
        teacher=teacher,
        requested=config.requested,
        head_strategy=config.head_strategy,
        start=f"{config.init}, {config.selection}",
        calibration=wid_model.base_model.calibration,
        objective=objective,
        sizes=sizes,
        scores=scores,
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        seconds=outcome.metrics["train_runtime"] if outcome else 0.0,
        losses=[(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        settings=asdict(settings)
        | {name: getattr(config, name) for name in OF_CALIBRATION}
        | {"train": train, "learning_rates": rates}
        | {"hub": {"teacher": hub_id(teacher), "revision": revision, "dataset": hub_id(train)}},
        seed=settings.seed,
        schedule=asdict(config.schedule) if isinstance(config.schedule, WidSchedule) else None,
        widths=widths_over_steps(trainer.state.log_history),
        narrow_from=narrow_from(trainer.state.log_history),
        fingerprints=fingerprints,
        latency=Latency(seconds, scorer.timed),
        command=command,
    )
    with whole_folder(output, overwrite) as folder:
        _save(student, tokenizer, folder)
        report.save(folder)
        student_card(folder, output.name).save(folder / CARD_NAME)
    return report


@contextmanager
def whole_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its place when the block ends well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        if target.exists() and overwrite:
            aside = folder.with_name(folder.name + "-old")
            target.replace(aside)
            folder.replace(target)
            shutil.rmtree(aside)
        else:
            folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Scorer:
    """Scores teacher, start and student on the same held-out batches."""

    def __init__(
        self, objective: str, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: Dataset,
        settings: CompressSettings,
    ) -> None:  # fmt: skip
        self.objective = objective
        self.batches: list[dict[str, Tensor]]
        if objective == "masked-lm":
            self.batches = masked_batches(held_out, tokenizer, settings.batch_size, settings.seed)
        else:
            rows = held_out.select_columns(["input_ids", "attention_mask"])
            self.batches = list(batches(rows, DataCollatorWithPadding(tokenizer), settings.batch_size))
            self.vectors = embed(teacher, self.batches)

    def score(self, model: Any) -> dict[str, float]:
        """Return the objective's figures: loss and accuracy, or agreement with the teacher."""
        if self.objective == "masked-lm":
            masked = masked_lm_score(model, self.batches)
            return {"masked_lm_loss": masked.loss, "masked_lm_accuracy": masked.accuracy}
        agreement = sentence_score(self.vectors, embed(model, self.batches))
        return {
            "cosine_correlation": agreement.cosine_correlation,
            "top1_agreement": agreement.top1_agreement,
        }

    @property
    def timed(self) -> tuple[int, int]:
        """Texts and tokens per text of the batch that `latency` runs."""
        texts, tokens = self.batches[0]["input_ids"].shape
        return texts, tokens

    def latency(self, model: Any) -> float:
        """Return the median seconds of forwards on the first batch."""
        inputs = {name: tensor for name, tensor in self.batches[0].items() if name != "labels"}
        return latency(model, inputs, repeats=TIMED)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not overwrite):
        raise OutputError(f"The output {output} exists already. Name another folder, or pass --overwrite.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"The output {output} cannot be written: {parent} is not a writable folder.")


def _objective(teacher: PreTrainedModel) -> str:
    """Return `masked-lm` for a masked-LM head, `following` for a headless encoder."""
    if type(teacher).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        return "masked-lm"
    if teacher.base_model is teacher and not teacher.config.is_encoder_decoder and not teacher.can_generate():
        return "following"
    raise TeacherError(
        f"wid-hf compress trains masked language models and headless encoders; {type(teacher).__name__} is "
        "neither. Use get_wid_model and WidTrainer with your own data collator for it."
    )


def _tokens(
    train: str, tokenizer: PreTrainedTokenizerBase, config: WidConfig, settings: CompressSettings
) -> tuple[Dataset, Dataset]:
    """Return tokens to train on and held-out ones; without training, only what calibration takes."""
    texts = load_texts(train, column=settings.column)
    if settings.validation is not None:
        held_out = load_texts(settings.validation, column=settings.column, split="validation")
        held_out = held_out.select(range(min(settings.validation_texts, len(held_out))))
    else:
        texts, held_out = hold_out(texts, min(settings.validation_texts, max(len(texts) // 5, 1)), settings.seed)
    if not settings.steps:
        texts = texts.shuffle(seed=settings.seed).select(range(min(config.calibration_samples, len(texts))))
    return tuple(tokenize(part, tokenizer, settings.max_length) for part in (texts, held_out))


def _learning_rates(objective: str, config: WidConfig, settings: CompressSettings) -> dict[str, float]:
    compactors, teacher = LEARNING_RATES[objective, str(config.init)]
    given = settings.compactor_learning_rate, settings.teacher_learning_rate
    return {
        "compactors": compactors if given[0] is None else given[0],
        "teacher": teacher if given[1] is None else given[1],
    }


def _trainer(
    objective: str,
    model: PeftModel,
    train_set: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: CompressSettings,
    rates: dict[str, float],
    scratch: str,
) -> WidTrainer:
    arguments = WidTrainingArguments(
        output_dir=scratch,
        max_steps=max(settings.steps, 1),
        per_device_train_batch_size=settings.batch_size,
        compactor_learning_rate=rates["compactors"],
        teacher_learning_rate=rates["teacher"],
        weight_decay=0.01,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        logging_steps=max(1, settings.steps // 50),
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        include_num_input_tokens_seen="non_padding",
        seed=settings.seed,
    )
    trainer_class: type[WidTrainer]
    if objective == "masked-lm":
        trainer_class, collator = WidTrainer, DataCollatorForLanguageModeling(tokenizer)
    else:
        trainer_class, collator = FollowingTrainer, DataCollatorWithPadding(tokenizer)
    trainer = trainer_class(model=model, args=arguments, train_dataset=train_set, data_collator=collator)
    trainer.pop_callback(ProgressCallback)
    trainer.add_callback(TrainingBar())
    return trainer


def _save(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
