"""The PEFT tuner: replaces a teacher by a student whose weights are folded from the teacher's.

PEFT calls `inject_adapter`, whether by `get_wid_model`, by `peft.get_peft_model` or by `PeftModel.from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..calibration import Calibration
from ..calibration.batches import Batch
from ..calibration.division import spread
from ..calibration.report import Dropped
from ..config import WidConfig
from ..coupling import Dim, Plan
from ..coupling.index_sets import IndexSets
from ..deprecation import renamed_arguments
from ..errors import ConfigError, WidError
from ..layers import compactor_axes, first_indices, install, student_weights
from ..planning.depth import Stack, source
from ..planning.empty_student import empty_student
from ..planning.student_plan import (
    Settled,
    StudentPlan,
    check_teacher,
    plan_sizes,
)
from ..planning.tracing import plain_attention
from ..progressive.controller import ProgressiveController
from ..progressive.progress import Progress
from ..progressive.schedule import WidSchedule
from ..progressive.shrink import rewrite
from ..stored_inputs import packed
from .adapter_state import fitting_state, proved_state, refuse_other_teacher, saved_state
from .calibrated_start import StartMaker, StartSteps
from .calibration_data import checked_batches, refuse_unused_data
from .calibration_guard import CalibrationGuard
from .fingerprint import Fingerprint
from .layer_guard import LayerGuard
from .layers_kept import layer_numbers
from .mapped_outputs import MappedOutputs
from .merge import generation_config_of, prepare_saving, remember_map, stock_model
from .module_settings import take_over_patches, take_over_training_settings
from .one_adapter import ONE_ADAPTER
from .placement import follow_student
from .plain_call import as_if_called_plainly
from .start_record import StartRecord
from .status import Student
from .teachers import Teachers
from .turned import TurnedStreams
from .wrapper import Wrapper

PROGRESS = "base_model.progress."
CALIBRATED = "base_model.calibrated"
TURNED = "base_model.turned."


class WidModel(MappedOutputs):
    """A stock student whose weights are computed from the teacher's by compactors, until it is merged.

    Attributes:
        model: the student, an instance of the teacher's class; what trains and what `forward` runs.
        student_plan: the plan that the student was made from.
        calibration: the report of the last `calibrate`, or None.
        controller: runs the schedule of a progressive training; None with the narrow schedule.
        progress: the state of a progressive training; None with the narrow schedule.
        wrapper: the `PeftModel` around this.
        calibrated: whether the start was made, or the config needs no calibration data for it, `()` bool.
        kept: the index set of the first output's last axis, `(k,)` int64; without meaning where that was turned.
        turned: the maps of streams that calibration turned.
    """

    calibrated: Tensor

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Plan the student, and replace `model`, the teacher, by it.

        Raises:
            TeacherError: the config is that of an adapter of another teacher.
            WidError: there is a student already, or PEFT puts weights on the meta device (low_cpu_mem_usage).
        """
        if hasattr(self, "student_plan"):
            raise WidError(ONE_ADAPTER.format(self.active_adapter))
        if nn.LayerNorm(1).weight.is_meta:  # its weight is made without random numbers
            raise WidError(
                "low_cpu_mem_usage=True saves no memory here: no weight of the teacher is copied. Leave it out."
            )
        check_teacher(model)
        config = copy(self.peft_config[adapter_name])  # the caller may use the same config for another student
        self._teachers = Teachers(model, config)
        if config.teacher_fingerprint is not None:
            refuse_other_teacher(config.teacher_fingerprint, self.fingerprint)
        with as_if_called_plainly(self.teacher.device):
            student_plan = plan_sizes(self.teacher, config, is_smaller=self._teachers.is_smaller)
            config.teacher_fingerprint = self.fingerprint.value
            config.overrides = deepcopy(config.overrides)
            config.example_inputs = _savable(config.example_inputs)
            self._config = student_plan.settled.config(config)  # it leaves nothing open when it is loaded
            self.peft_config[adapter_name] = self._config
            self.student = Student(self, adapter_name)
            self._make_student(student_plan)

    def _make_student(self, student_plan: StudentPlan) -> None:
        """Make the student at its start, with its guards."""
        config, teacher, trace, plan = self._config, self.teacher, student_plan.trace, student_plan.plan
        if isinstance(config.schedule, WidSchedule) and not student_plan.narrows:
            raise ConfigError(
                "A progressive schedule makes widths smaller, and no width of this student is: it has only fewer "
                "layers or tokens. Leave the schedule out, or give a size such as hidden_size."
            )
        self.student_plan = student_plan
        self.calibration: Calibration | None = None
        self.controller: ProgressiveController | None = None
        self.progress: Progress | None = None
        sets: IndexSets = first_indices(plan)
        if isinstance(config.schedule, WidSchedule):
            self.controller = ProgressiveController(
                teacher, student_plan.config, plan, trace, config.schedule, empty_student
            )
            self.progress, self.model = self.controller.progress, self.controller.model
            sets = self.controller.index_sets
        else:
            self.model = empty_student(teacher, student_plan.config)
            install(self.model, trace.weights, trace.aliases, plan, sets, shifts=config.init == "calibrated")
        take_over_training_settings(teacher, self.model)
        take_over_patches(teacher, self.model)
        # Buffers, because a run that is resumed must know both.
        self.register_buffer("calibrated", torch.tensor(not config.needs_data, device=teacher.device))
        self.register_buffer("kept", self._kept(sets).to(teacher.device))
        if self.stacks:
            self.register_buffer("kept_layers", layer_numbers(self.stacks).to(teacher.device))
        self.turned = TurnedStreams(plan)
        matrices = [compactor.matrix for compactor, _ in compactor_axes(self.model, plan)]
        self.wrapper = Wrapper(self)
        self._layer_guard = LayerGuard(self.model, teacher, trace.aliases)
        self._calibration_guard = CalibrationGuard(config, matrices, self._is_calibrated)
        self._start = StartRecord(self.model, student_plan, self.fingerprint)
        self.model.register_forward_pre_hook(self._before_forward)
        if config.inference_mode:  # loaded without is_trainable=True
            self.model.requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WidModel:
        """Move or cast this model as any module; what its teacher does not share with it follows to its device."""
        super()._apply(fn, recurse)
        self._follow_device()
        return self

    def _follow_device(self) -> None:
        if hasattr(self, "student_plan"):
            follow_student(self.model, self.teacher, dict.fromkeys(self._teachers.models), self.student_plan.trace)
            if self.controller is not None:
                self.controller.follow_device()

    @property
    def plan(self) -> Plan:
        """The coupled dimensions with their teacher's and student's sizes."""
        return self.student_plan.plan

    @property
    def settled(self) -> Settled:
        """Which sizes were decided on for the teacher, and why."""
        return self.student_plan.settled

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher; the student is folded from its tensors, so it changes if they train.

        Where the student has fewer layers, or a head of its own, it is a model on the given one's tensors that has
        these layers and that head.
        """
        return self._teachers.planned

    @property
    def whole_teacher(self) -> PreTrainedModel:
        """The teacher with all of its layers, on the same tensors; `teacher` itself where the student has them all."""
        return self._teachers.whole

    @property
    def teachers(self) -> tuple[PreTrainedModel, ...]:
        """Every model on the teacher's tensors: as it was given, with the tokens that stay, with the layers as well."""
        return self._teachers.models

    @property
    def waits_for_layers(self) -> bool:
        """Whether calibration has still to choose the layers that stay, and will make the student anew from these."""
        return self._config.needs_data and not self._is_calibrated() and self._teachers.has_choice

    def teacher_place(self, name: str) -> str:
        """Return the name that the whole teacher has for a module of the student."""
        return source(name, self.stacks)

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The layers that stay, of each list of layers that becomes shorter; empty if all stay."""
        return self._teachers.stacks

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the teacher's weights when the student was planned."""
        return self._teachers.fingerprint

    @property
    def is_wide(self) -> bool:
        """Whether a progressive training still has the teacher's widths."""
        return self.controller is not None and self.controller.is_wide

    def wid_begin(
        self,
        total_steps: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        wrapped: nn.Module | None = None,
    ) -> None:
        """Prepare a progressive schedule, before the first step or after a checkpoint was loaded.

        `WidCallback` and `WidTrainer` do this. With the narrow schedule it changes nothing.

        Args:
            total_steps: optimizer steps of the whole training, if the schedule does not say.
            optimizer: shrinks with the model. Without it the model stays at the teacher's widths, with dropped rows at
                zero.
            wrapped: the `DistributedDataParallel` around the model, if there is one; it is set up again when the
                model shrinks.

        Raises:
            ConfigError: a schedule that does not end within training, is in shares of an unknown total, or needs an
                optimizer and has none.
        """
        if self.controller is not None:
            self.controller.begin(total_steps, optimizer, wrapped)

    def wid_step(self, step: int) -> bool:
        """Do what the schedule says after optimizer step `step`, counted from 1; return whether the model shrank.

        When it shrinks, the optimizer given to `wid_begin` holds the narrow compactors and their moments from then on.
        With the narrow schedule this changes nothing.

        Raises:
            ConfigError: see `wid_begin`, which is called here without arguments if it was not called before.
            WidError: a step before the last one seen.
        """
        shrank = self.controller is not None and self.controller.step(step)
        if shrank:
            self._follow_phase()
        return shrank

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        force: bool = False,
    ) -> PreTrainedModel:
        """Write the folded weights into a fresh stock model: the student, which does not need wid_hf.

        Its outputs equal the outputs of this model exactly: it has the tensors that training used.

        Args:
            progressbar: has no effect; PEFT's tuners accept it.
            safe_merge: refuse to merge weights that are not finite.
            adapter_names: None, or a list of the one adapter.
            force: merge although the schedule is not done or calibration is missing, with a warning; dropped rows that
                are not yet zero are lost.

        Returns:
            An instance of the teacher's class with the student's config.

        Raises:
            WidError: the start needs calibration data and got none, the schedule is not done, `safe_merge` found NaN,
                layers were replaced, the sizes in `config` are not those of the weights, or there is no adapter of that
                name.
        """
        if adapter_names is not None:
            self._refuse_other_names(adapter_names)
        self._calibration_guard.before_merge(force)
        self._layer_guard.check(self.wrapper.find())
        with as_if_called_plainly(self.teacher.device):
            if self.controller is not None and self.controller.is_wide:
                self.controller.finish(force=force)
                self._follow_phase()
            names = self.student_plan.trace.aliases
            weights = student_weights(self.model, names)
            if safe_merge and (bad := [n for n, w in weights.items() if not torch.isfinite(w).all()]):
                raise WidError(f"These merged weights are not finite: {', '.join(bad[:5])}. Nothing was merged.")
            student = stock_model(self.teacher, self._seen("config"), weights, names)
        student.generation_config = generation_config_of(
            self._seen("generation_config"), student.config, self.teacher.config
        )
        take_over_training_settings(self.model, student)
        remember_map(student, self.output_map)
        prepare_saving(student, self.output_map if self.outputs == "turned" else None)
        return student.train(self.model.training)

    def unload(self) -> PreTrainedModel:
        """Return the teacher, with all of its layers and tokens."""
        return self._teachers.unchanged

    @renamed_arguments(lifts="reconstruction", spectra="head_svd", basis="pca")
    def calibrate(
        self,
        batches: Iterable[Batch],
        *,
        reconstruction: bool = True,
        head_svd: bool = True,
        pca: bool = True,
        quick: bool = False,
        reset: bool = False,
        folder: str | Path | None = None,
    ) -> None:
        """Set the start of every compactor from the activations of teacher and student on `batches`.

        With `init="calibrated"` index sets are selected, attention heads are rotated by head SVD, and layer-wise least
        squares fit each weight's columns so that its input in the teacher is reconstructed from its input in the
        student. A residual stream that is proved to allow it is turned: it keeps combinations of the teacher's indices,
        if that brings the student nearer to the teacher on held-out batches than indices do. The head of a masked
        language model is then fitted by gradient, and with `CalibrationConfig.refine` each layer is refined. With
        `init="identity"` only index sets are selected. The report is in `calibration`, the turned streams are in
        `turned`.

        Args:
            batches: keyword dictionaries for the teacher's forward, several, so that a part can be held out; padding is
                left out by `attention_mask`. Labels are used only if a sequence-to-sequence model makes its decoder's
                inputs from them.
            reconstruction: False leaves out all least squares, to measure their effect.
            head_svd: False selects indices inside heads.
            pca: False turns no stream and selects indices of each, without a trial.
            quick: True turns streams where that is possible, without a trial, and trains no head: to compare sizes in
                about half the time.
            reset: True discards what compactors have learned so far.
            folder: where refinement saves every layer that is finished (`CalibrationConfig.refine`); a later call with
                the same teacher, sizes and batches goes on behind them.

        Raises:
            DataError: there is no batch or only padding, too few tokens, or activations are not finite.
            OutputError: `folder` holds the refinement of another start, or cannot be written.
            ConfigError: `init="identity"` with `selection="first"`, which no data changes.
            WidError: the model is no longer at its start, and `reset` is False.
        """
        config = self._config
        if self.controller is not None:
            raise ConfigError(
                "calibrate() has no effect with a progressive schedule, which starts as the teacher: train it, or make "
                'the model with schedule="narrow".'
            )
        refuse_unused_data(config)
        self._follow_device()  # a wrapper may have moved the student's tensors one by one
        if not reset and not self._start.is_untouched(self._is_calibrated()):
            raise WidError(
                "This model's weights are not those of its start: it was trained, loaded or cast since. calibrate() "
                "would lose these changes. To lose them, call calibrate(batches, reset=True)."
            )
        batches = spread(checked_batches(batches))
        dropped = self._choose_layers(batches)
        maker = StartMaker(self._teachers, self.model, self.student_plan, config, batches)
        with plain_attention(self.teacher), plain_attention(self.model):
            start = maker.closed_form(StartSteps(reconstruction, head_svd, pca, quick))
            self.kept.copy_(self._kept(start.index_sets))
            self._turn(start.maps)
            report = start.report
            if not quick:
                sets, place = start.index_sets, Path(folder) if folder is not None else None
                report = maker.refined(start, lambda dim: self._axis_map(dim, sets), place)
        self.calibration = replace(report, dropped=dropped) if config.init == "calibrated" else None
        self.calibrated.fill_(True)
        self._calibration_guard.open()
        self._start.note()

    def _choose_layers(self, batches: Sequence[Batch]) -> tuple[Dropped, ...]:
        """Choose the layers that stay, if the request leaves that open, and make the student anew from these."""
        if not self._teachers.has_choice:
            return ()
        stacks, dropped = self._teachers.chosen(batches, self._config)
        self._keep_layers(stacks)
        return dropped

    def _keep_layers(self, stacks: tuple[Stack, ...]) -> None:
        """Make the student anew from other layers of the teacher."""
        around, whole = self.wrapper.known, self.whole_teacher
        with as_if_called_plainly(whole.device), plain_attention(whole):
            self._teachers.keep(stacks, self._config)
            self._make_student(plan_sizes(self.teacher, self._config, is_smaller=True))
            if around is not None:
                self.wrapper.remember(around)

    def _is_calibrated(self) -> bool:
        return bool(self.calibrated)

    def _before_forward(self, *_: Any) -> None:
        """Refuse training that could not be merged; warn of a forward before calibration."""
        trains = self.model.training and torch.is_grad_enabled()
        if trains and not torch.compiler.is_compiling():
            self._layer_guard.check(self.wrapper.known)
        self._calibration_guard.before_forward(trains)

    def _turn(self, maps: Mapping[Dim, Tensor]) -> None:
        """Note which leaves the start has turned, each with its map `(k, n)`; all others keep indices."""
        self.turned.replace({leaf: matrix.to(self.kept.device, self._map_dtype) for leaf, matrix in maps.items()})

    def _follow_phase(self) -> None:
        """Update everything that depends on the widths after a progressive model has changed them."""
        assert self.controller is not None
        self.kept = self._kept(self.controller.index_sets).to(self.kept.device)
        assigned = self._seen("config")
        if not self.is_wide and isinstance(assigned, PretrainedConfig) and assigned is not self.model.config:
            rewrite(assigned, self.student_plan.config, self.teacher.config)

    def _seen(self, name: str) -> Any:
        """Return an attribute of the student as its user sees it."""
        return self.wrapper.attribute(name, self.model)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: PeftModel,
        config: WidConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        return saved_state(model, config, model.base_model.fingerprint, state_dict)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: PeftModel, config: WidConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        tuner = model.base_model
        tuner.wrapper.remember(model)
        tuner._follow_layers(state_dict)
        proved = proved_state(config, tuner.fingerprint, state_dict)
        tuner._follow_saved(proved)  # compactors have other shapes once a progressive training is narrow
        return fitting_state(model, config, tuner.fingerprint, proved)

    def _follow_layers(self, state: Mapping[str, Tensor]) -> None:
        """Keep the layers that the adapter in `state` has, if they were chosen on data there and are open here."""
        stacks = self._teachers.saved(state)
        if stacks != self.stacks:
            self._keep_layers(stacks)

    def _follow_saved(self, state: dict[str, Tensor]) -> None:
        """Become calibrated or not, turned or not, wide or narrow, as the adapter is that `state` comes from."""
        if CALIBRATED in state:
            self._calibration_guard.follow_loaded(bool(state[CALIBRATED]))
        self.turned.follow(_below(TURNED, state), self.kept.device)
        if self.controller is not None and self.controller.match(_below(PROGRESS, state)):
            self._follow_phase()


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _savable(inputs: Any) -> dict[str, Any] | None:
    """Return example inputs as a config can hold them; None if no file can hold them (to be given again on loading)."""
    with suppress(ConfigError):
        return packed(inputs) if inputs is not None else None
    return None
