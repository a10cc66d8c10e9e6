"""The PEFT tuner: puts a student whose weights are folded from the teacher's in the teacher's place.

PEFT calls `inject_adapter`; users call `get_wid_model`, then `merge_and_unload` on what it returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any, ClassVar

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..calibration import Calibration, calibrated_start
from ..compaction import Compaction, first_indices, folded_weights, install
from ..config import WidConfig
from ..coupling import Plan
from ..coupling.selection import IndexSets, axis_indices
from ..coupling.trace import aliases, named_weights
from ..errors import ConfigError, WidError
from ..progressive.progress import Progress
from ..progressive.schedule import WidSchedule
from ..progressive.shrink import can_carry, carry, rewrap, take_over
from ..progressive.wide import KeptStatistics, check_wide
from ..student import Planned, Settled, check_teacher, empty_student, plan_student
from .fingerprint import Fingerprint
from .saved import fitting_state, proved_state, refuse_other_teacher, saved_state
from .status import Student

Batch = Mapping[str, Any]
PROGRESS = "base_model.progress."

ONE_ADAPTER = (
    "A wid model is one student with one adapter, which cannot be added to or deleted. Call "
    "get_wid_model on a fresh teacher for another student, or unload() for the teacher."
)
IN_PLACE = (
    "A student has other sizes than its teacher, so that it cannot {} in place: merge_and_unload() returns the student "
    "as a stock model, unload() the teacher."
)


class WidModel(BaseTuner):
    """A stock student whose weights are computed from the teacher's by compactors.

    Attributes:
        model: the student, an instance of the teacher's class; what trains and what `forward` runs.
        teacher: the teacher; its weights are the very tensors that the student is folded from.
        plan: the coupled dimensions with their sizes.
        fingerprint: of the teacher's weights when the student was planned.
        calibration: what the last `calibrate` found, or None.
        progress: where a progressive training stands; None with the narrow schedule.
    """

    calibrated: Tensor
    kept: Tensor
    prefix = "wid_"
    tuner_layer_cls = Compaction
    uses_shared_state = True  # PEFT then refuses inject_adapter_in_model, which expects that the teacher is changed
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Plan the student and put it in the place of `model`, the teacher.

        Raises:
            TeacherError: the config is that of an adapter of another teacher.
            WidError: there is a student already, or PEFT was told to make weights on the meta device.
        """
        if hasattr(self, "_planned"):
            raise WidError(ONE_ADAPTER)
        if nn.LayerNorm(1).weight.is_meta:  # its weight is made without random numbers
            raise WidError(
                "low_cpu_mem_usage=True has nothing to save here: no weight of the teacher is copied. Drop it."
            )
        check_teacher(model)
        config = self.peft_config[adapter_name]
        planned = config.__dict__.pop("_planned", None)
        # A copy, since the caller may make another student by the same config.
        self.peft_config[adapter_name] = config = copy(config)
        self.fingerprint = Fingerprint.of(named_weights(model), aliases(model))
        if config.teacher_fingerprint is not None:
            refuse_other_teacher(config.teacher_fingerprint, self.fingerprint)
        config.teacher_fingerprint = self.fingerprint.value
        planned = planned or plan_student(model, config)
        self.peft_config[adapter_name] = planned.settled.config(config)  # leaves nothing open, whatever loads it
        config = self.peft_config[adapter_name]
        # Kept out of the module tree: the student's originals are the teacher's parameters already.
        self._planned = (planned, model)
        self.model = planned.student
        self._config = config
        self.student = Student(self, adapter_name)
        self._warned = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._wrapped: tuple[nn.Module, ...] = ()  # a tuple, since a module would become a part of this one
        self._statistics: KeptStatistics | None = None
        self._listening: RemovableHandle | None = None
        self.calibration: Calibration | None = None
        self.progress: Progress | None = None
        sets: IndexSets = first_indices(planned.plan)
        if isinstance(config.schedule, WidSchedule):
            self.progress = Progress(planned.plan, config.schedule, self.teacher.device)
            self._statistics = self._widen()
            trial = self._installed(empty_student(model, planned.student.config), sets)
            check_wide(self.model, trial, planned.plan, planned.trace, sets, self._statistics)
            sets = {}
        else:
            self.model = self._installed(planned.student, sets)
            self.model.register_forward_pre_hook(self._warn_once)
        # Buffers, because a run that is resumed must know both.
        self.register_buffer("calibrated", torch.tensor(not config.needs_data))
        self.register_buffer("kept", self._kept(sets))
        if config.inference_mode:  # loaded without is_trainable=True
            self.model.requires_grad_(False)

    @property
    def plan(self) -> Plan:
        """The coupled dimensions with their teacher's and student's sizes."""
        return self._planned[0].plan

    @property
    def settled(self) -> Settled:
        """Which sizes the config came to mean for the teacher, and why."""
        return self._planned[0].settled

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher. If its weights are trained, this is the trained one."""
        return self._planned[1]

    @property
    def is_wide(self) -> bool:
        """Whether a progressive training still has the teacher's widths."""
        return self.progress is not None and not self.progress.narrow

    def kept_outputs(self) -> list[int]:
        """Return which coordinates of the teacher's first output (last axis) the student's started as, or keeps now."""
        if self.progress is not None and self.is_wide:
            return self._kept(self.progress.kept()).tolist()
        return self.kept.tolist()

    def wid_begin(
        self,
        total_steps: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        wrapped: nn.Module | None = None,
    ) -> None:
        """Make a progressive schedule ready, before the first step or after a checkpoint was loaded.

        `WidCallback` and `WidTrainer` do this. With the narrow schedule it changes nothing.

        Args:
            total_steps: optimizer steps of the whole training, if the schedule does not say.
            optimizer: carried along when the model shrinks. Without it the model stays at the teacher's widths, its
                dropped rows at zero.
            wrapped: the `DistributedDataParallel` around the model, if there is one; it is set up again when the
                model shrinks.

        Raises:
            ConfigError: a schedule that does not end within training, in shares of an unknown total, or that needs
                an optimizer and has none.
        """
        if self.progress is None:
            return
        self.progress.begin(total_steps)
        self._optimizer = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
        self._wrapped = (wrapped,) if wrapped is not None else ()
        schedule = self.progress.schedule
        if self._listening is not None:
            self._listening.remove()
        if schedule.selection == "importance" or schedule.penalty == "adam_moment":
            if self._optimizer is None:
                raise ConfigError(
                    f"selection={schedule.selection!r} with penalty={schedule.penalty!r} looks at gradients before "
                    "each step: pass model.wid_begin(..., optimizer=optimizer)."
                )
            self._listening = self._optimizer.register_step_pre_hook(self._before_optimizer)

    def wid_step(self, step: int) -> bool:
        """Do what the schedule has due after optimizer step `step`, counted from 1; return whether the model shrank.

        When it shrinks, the optimizer given to `wid_begin` goes on with the narrow compactors and their moments.
        With the narrow schedule this changes nothing.

        Raises:
            ConfigError: see `wid_begin`, which is called without arguments if nobody did.
            WidError: a step before the last one seen.
        """
        if self.progress is None:
            return False
        if self.progress.timeline is None:
            self.wid_begin()
        if self.progress.advance(self.model, step) and self._statistics is not None:
            self._statistics.keep(self.progress.kept())
        if not self.is_wide or not self.progress.finished:
            return False
        if self._optimizer is None or not can_carry(self._optimizer):
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "The schedule is done, but the model stays at the teacher's widths: no optimizer was given to "
                    "wid_begin, or one that shares its state among processes. Merging is exact all the same.",
                    stacklevel=2,
                )
            return False
        self._shrink(self.progress.kept())
        return True

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None,
        force: bool = False,
    ) -> PreTrainedModel:  # fmt: skip
        """Write the folded weights into a fresh stock model: the student, free of wid_hf.

        Its outputs equal the outputs of this model exactly: the tensors are those that training used.

        Args:
            progressbar: accepted for PEFT's sake; the merge takes no noticeable time.
            safe_merge: refuse to merge weights that are not finite.
            adapter_names: None, or a list of the one adapter.
            force: merge although the schedule is not done; what is left of dropped rows is lost, with a warning.

        Returns:
            An instance of the teacher's class with the student's config.

        Raises:
            WidError: the start needs calibration data and was never given any, the schedule is not done,
                `safe_merge` found NaN, or there is no adapter of that name.
        """
        if adapter_names not in (None, [self.active_adapter]):
            raise WidError(ONE_ADAPTER)
        if not self.calibrated:
            raise WidError(f"{self._uncalibrated()} Nothing was merged.")
        if self.progress is not None and self.is_wide:
            self._finish(self.progress, force)
        planned, teacher = self._planned
        weights = folded_weights(self.model, planned.trace.aliases)
        if safe_merge and (bad := [n for n, w in weights.items() if not torch.isfinite(w).all()]):
            raise WidError(f"These merged weights are not finite: {', '.join(bad[:5])}. Nothing was merged.")
        student = empty_student(teacher, self.model.config)
        _fill(student, weights, planned.trace.aliases)
        return student.train(self.model.training)

    def unload(self) -> PreTrainedModel:
        """Return the teacher."""
        return self.teacher

    def calibrate(
        self, batches: Iterable[Batch], *, lifts: bool = True, spectra: bool = True, basis: bool = True
    ) -> None:
        """Set the start of every compactor from the teacher's activations on `batches`; training so far is undone.

        With `init="calibrated"` indices are chosen, the inside of attention heads is turned to what matters most,
        and each weight's columns are fitted so that it reads from the student's stream what the teacher reads. A
        stream that is proved to meet only RMS norms and matrices keeps its principal directions in place of indices.
        With `init="identity"` only indices are chosen.

        Args:
            batches: keyword dictionaries for the teacher's forward; padding is left out by `attention_mask`, and
                labels are not used.
            lifts: False leaves the fitting of columns out, to see what it is worth.
            spectra: False leaves the turning of heads out.
            basis: False keeps indices of every stream.

        Raises:
            DataError: there is no batch or nothing but padding, too few tokens, or activations are not finite.
            ConfigError: `init="identity"` with `selection="first"`, which no data changes.
        """
        planned, teacher = self._planned
        config = self._config
        if self.progress is not None:
            raise ConfigError("A progressive schedule starts at the identity, which no calibration data changes.")
        _refuse_unused_data(config)
        solved = config.init == "calibrated"
        sets, found = calibrated_start(
            teacher, self.model, planned.trace, planned.plan, batches, selection=config.selection,
            lifts=lifts and solved, spectra=spectra and solved, basis=basis and solved, ridge=config.ridge,
        )  # fmt: skip
        self.calibration = found if solved else None
        self.kept.copy_(self._kept(sets))
        self.calibrated.fill_(True)

    def _installed(self, student: PreTrainedModel, sets: IndexSets, *, square: bool = False) -> PreTrainedModel:
        """Return `student` with weights that are folded from the teacher's."""
        planned, _ = self._planned
        install(
            student, planned.trace.weights, planned.trace.aliases, planned.plan, sets,
            shifts=self._config.init == "calibrated", square=square,
        )  # fmt: skip
        return student

    def _widen(self) -> KeptStatistics:
        """Put a model of the teacher's widths in place, its compactors the identity; return its statistics."""
        planned, teacher = self._planned
        self.model = self._installed(empty_student(teacher, teacher.config), {}, square=True)
        return KeptStatistics(self.model, planned.plan, planned.trace)

    def _shrink(self, sets: IndexSets) -> None:
        """Put the narrow model in the wide one's place, and all that trains with it."""
        assert self.progress is not None
        planned, teacher = self._planned
        wide = self.model
        narrow = self._installed(empty_student(teacher, planned.student.config), sets)
        moved = take_over(wide, narrow)
        narrow.peft_config = wide.peft_config
        self.model = narrow
        self._statistics = None
        self.progress.narrow.fill_(True)
        self.kept = self._kept(sets).to(self.kept.device)
        if self._listening is not None:
            self._listening.remove()
        if self._optimizer is not None:
            carry(self._optimizer, moved)
        for wrapped in self._wrapped:
            rewrap(wrapped)

    def _finish(self, progress: Progress, force: bool) -> None:
        """Shrink for a merge, if the schedule is done or the caller insists."""
        if not progress.finished:
            done = f"{int(progress.steps)} of {progress.due or 'an unknown number of'} steps of the schedule are done"
            if not force:
                raise WidError(
                    f"The model is still at the teacher's widths: {done}. Nothing was merged. Train on (WidTrainer, "
                    "WidCallback, or model.wid_step(step) after each step), or pass force=True to cut off what is left."
                )
            left = progress.figures(self.model)["wid/dropped_norm"]
            warnings.warn(
                f"Merged by force: {done}; rows that should have gone to zero first are cut off, those dropped so far "
                f"with a norm of {left:.3g}.",
                stacklevel=3,
            )
        final = progress.kept()
        if any(indices.shape[-1] != self.plan.targets[leaf] for leaf, indices in final.items()):
            final = progress.chosen(self.model)
        self._shrink(final)

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.progress is not None and self.is_wide:
            self.progress.before_optimizer(self.model, optimizer)

    def _match(self, saved: Mapping[str, Tensor]) -> None:
        """Be wide or narrow, with the index sets, as the checkpoint `saved` is that is about to be loaded."""
        assert self.progress is not None
        state = {name.removeprefix(PROGRESS): t for name, t in saved.items() if name.startswith(PROGRESS)}
        was_narrow = bool(self.progress.narrow)
        self.progress.load_state_dict(state)
        if bool(self.progress.narrow) and not was_narrow:
            self._shrink(self.progress.kept())
        elif not self.progress.narrow:
            if was_narrow:
                adapters = self.model.peft_config
                self._statistics = self._widen()
                self.model.peft_config = adapters
                self.kept = self._kept({}).to(self.kept.device)
            if self._statistics is not None:
                self._statistics.keep(self.progress.kept())

    def _kept(self, sets: IndexSets) -> Tensor:
        return torch.tensor(axis_indices(self.plan, self._planned[0].trace.output_dims[0][-1], sets))

    def _uncalibrated(self) -> str:
        how = f"init={self._config.init!r}, selection={self._config.selection!r}"
        return (
            f"This model was made with {how} but has seen no calibration data. Call model.calibrate(batches), "
            'pass calibration_data to get_wid_model, or set init="identity" and selection="first".'
        )

    def _warn_once(self, *_: Any) -> None:
        if not self.calibrated and not self._warned:
            self._warned = True
            warnings.warn(f"{self._uncalibrated()} Until then it only selects indices.", stacklevel=2)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("WID replaces the whole model in inject_adapter, not layer by layer.")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Do nothing: compactors are float32 from the start."""

    def delete_adapter(self, adapter_name: str) -> None:
        """Refuse: without its compactors there is no student."""
        raise WidError(ONE_ADAPTER)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Accept the one adapter that there is."""
        if adapter_name not in (self.active_adapter, [self.active_adapter]):
            raise WidError(ONE_ADAPTER)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let the compactors train, or freeze them; the teacher's weights stay as they are."""
        if adapter_names not in (self.active_adapter, [self.active_adapter], (self.active_adapter,)):
            raise WidError(ONE_ADAPTER)
        self.student.compactions.requires_grad_(requires_grad)

    def disable_adapter_layers(self) -> None:
        """Refuse: the student without compactors is the teacher."""
        raise WidError(f"{IN_PLACE.format('be switched off')} Its outputs are those of model.base_model.teacher.")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Refuse: the product has other sizes than the teacher's weights."""
        raise WidError(IN_PLACE.format("be merged"))

    def unmerge_adapter(self) -> None:
        """Refuse: nothing can have been merged."""
        raise WidError(IN_PLACE.format("be merged or unmerged"))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return False: no sum of the teacher's weights and a LoRA has a student's sizes."""
        return False

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key  # no key holds one; an adapter named "weight" must not change those that do hold that word

    @classmethod
    def _get_adapter_state_dict(
        cls, model: PeftModel, config: WidConfig, adapter_name: str, state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:  # fmt: skip
        return saved_state(model, config, model.base_model.fingerprint, state_dict)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: PeftModel, config: WidConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        tuner = model.base_model
        held = proved_state(config, tuner.fingerprint, state_dict)
        if tuner.progress is not None:  # compactors have other shapes once a progressive training is narrow
            tuner._match(held)
        return fitting_state(model, tuner.fingerprint, held)


def get_wid_model(
    model: PreTrainedModel,
    config: WidConfig,
    *,
    calibration_data: Iterable[Batch] | None = None,
    example_inputs: Batch | None = None,
    verify: bool = False,
    adapter_name: str = "default",
) -> PeftModel:
    """Return a model that trains as the small student and is folded from the big teacher.

    The teacher is not copied: its tensors are the originals from which the student's weights are computed
    at each step, and training them (learning rate above 0) changes the teacher.

    Args:
        model: the teacher, any stock `PreTrainedModel` with weights.
        config: the student's sizes.
        calibration_data: keyword dictionaries for the teacher's forward, a few hundred texts in all; labels are
            not used. Without it, call `calibrate` later, or let `WidTrainer` take it from the training set.
        example_inputs: keyword arguments for one forward of the teacher, if those made from its config
            do not fit.
        verify: prove the coupled dimensions by permutation on the real weights first.
        adapter_name: PEFT's name for the adapter.

    Returns:
        A `PeftModel`, as `peft.get_peft_model(model, config)` returns.

    Raises:
        TeacherError: the model is wrapped, on the meta device, or no `PreTrainedModel`.
        ConfigError: a name or size that its config cannot express.
        PlanError: sizes that contradict each other or shrink a frozen dimension.
        ProofError: the permutation proof failed.
        DataError: calibration data that cannot be used.
    """
    if not isinstance(config, WidConfig):
        raise ConfigError(f"get_wid_model takes a WidConfig, not a {type(config).__name__}.")
    if calibration_data is not None:
        _refuse_unused_data(config)
    check_teacher(model)
    planned = plan_student(model, config, inputs=example_inputs, proof=verify)
    wrapped = get_peft_model(model, _with_plan(config, planned), adapter_name=adapter_name)
    if calibration_data is not None:
        wrapped.base_model.calibrate(calibration_data)
    return wrapped


def _refuse_unused_data(config: WidConfig) -> None:
    if not config.needs_data:
        raise ConfigError(
            'calibration data is given but init="identity" with selection="first" does not use it; '
            'set init="calibrated".'
        )


def _with_plan(config: WidConfig, planned: Planned) -> WidConfig:
    """Return `config` with the plan riding along, so that PEFT's constructor does not make it twice."""
    config = deepcopy(config)
    object.__setattr__(config, "_planned", planned)
    return config


def _fill(student: PreTrainedModel, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Give `student` these weights; names of one tensor stay tied."""
    tensors: dict[str, Tensor] = {}
    for name, first in names.items():
        path, _, attribute = name.rpartition(".")
        module = student.get_submodule(path)
        if isinstance(getattr(module, attribute), nn.Parameter):
            module.register_parameter(attribute, tensors.setdefault(first, nn.Parameter(weights[first])))
        else:
            module.register_buffer(attribute, tensors.setdefault(first, weights[first]))
