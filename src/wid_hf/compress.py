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

from .adapter.fingerprint import weights_fingerprint
from .adapter.tuner import get_wid_model
from .bar import TrainingBar
from .config import WidConfig
from .data import batches, hold_out, load_texts, tokenize
from .errors import OutputError, TeacherError, TrainingError
from .evaluation import embed, latency, masked_batches, masked_lm_score, model_size, sentence_score
from .methods import Method, find_method, learning_rates
from .progressive.picture import narrow_from, widths_over_steps
from .progressive.schedule import WidSchedule
from .reports.card import CARD_NAME, hub_id, student_card
from .reports.wid_report import Latency, Report
from .teachers import load_teacher, load_tokenizer
from .training.baselines import DistillingTrainer, stock_student
from .training.following import FollowingTrainer
from .training.student_trainer import StudentTrainer
from .training.trainer import WidTrainer, WidTrainingArguments


@dataclass(frozen=True)
class CompressSettings:
    """How to train; a learning rate that is None is the default for method, objective and start.

    Attributes:
        method: of `wid_hf.methods.METHODS`: how the student gets its weights, and what teaches it.
        steps: optimizer steps; 0 leaves the student at its start.
        batch_size: texts per step.
        max_length: tokens per text, longer ones are cut.
        compactor_learning_rate: of compactors.
        teacher_learning_rate: of the teacher's weights; must be 0 for a headless encoder and where they are followed.
        learning_rate: of a stock student, for methods without compactors.
        column: which column of the training file holds the text.
        validation: file or dataset with held-out texts; by default taken from the training texts.
        validation_texts: how many held-out texts are scored.
        seed: of data order, masking and held-out texts.
    """

    method: str = "wid"
    steps: int = 1000
    batch_size: int = 32
    max_length: int = 128
    compactor_learning_rate: float | None = None
    teacher_learning_rate: float | None = None
    learning_rate: float | None = None
    column: str | None = None
    validation: str | None = None
    validation_texts: int = 512
    seed: int = 0


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
    modelling where the teacher has such a head; a headless encoder follows its own originals. Every method trains a
    student of the same shape on the same batches with the same masks. `output` appears only when everything in it is
    complete.

    Args:
        teacher: folder or Hub id.
        train: text file, JSON lines or name of a dataset.
        output: folder for the student, its tokenizer, its card and `wid_report.json`.
        config: the student's sizes and its start; a method other than WID decides the start itself.
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
    method = find_method(settings.method, config)
    config = method.configured(config)
    if isinstance(config.schedule, WidSchedule):
        config.schedule.timeline(settings.steps)  # refuses what does not end within the steps
    model = load_teacher(teacher, revision=revision, trust_remote_code=trust_remote_code)
    objective = _objective(model)
    method.check_objective(objective, type(model).__name__)
    rates = learning_rates(
        method, objective, config, student=settings.learning_rate, compactors=settings.compactor_learning_rate,
        teacher=settings.teacher_learning_rate,
    )  # fmt: skip
    tokenizer = load_tokenizer(teacher, revision=revision, trust_remote_code=trust_remote_code)
    sizes = {"teacher": model_size(model)}
    fingerprints = {"teacher": weights_fingerprint(model)}  # before training, which may change the teacher's tensors
    wid_model = get_wid_model(model, config)  # first, because it is what refuses most
    train_set, held_out = _tokens(train, tokenizer, config, settings)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(method, objective, wid_model, train_set, tokenizer, settings, rates, scratch)
        scorer = _Scorer(objective, model, tokenizer, held_out, settings)
        scores = {"teacher": scorer.score(model)}
        seconds = {"teacher": scorer.latency(model)}
        if settings.steps:
            scores["start"] = scorer.score(trainer.model)
        try:
            outcome = trainer.train() if settings.steps else None
        except TrainingError as cause:
            kept = output.with_name(output.name + "-last-good")
            with whole_folder(kept, overwrite=True) as folder:
                _save(_stock(trainer, force=True), tokenizer, folder)
            raise TrainingError(f"{cause} The student at those weights is in {kept}.") from cause
    student = _stock(trainer)
    scores["student"] = scorer.score(student)
    scores.setdefault("start", scores["student"])
    seconds["student"] = scorer.latency(student)
    sizes["student"] = model_size(student)
    fingerprints["student"] = weights_fingerprint(student)
    report = Report(
        teacher=teacher,
        requested=config.requested,
        head_strategy=wid_model.base_model.settled.strategy,
        settled=str(wid_model.base_model.settled) or None,
        method=method.name,
        start="random weights" if method.weights == "random" else f"{config.init}, {config.selection}",
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


def _trainer(
    method: Method,
    objective: str,
    model: PeftModel,
    train_set: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: CompressSettings,
    rates: dict[str, float],
    scratch: str,
) -> StudentTrainer:
    """Return the trainer of a student at its start."""
    masked = objective == "masked-lm"
    stock_rate: dict[str, Any] = {"learning_rate": rates["student"]} if "student" in rates else {}
    arguments = WidTrainingArguments(
        output_dir=scratch,
        max_steps=max(settings.steps, 1),
        per_device_train_batch_size=settings.batch_size,
        compactor_learning_rate=rates.get("compactors"),
        teacher_learning_rate=rates.get("teacher"),
        weight_decay=0.01,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        logging_steps=max(1, settings.steps // 50),
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        include_num_input_tokens_seen="non_padding",
        seed=settings.seed,
        data_seed=settings.seed,
        **stock_rate,
        distillation=list(method.losses) if method.folds else [],
    )
    collator = DataCollatorForLanguageModeling(tokenizer) if masked else DataCollatorWithPadding(tokenizer)
    data: dict[str, Any] = {"args": arguments, "train_dataset": train_set, "data_collator": collator}
    trainer: StudentTrainer = (WidTrainer if masked or not method.folds else FollowingTrainer)(model=model, **data)
    if not model.base_model.calibrated:
        model.base_model.calibrate(trainer.calibration_batches())
    if not method.folds:
        student = stock_student(model, random=method.weights == "random", seed=settings.seed)
        losses = method.losses if masked or method.losses else ("states",)
        if losses:
            (loss,) = losses
            trainer = DistillingTrainer(model=student, wid_model=model, loss=loss, own_loss=masked, **data)
        else:
            trainer = StudentTrainer(model=student, **data)
    trainer.pop_callback(ProgressCallback)
    trainer.add_callback(TrainingBar())
    return trainer


def _stock(trainer: StudentTrainer, force: bool = False) -> PreTrainedModel:
    """Return the student as a stock model; `force` merges one that is still wide."""
    return trainer.model.merge_and_unload(force=force) if isinstance(trainer, WidTrainer) else trainer.student


def _save(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
