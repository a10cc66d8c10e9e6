"""`WidTrainer`: transformers' `Trainer` with one learning rate for compactors and one for teacher weights.

Takes what `Trainer` takes; `model` is what `get_wid_model` returned. Only hooks that `Trainer` offers are
overridden, so callbacks, checkpoints, distribution and logging are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..adapter.tuner import WidModel
from ..compaction import Compaction
from ..compaction.held import HeldFolds, folded_once
from ..distillation.losses import LOSSES, Distillation
from ..errors import DataError, TrainingError, WidError
from ..labelled import LabelledPositions
from ..reports.card import CARD_NAME, adapter_card
from .callback import WidCallback
from .checkpoints import begin_checkpoint, last_whole_checkpoint, refuse_torn_checkpoint
from .student_trainer import StudentTrainer


@dataclass
class WidTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a learning rate for each kind of weight.

    Args:
        compactor_learning_rate: for compactors; `learning_rate` if None, 0 freezes them.
        teacher_learning_rate: for the teacher's weights; `learning_rate` if None, 0 freezes them.
        distillation: losses from the teacher beside the training loss, some of `"logits"`, `"hidden"`, `"relations"`;
            none by default. The teacher's weights must be frozen.
        distillation_weight: what their sum is multiplied by.
        distillation_temperature: of the logits.
        full_logits: run a language-model head on all positions, also on those without a label.

    Raises:
        ValueError: a learning rate below 0, or both 0; an unknown loss, a weight or temperature that is not above 0,
            or distillation from a teacher that trains.
    """

    compactor_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of compactors; 0 freezes them."}
    )
    teacher_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the teacher's weights; 0 freezes them."}
    )
    distillation: list[str] = field(
        default_factory=list, metadata={"help": "Losses from the frozen teacher: 'logits', 'hidden', 'relations'."}
    )
    distillation_weight: float = field(default=1.0, metadata={"help": "Weight of these losses beside the training's."})
    distillation_temperature: float = field(default=2.0, metadata={"help": "Temperature of distilled logits."})
    full_logits: bool = field(
        default=False, metadata={"help": "Run a language-model head on positions without a label as well."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = {"compactors": self.compactor_learning_rate, "teacher": self.teacher_learning_rate}
        if any(rate is not None and rate < 0 for rate in rates.values()):
            raise ValueError(f"learning rates must be 0 or more, got {rates}")
        if all(rate == 0 for rate in rates.values()):
            raise ValueError("both learning rates are 0, so nothing would train; set one above 0")
        if unknown := [name for name in self.distillation if name not in LOSSES]:
            raise ValueError(f"distillation={unknown} is unknown; it takes some of {', '.join(LOSSES)}")
        for name in ("distillation_weight", "distillation_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.distillation and self.teacher_learning_rate != 0:
            raise ValueError(
                "distillation follows the teacher's own weights, so they must stay as they are: set "
                f"teacher_learning_rate=0 (it is {self.teacher_learning_rate}), or leave distillation out"
            )


class WidTrainer(StudentTrainer):
    """Train a wid model: `Trainer` with learning rates for compactors and teacher weights.

    With plain `TrainingArguments` both learn at `learning_rate`. The student's weights are folded once per optimizer
    step, however many micro-batches it has, and once per evaluation; only where parameters are sharded or replicated
    (FSDP, DeepSpeed, `nn.DataParallel`) does each forward fold for itself. A start that needs calibration data and was
    given none is made before the first step from `calibration_samples` rows of the training set, put together by the
    data collator; a run that is resumed keeps its own. Where the loss stops being finite, training stops before the
    step is taken, the weights go back to the last ones whose loss was finite, and `TrainingError` says so. They are
    kept in memory every `logging_steps` steps.

    Raises:
        WidError: the model is no wid model.
        TrainingError: from `train`, when the loss is NaN or infinite.
    """

    rates = "compactor_learning_rate and teacher_learning_rate"

    def __init__(self, model: PeftModel, args: TrainingArguments | None = None, **kwargs: Any) -> None:
        if not isinstance(getattr(model, "base_model", None), WidModel):
            raise WidError(
                f"WidTrainer trains what get_wid_model returns, not a {type(model).__name__}. "
                "Call get_wid_model(teacher, WidConfig(...)) first, or use transformers' Trainer."
            )
        for parameter, rate in _rates(model, args).items():
            parameter.requires_grad_(rate is None or rate > 0)
        super().__init__(model=model, args=args, **kwargs)
        if self.place_model_on_device:  # the parameters came along, since they are the student's; buffers did not
            model.base_model.teacher.to(self.args.device)
        self.add_callback(_CalibrateFirst(self))
        self.add_callback(WidCallback(self))
        self._folds: HeldFolds | None = None
        wanted = getattr(self.args, "distillation", [])
        if wanted and self.args.n_gpu > 1:
            raise TrainingError(
                "Distillation does not work with nn.DataParallel: start one process per GPU (torchrun)."
            )
        self._labelled: LabelledPositions | None = None
        self._wants_loss_only = False
        self._distillation = Distillation(model, wanted, self.args.distillation_temperature) if wanted else None

    @property
    def student(self) -> PreTrainedModel:
        """The stock model whose weights are folded."""
        return self.model.base_model.model

    def train(self, resume_from_checkpoint: str | PathLike[str] | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does, and resume from whole checkpoints only.

        Args:
            resume_from_checkpoint: a checkpoint of this run, or True for its last whole one in `output_dir`; a warning
                names those that are skipped.
            **kwargs: what else `Trainer.train` takes.

        Raises:
            WidError: the checkpoint is not whole, or there is none.
            TrainingError: the loss is NaN or infinite.
        """
        # A model sharded by FSDP or DeepSpeed writes other files, which Trainer itself must judge.
        if resume_from_checkpoint and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            run = {"processes": self.args.world_size, "model_only": self.args.save_only_model}
            if resume_from_checkpoint is True:
                folder = Path(self.args.output_dir)
                resume_from_checkpoint = last_whole_checkpoint(folder, warn=self.is_world_process_zero(), **run)
            else:
                refuse_torn_checkpoint(Path(resume_from_checkpoint), **run)
            resume_from_checkpoint = str(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does; a checkpoint that is written over an older one does not look whole before it is."""
        if output_dir is not None and _internal_call:
            if self.args.should_save:
                begin_checkpoint(Path(output_dir))
            self.accelerator.wait_for_everyone()  # the others write their random states next
        super().save_model(output_dir, _internal_call)

    def calibration_batches(self) -> Iterator[dict[str, Any]]:
        """Yield batches of `calibration_samples` rows of the training set, the same in every process of a run.

        Raises:
            DataError: there is no training set.
        """
        config = self.model.peft_config[self.model.active_adapter]
        if self.train_dataset is None:
            raise DataError("There is no training set to calibrate on: pass train_dataset, or calibrate the model.")
        samples, size = config.calibration_samples, config.calibration_batch_size
        rows = self._calibration_rows(samples)
        collate = self._get_collator_with_removed_columns(self.data_collator, description="calibration")
        with torch.random.fork_rng():  # collators mask at random; training is to go on as if nothing had been drawn
            torch.manual_seed(self.args.seed)
            while batch := list(islice(rows, size)):
                yield dict(collate(batch))

    def _calibration_rows(self, samples: int) -> Iterator[Any]:
        if not hasattr(self.train_dataset, "__len__"):
            return islice(iter(self.train_dataset), samples)
        order = torch.randperm(len(self.train_dataset), generator=torch.Generator().manual_seed(self.args.seed))
        return (self.train_dataset[int(row)] for row in order[:samples])

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Let `Trainer` make the optimizer, then split its groups by learning rate."""
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            rates = _rates(self.model, self.args)
            optimizer.param_groups = [
                {**group, "params": params, "lr": group["lr"] if rate is None else rate}
                for group in optimizer.param_groups
                for rate in dict.fromkeys(rates.values())
                if (params := [p for p in group["params"] if rates[p] == rate])
            ]
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """Return the loss averaged over the labels of the whole optimizer step, and what is distilled while training.

        The loss of evaluation is the model's own, so that runs with and without distillation compare.
        """
        if self._distillation is None or not model.training:
            with self._on_labels(inputs) if self._wants_loss_only or not return_outputs else nullcontext():
                return self._own_loss(model, inputs, return_outputs, num_items_in_batch)
        given = dict(inputs)  # label smoothing takes labels out of inputs
        everywhere = return_outputs or self._distillation.labelled is None
        asked = nullcontext() if everywhere else self._on_labels(inputs, together=True)
        with asked as labelled, self._distillation.watching() as student:
            loss, student.output = self._own_loss(model, inputs, True, num_items_in_batch)
        student.labelled = bool(labelled)
        with self.accelerator.autocast():
            teacher = self._distillation.target(given)
        distilled = self._distillation.loss(student, teacher, given, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            distilled = distilled * self.accelerator.num_processes
        loss = loss + self.args.distillation_weight * distilled
        return (loss, student.output) if return_outputs else loss

    def _on_labels(self, inputs: dict[str, Any], *, together: bool = False) -> AbstractContextManager[Any]:
        """Let the head run on labelled positions only, unless others are asked for or a wrapper hides the model."""
        wrapped = self.args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.torch_compile
        asked = getattr(self.args, "full_logits", False) or self.compute_loss_func is not None
        if wrapped or asked or self.label_smoother is not None:
            return nullcontext()
        student = self.model.base_model.model
        if self._labelled is None or self._labelled.model is not student:  # it has shrunk
            self._labelled = LabelledPositions(self.model)
        return self._labelled.only(inputs, together=together)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Evaluate one batch; without metrics that look at logits, on labelled positions only."""
        self._wants_loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._wants_loss_only = False

    def _micro_batch(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        """Run one micro-batch on weights that were folded at the step's first, and go through the folds at its last."""
        if self._folds is None and self._may_hold_folds() and not self._folds_compiled:
            self._folds = HeldFolds(self.model.base_model.model)
            self._folds.hold(self._tokens_of_step(inputs))
        is_last = self.accelerator.sync_gradients
        if self._folds is not None and is_last:
            self._folds.open()
        try:
            loss = super()._micro_batch(model, inputs, num_items_in_batch)
            if self._folds is not None and is_last:
                self._folds.release()
                self._folds = None
        except BaseException:
            self._drop_folds()
            raise
        return loss

    @property
    def _folds_compiled(self) -> bool:
        """Whether folds are part of what is compiled, as they may be where each serves one forward."""
        return self.args.torch_compile and self.args.gradient_accumulation_steps == 1

    def _tokens_of_step(self, inputs: dict[str, Any]) -> int | None:
        """Return about how many tokens a whole optimizer step has, or None where tables are to be folded as a whole."""
        tokens = inputs.get(self.model.base_model.model.main_input_name)
        # A compiled forward would meet a table of other rows in every batch.
        if self.args.torch_compile or not isinstance(tokens, Tensor) or tokens.is_floating_point():
            return None
        return tokens.numel() * self.args.gradient_accumulation_steps

    def _drop_folds(self) -> None:
        if self._folds is not None:
            self._folds.drop()
            self._folds = None

    def _may_hold_folds(self) -> bool:
        # Reentrant checkpoints go through a fold once for every segment that uses it.
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        return self.args.n_gpu <= 1 and not (self.is_fsdp_enabled or self.is_deepspeed_enabled or reentrant)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as `Trainer` does, on weights that are folded once."""
        if not self._may_hold_folds():
            return super().evaluation_loop(*args, **kwargs)
        with folded_once(self.model.base_model.model):
            return super().evaluation_loop(*args, **kwargs)

    def create_model_card(self, *, tags: str | list[str] | None = None, **metadata: Any) -> None:
        """Write the adapter's card to `output_dir`, as `push_to_hub` asks; `Trainer`'s own would name no teacher.

        Args:
            tags: to be added to the card's own.
            **metadata: what else `Trainer.create_model_card` takes. `language`, `license` and `dataset` go before what
                the teacher's card says; the rest is known from the model.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        card = adapter_card(self.model, self.args.hub_model_id or folder.name)
        card.data["tags"] = [*card.data["tags"], *([tags] if isinstance(tags, str) else tags or [])]
        names = {"language": "language", "license": "license", "dataset": "datasets"}
        for name, entry in names.items():
            if metadata.get(name) is not None:
                card.data[entry] = metadata[name]
        card.save(folder / CARD_NAME)

    def _go_back(self, loss: float) -> None:
        self._drop_folds()
        super()._go_back(loss)


class _CalibrateFirst(TrainerCallback):
    """Makes the start before the first step, once a checkpoint to resume from has been loaded."""

    def __init__(self, trainer: WidTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wid_model = self.trainer.model.base_model
        if not wid_model.calibrated:
            wid_model.calibrate(self.trainer.calibration_batches())


def _rates(model: nn.Module, args: TrainingArguments | None) -> dict[nn.Parameter, float | None]:
    """Return the learning rate of every parameter; None stands for `args.learning_rate`."""
    compactors = {p for m in model.modules() if isinstance(m, Compaction) for p in m.parameters()}
    for_compactors = getattr(args, "compactor_learning_rate", None)
    for_teacher = getattr(args, "teacher_learning_rate", None)
    return {p: for_compactors if p in compactors else for_teacher for p in model.parameters()}
