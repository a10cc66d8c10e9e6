"""Takes a model through a progressive schedule: at the teacher's widths first, at the student's in the end.

Takes a teacher, the plan of its student and a `WidSchedule`; makes the model that trains and changes it in place. The
tuner calls it; it knows neither PEFT nor trainers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from ..coupling import Plan, Trace
from ..coupling.index_sets import IndexSets
from ..errors import ConfigError, WidError
from ..layers import first_indices, install
from .masked_statistics import MaskedStatistics, check_wide
from .progress import Progress
from .schedule import WidSchedule
from .shrink import Moved, become, can_carry, carry, rewrap, take_over


class ProgressiveController:
    """Owns the one model of a progressive training and is in one of two phases, wide or narrow.

    Wide, the model has the teacher's sizes and square compactors, whose dropped rows fade; its statistics are taken
    over the kept indices. Narrow, it is the student. It becomes narrow once, at the end of the schedule or at a merge;
    only a checkpoint of the other phase takes it back, or ahead.

    Args:
        teacher: the teacher; its config is the wide model's.
        student_config: the narrow model's config.
        plan: the coupled dimensions.
        trace: the teacher's.
        schedule: how much is dropped at which step.
        empty_student: makes an instance of the teacher's class from a config, with weights of zero.

    Attributes:
        model: the model that trains, the same object in both phases.
        progress: the phase, which indices were dropped at which step, and their scores; all that is saved.

    Raises:
        PlanError: the wide model with dropped rows at zero is not the narrow one.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student_config: PretrainedConfig,
        plan: Plan,
        trace: Trace,
        schedule: WidSchedule,
        empty_student: Callable[[PreTrainedModel, PretrainedConfig], PreTrainedModel],
    ) -> None:
        self._teacher, self._student_config = teacher, student_config
        self._plan, self._trace = plan, trace
        self._empty_student = empty_student
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_hook: RemovableHandle | None = None
        self._wrapped: nn.Module | None = None
        self._warned = False
        self.progress = Progress(plan, schedule, teacher.device)
        self.model, trial = self._wide(), self._wide()
        self._statistics: MaskedStatistics | None = MaskedStatistics(self.model, plan, trace)
        sets = first_indices(plan)
        self._make_narrow(trial, sets)
        check_wide(self.model, trial, plan, trace, sets, self._statistics)

    @property
    def is_wide(self) -> bool:
        """Whether the model still has the teacher's widths."""
        return not self.progress.narrow

    @property
    def index_sets(self) -> IndexSets:
        """The teacher's indices that the model has; empty while it has all of them."""
        return {} if self.is_wide else self.progress.index_sets()

    def begin(
        self, total_steps: int | None, optimizer: torch.optim.Optimizer | None, wrapped: nn.Module | None
    ) -> None:
        """Fix what happens at which step, and which optimizer shrinks with the model; see `WidModel.wid_begin`.

        Raises:
            ConfigError: a schedule that does not end within training, is in shares of an unknown total, or needs an
                optimizer and has none.
        """
        self.progress.begin(total_steps)
        self._optimizer = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
        self._wrapped = wrapped
        self._leave_optimizer()
        schedule = self.progress.schedule
        if schedule.selection == "importance" or schedule.penalty == "adam_moment":
            if self._optimizer is None:
                raise ConfigError(
                    f"No optimizer was given, but selection={schedule.selection!r} with penalty={schedule.penalty!r} "
                    "reads gradients before each step. Pass it: model.wid_begin(..., optimizer=optimizer)."
                )
            self._optimizer_hook = self._optimizer.register_step_pre_hook(self._before_optimizer)

    def step(self, step: int) -> bool:
        """Do what the schedule says after optimizer step `step`, counted from 1; return whether the model shrank.

        Raises:
            ConfigError: see `begin`, which is called here without arguments if it was not called before.
            WidError: a step before the last one seen.
        """
        if self.progress.timeline is None:
            self.begin(None, None, None)
        if self.progress.advance(self.model, step) and self._statistics is not None:
            self._statistics.keep(self.progress.index_sets())
        if not self.is_wide or not self.progress.finished:
            return False
        if self._optimizer is None or not can_carry(self._optimizer):
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "The schedule is done, but the model stays at the teacher's widths: wid_begin was given no "
                    "optimizer, or one that shares its state among processes. Merging is still exact.",
                    stacklevel=3,
                )
            return False
        self._shrink(self.progress.index_sets())
        return True

    def finish(self, *, force: bool = False) -> None:
        """Shrink the wide model for a merge.

        Args:
            force: shrink although the schedule is not done; a warning says what is lost.

        Raises:
            WidError: the schedule is not done, and `force` is False.
        """
        progress = self.progress
        if not progress.finished:
            done = f"{int(progress.steps)} of {progress.due or 'an unknown number of'} steps of the schedule are done"
            if not force:
                raise WidError(
                    f"The model is still at the teacher's widths: {done}. Nothing was merged. Train on (WidTrainer, "
                    "WidCallback, or model.wid_step(step) after each step), or pass force=True to cut off the rest."
                )
            left = progress.figures(self.model)["wid/dropped_norm"]
            warnings.warn(
                f"Merged by force: {done}. Rows that had not faded to zero are cut off; those dropped so far have a "
                f"norm of {left:.3g}.",
                stacklevel=3,
            )
        final = progress.index_sets()
        if any(indices.shape[-1] != self._plan.targets[leaf] for leaf, indices in final.items()):
            final = progress.final_index_sets(self.model)
        self._shrink(final)

    def follow_device(self) -> None:
        """Take statistics on the device to which the model was moved."""
        if self._statistics is not None:
            self._statistics.keep(self.progress.index_sets())

    def match(self, saved: Mapping[str, Tensor]) -> bool:
        """Take over a saved progress, in the phase that it was saved in; return whether the model's phase changed.

        Compactors that are made for this have no trained values yet: the caller loads them next.

        Args:
            saved: the state dict of a `Progress`.
        """
        was_wide = self.is_wide
        self.progress.load_state_dict(saved)
        if was_wide and not self.is_wide:
            self._shrink(self.progress.index_sets())
        elif not was_wide and self.is_wide:
            self._widen()
        if self._statistics is not None:
            self._statistics.keep(self.progress.index_sets())
        return was_wide != self.is_wide

    def _shrink(self, sets: IndexSets) -> None:
        """Make the wide model narrow, with its optimizer and its wrapper."""
        moved = self._make_narrow(self.model, sets)
        if self._statistics is not None:
            self._statistics.remove()
            self._statistics = None
        self.progress.narrow.fill_(True)
        self._leave_optimizer()
        if self._optimizer is not None:
            carry(self._optimizer, moved)
        if self._wrapped is not None:
            rewrap(self._wrapped)

    def _widen(self) -> None:
        """Make the narrow model wide again, its compactors the identity."""
        before = self._empty_student(self._teacher, self._student_config)
        become(self.model, self._wide(), before, self._trace.aliases)
        self._statistics = MaskedStatistics(self.model, self._plan, self._trace)

    def _make_narrow(self, wide: PreTrainedModel, sets: IndexSets) -> dict[Tensor, Moved]:
        """Make `wide` narrow, in place; return what each of its compactors became."""
        narrow = self._installed(self._student_config, sets)
        moved = take_over(wide, narrow)
        become(wide, narrow, self._empty_student(self._teacher, self._teacher.config), self._trace.aliases)
        return moved

    def _wide(self) -> PreTrainedModel:
        """Return a model of the teacher's widths whose compactors are the identity."""
        return self._installed(self._teacher.config, {}, square=True)

    def _installed(self, config: PretrainedConfig, sets: IndexSets, *, square: bool = False) -> PreTrainedModel:
        """Return a model of this config whose weights are folded from the teacher's."""
        model = self._empty_student(self._teacher, config)
        weights, names = self._trace.weights, self._trace.aliases
        install(model, weights, names, self._plan, sets, shifts=False, square=square)
        return model

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self.is_wide:
            self.progress.before_optimizer(self.model, optimizer)

    def _leave_optimizer(self) -> None:
        if self._optimizer_hook is not None:
            self._optimizer_hook.remove()
            self._optimizer_hook = None
