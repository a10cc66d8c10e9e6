"""`WidTrainer`: transformers' `Trainer` with one learning rate for compactors and one for teacher weights.

Takes `Trainer`'s arguments; `model` is the result of `get_wid_model`. Only hooks that `Trainer` offers are overridden,
so callbacks, checkpoints, distribution and logging are those of `Trainer`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, get_last_checkpoint
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from ..adapter.adapter_state import gathered_state
from ..adapter.tuner import WidModel
from ..errors import ConfigError, TrainingError, WidError
from ..hub.cards import CARD_NAME, adapter_card
from ..layers import FoldCache, FoldPolicy, is_parted
from .calibrating import LAYERS_FIRST, calibrate_first, calibration_batches
from .callbacks import WidCallback
from .checkpoints import last_whole_checkpoint, refuse_torn_checkpoint
from .half import full_eval_dtype, restored_values
from .held_originals import AUTO
from .imitation import Imitating, refuse_moving_target
from .labelled_positions import LabelledPositions
from .losses.distillation import Distillation
from .one_start import refuse_unequal_starts
from .rates import freeze_by_rate, learning_rates, refuse_untrainable, warn_of_rate_without_effect
from .sharing import Originals, Units, refuse_sharing
from .task import Task, TaskScorer


class WidTrainer(Imitating):
    """Train a wid model: `Trainer` with learning rates for compactors and teacher weights.

    Its arguments are those of `Trainer`, in the same order; with `Seq2SeqTrainingArguments` those of `Seq2SeqTrainer`.
    With plain `TrainingArguments` compactors and teacher both learn at `learning_rate`. A rate of 0 freezes; weights
    that were frozen before, with `requires_grad_(False)`, stay frozen. The student's weights are folded once per
    optimizer step, for any number of micro-batches, and once per evaluation; if parameters are sharded or replicated
    (FSDP, DeepSpeed, `nn.DataParallel`), each forward folds. An uncalibrated model is calibrated on training rows
    before step 1, see `WidCallback`. If the loss is not finite, training stops before the optimizer's step, the weights
    go back to the last copy with a finite loss, and `TrainingError` says so. A copy is made every `logging_steps`
    steps, where `keep_last_good` says.

    Args:
        task: what the teacher is for, from `wid_hf.find_task`. It gives the data collator, unless there is another; the
            loss from the teacher, for models that have none of their own on rows without labels; and the figures of
            evaluations, under their names: `eval_agreement`.
        label_weight: of a loss from the teacher: w of `(1 - w) * that loss + w * the model's own loss on labels`.
        **kwargs: `dropout` and `keep_last_good` of `StudentTrainer`, and what else `Trainer` takes.

    Raises:
        WidError: the model is not a wid model.
        ConfigError: the teacher's weights would train, or be held in another dtype, and the task compares with them.
        TrainingError: from `train`, when the loss is NaN or infinite, or nothing would train.
    """

    rates = "compactor_learning_rate and teacher_learning_rate"

    def __init__(
        self,
        model: PeftModel | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        task: Task | None = None,
        label_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if model is not None:  # a model from model_init is checked when it is made
            _refuse_others(model)
        self._scorer = None if task is None else TaskScorer(task)
        if task is not None:
            if getattr(args, "teacher_dtype", AUTO) != AUTO:
                raise ConfigError(
                    "A task compares the student with its teacher in evaluations, which needs the teacher as it was: "
                    "leave teacher_dtype out."
                )
            if not others and kwargs.get("data_collator") is None:
                kwargs["data_collator"] = task.collator
            if not task.has_own_loss and label_weight < 1:
                refuse_moving_target(type(self).__name__, args)
                self.imitate(task.loss, task.reduction, label_weight)
        super().__init__(model, args, *others, **kwargs)
        freeze_by_rate(self.model, self.args)
        self.add_callback(WidCallback(self))
        self._folds: FoldCache | None = None
        self._labelled: LabelledPositions | None = None
        self._wants_loss_only = False
        self._distillation: Distillation | None = None
        self._units: Units | None = None
        self._originals: Originals | None = None
        self._bind()

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Return a new wid model by `model_init`, for the start of a training."""
        model = super().call_model_init(trial)
        _refuse_others(model)
        freeze_by_rate(model, self.args)  # before it may be sharded
        return model

    def _begin(self) -> None:
        super()._begin()
        self._bind()

    def _bind(self) -> None:
        """Set up everything that depends on the current model and arguments."""
        if self.place_model_on_device or (self.is_in_train and full_eval_dtype(self.args) is not None):
            self._place_teacher()
        wanted = getattr(self.args, "distillation", [])
        if not wanted:
            self._distillation = None
            return
        if self.args.n_gpu > 1:
            raise TrainingError(
                "Distillation does not work with nn.DataParallel: start one process per GPU (torchrun)."
            )
        given = self.model, tuple(wanted), self.args.distillation_temperature
        self.distillation_weight = self.args.distillation_weight
        if self._distillation is None or not self._distillation.is_of(*given):
            self._distillation = Distillation(*given)

    def _place_teacher(self) -> None:
        """Move the teacher's buffers to the device; its parameters are there, since they are the student's."""
        if not self.is_model_parallel:
            self.model.base_model.teacher.to(self.args.device)

    @property
    def wid_model(self) -> PeftModel:
        """The model that trains."""
        return self.model

    @property
    def student(self) -> PreTrainedModel:
        """The stock model whose weights are folded."""
        return self.model.base_model.model

    def train(
        self, resume_from_checkpoint: str | PathLike[str] | bool | None = None, *others: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train as `Trainer` does, and resume from whole checkpoints only.

        Args:
            resume_from_checkpoint: a checkpoint of this run, or True for its last whole one in `output_dir`; a warning
                names those that are skipped.
            *others: other arguments of `Trainer.train`.
            **kwargs: other arguments of `Trainer.train`.

        Raises:
            WidError: the checkpoint is not whole, or there is none.
            TrainingError: nothing would train, or the loss is NaN or infinite.
            DataError: the model is not calibrated, and the training data cannot calibrate it.
        """
        if self._scorer is not None and self.eval_dataset is not None and not isinstance(self.eval_dataset, dict):
            self._scorer.remember(self.eval_dataset, self.args)  # before the teacher may change
        # A model sharded by FSDP or DeepSpeed has other files, which Trainer itself must check.
        if resume_from_checkpoint and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            run = {"processes": self.args.world_size, "model_only": self.args.save_only_model}
            if resume_from_checkpoint is True:
                folder = Path(self.args.output_dir)
                resume_from_checkpoint = last_whole_checkpoint(folder, warn=self.is_world_process_zero(), **run)
            else:
                refuse_torn_checkpoint(Path(resume_from_checkpoint), **run)
            resume_from_checkpoint = str(resume_from_checkpoint)
        elif resume_from_checkpoint:
            resume_from_checkpoint = self._with_saved_adapter(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *others, **kwargs)

    def _with_saved_adapter(self, given: str | PathLike[str] | bool) -> str:
        """Load the adapter of a sharded training's checkpoint before the model is wrapped; return the checkpoint."""
        folder = get_last_checkpoint(self.args.output_dir) if given is True else str(given)
        if folder is None:
            raise TrainingError(f"There is no checkpoint in {self.args.output_dir} to resume from.")
        name = self.model.active_adapter
        place = Path(folder) if name == "default" else Path(folder) / name
        if not (place / ADAPTER_SAFE_WEIGHTS_NAME).is_file():
            raise TrainingError(f"{place} holds no {ADAPTER_SAFE_WEIGHTS_NAME}: it is no checkpoint of this model.")
        self.model.load_adapter(str(place), name, is_trainable=True)
        return folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint's weights; those of a sharded training were loaded before the model was sharded."""
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter as `Trainer` does; of a sharded model, gathered one tensor after the other."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        folder = output_dir if output_dir is not None else self.args.output_dir
        state = gathered_state(self.model, self.model.base_model.fingerprint, keeps=self.args.should_save)
        if self.args.should_save:
            self._save(folder, state_dict=state)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_best_model(self) -> None:
        """Load the best checkpoint, even of an adapter that is not named "default" and so is in a subfolder.

        `Trainer` ignores that folder, and would continue with the last weights.
        """
        name = self.model.active_adapter
        folder = Path(self.state.best_model_checkpoint or "") / name
        if name != "default" and (folder / ADAPTER_SAFE_WEIGHTS_NAME).is_file():
            self.model.load_adapter(str(folder), name)
        else:
            super()._load_best_model()

    def calibration_batches(self) -> list[dict[str, Any]]:
        """Return batches of `CalibrationConfig.samples` rows of the training set, the same in every process of a run.

        Raises:
            DataError: there is no training set.
        """
        return calibration_batches(self.model, self._loader(), self.args)

    def _loader(self) -> DataLoader | None:
        return None if self.train_dataset is None else self.get_train_dataloader()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Let `Trainer` make the optimizer, then split its groups by learning rate.

        Raises:
            TrainingError: nothing would train, or an optimizer was given for layers that are still to be chosen.
            DataError: layers are to be chosen, and the training data cannot calibrate the model.
        """
        refuse_sharing(self.accelerator, self.model, compares=self._runs_teacher)
        self._start_before_wrapping()
        freeze_by_rate(self.model, self.args)  # a hyperparameter search changes the arguments
        refuse_untrainable(self.model)
        warn_of_rate_without_effect(self.model, self.args)
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            rates = learning_rates(self.model, self.args)
            optimizer.param_groups = [
                {**group, "params": params, "lr": group["lr"] if rate is None else rate}
                for group in optimizer.param_groups
                for rate in dict.fromkeys(rates.values())
                if (params := [p for p in group["params"] if rates[p] == rate])
            ]
        if self.is_fsdp_enabled and not is_parted(self.model):
            asked = getattr(self.accelerator.state.fsdp_plugin, "transformer_cls_names_to_wrap", None)
            self._units, self._originals = Units(self.model, asked), Originals(self.model)
            self._units.open()
        return self.optimizer

    @property
    def _runs_teacher(self) -> bool:
        """Whether the loss runs the teacher."""
        return self._distillation is not None or self.imitation is not None

    def _start_before_wrapping(self) -> None:
        """Make the start where it must not wait until the model is wrapped for several processes, or has an optimizer.

        Raises:
            TrainingError: an optimizer was given for layers that are still to be chosen, or processes differ.
            DataError: the training data cannot calibrate the model.
        """
        waits = self.model.base_model.waits_for_layers
        if waits and self.optimizer is not None:
            raise TrainingError(LAYERS_FIRST)
        if waits or self.args.world_size > 1:
            calibrate_first(self.model, self._loader(), self.args)
            refuse_unequal_starts(self.model, self.args)
        if waits:  # the student was made anew, with other parameters
            self._distillation = None
            self._bind()

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Let `Trainer` make the scheduler; by now the model is sharded, if it shall be."""
        if self._units is not None and self._originals is not None:
            self._units.close()
            if not self._runs_teacher:  # or else it needs its weights whole
                tuner = self.model.base_model
                self._originals.follow(tuner.teachers, tuner.student_plan.trace.weights)
            self._units = self._originals = None
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss averaged over the labels of the whole optimizer step; in training, plus distillation.

        The loss of evaluation is the model's own, so that runs with and without distillation can be compared; that of a
        student that imitates its teacher is the loss from the teacher.
        """
        if self.imitation is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._distillation is None or not model.training:
            with self._on_labels(inputs) if self._wants_loss_only or not return_outputs else nullcontext():
                return self._own_loss(model, inputs, return_outputs, num_items_in_batch)
        given = dict(inputs)  # label smoothing removes labels from inputs
        everywhere = return_outputs or self._distillation.labelled is None
        positions = nullcontext() if everywhere else self._on_labels(inputs, together=True)
        with positions as labelled, self._distillation.watching() as student:
            loss, student.output = self._own_loss(model, inputs, True, num_items_in_batch)
        student.labelled = bool(labelled)
        with self.accelerator.autocast():
            teacher = self._distillation.target(given)
        distilled = self._part(self._distillation.loss(student, teacher, given), given)
        loss = loss + self.distillation_weight * distilled
        self._is_finite = False
        return (loss, student.output) if return_outputs else loss

    def _on_labels(self, inputs: dict[str, Any], *, together: bool = False) -> AbstractContextManager[Any]:
        """Let the head run on labelled positions only, unless all are required or a wrapper hides the model."""
        wrapped = self.args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.torch_compile
        required = getattr(self.args, "full_logits", False) or self.compute_loss_func is not None
        if wrapped or required or self.label_smoother is not None:
            return nullcontext()
        student = self.model.base_model.model
        if self._labelled is None or self._labelled.model is not student:  # it has shrunk
            self._labelled = LabelledPositions(self.model)
        return self._labelled.only(inputs, together=together)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Evaluate one batch; on labelled positions only, if no metric uses the logits."""
        self._wants_loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        finally:
            self._wants_loss_only = False

    def _micro_batch(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        """Run one micro-batch on weights folded at the step's first; gradients of the last go through the folds."""
        if self._folds is None and self._may_hold_folds() and not self._folds_compiled:
            self._folds = FoldCache(self.student)
            self._folds.keep(FoldPolicy.for_step(self._tokens_of_step(inputs)))
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
        """Whether folds are part of the compiled graph, as they may be if each is used in one forward only."""
        return self.args.torch_compile and self.args.gradient_accumulation_steps == 1

    def _tokens_of_step(self, inputs: dict[str, Any]) -> int | None:
        """Return about how many tokens a whole optimizer step has, or None if whole tables must be folded."""
        tokens = inputs.get(self.model.base_model.model.main_input_name)
        # A compiled forward would get a table with another number of rows in every batch.
        if self.args.torch_compile or not isinstance(tokens, Tensor) or tokens.is_floating_point():
            return None
        return tokens.numel() * self.args.gradient_accumulation_steps

    def _drop_folds(self) -> None:
        if self._folds is not None:
            self._folds.drop()
            self._folds = None

    def _may_hold_folds(self) -> bool:
        # Reentrant checkpoints run backward through a fold once for every segment that uses it.
        return self._reaches_folds and not (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)

    @property
    def _reaches_folds(self) -> bool:
        """Whether forwards run in this very model, neither replicated nor sharded."""
        return self.args.n_gpu <= 1 and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as `Trainer` does, on weights that are folded once.

        With `bf16_full_eval` or `fp16_full_eval` the folds are in half precision, like the merged student cast to it;
        the model's own values stay as they are.
        """
        if not self._reaches_folds:
            return super().evaluation_loop(*args, **kwargs)
        half = None if self.is_in_train else full_eval_dtype(self.args)
        if half is None:
            with FoldCache(self.student).keeping(FoldPolicy.for_evaluation()):
                return super().evaluation_loop(*args, **kwargs)
        if not self.is_model_parallel:
            self.model.to(self.args.device)
        self._place_teacher()
        with FoldCache(self.student).keeping(FoldPolicy.for_evaluation(half)), restored_values(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *others: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does; with a task, its figures are among the metrics."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, *others, **kwargs)
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if self._scorer is None or isinstance(rows, (dict, str)):  # each of several datasets comes by itself
            return metrics
        prefix = kwargs.get("metric_key_prefix", others[1] if len(others) > 1 else "eval")
        figures = self._scorer.score(self.model, rows, self.args)
        told = {f"{prefix}_{name}": value for name, value in figures.items()}
        self.log(told)
        return metrics | told

    def create_model_card(self, *, tags: str | list[str] | None = None, **metadata: Any) -> None:
        """Write the adapter's card to `output_dir`, for `push_to_hub`; `Trainer`'s card would not name the teacher.

        Args:
            tags: added to the card's own.
            **metadata: other arguments of `Trainer.create_model_card`. `language`, `license` and `dataset` have
                priority over the teacher's card; all others are ignored, since the model has them.
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

    def _keep_weights(self) -> None:
        if not self.is_deepspeed_enabled:  # whose parts are written over by its own copies
            super()._keep_weights()

    def _go_back(self, loss: float) -> None:
        self._drop_folds()
        if self.is_deepspeed_enabled:
            raise TrainingError(
                f"The loss became {loss} after {self.state.global_step} of {self.state.max_steps} steps, and training "
                f"stopped. With DeepSpeed no copy of better weights is kept: go on from the last checkpoint in "
                f"{self.args.output_dir}, and lower {self.rates}, or check the data for empty batches."
            )
        super()._go_back(loss)


def _refuse_others(model: nn.Module) -> None:
    """Refuse a model that is not a wid model."""
    if not isinstance(getattr(model, "base_model", None), WidModel):
        raise WidError(
            f"WidTrainer trains what get_wid_model returns, not a {type(model).__name__}. "
            "Call get_wid_model(teacher, WidConfig(...)) first, or use transformers' Trainer."
        )
