"""The PEFT tuner: puts a student whose weights are folded from the teacher's in the teacher's place.

PEFT calls `inject_adapter`; users call `get_wid_model`, then `merge_and_unload` on what it returns.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from typing import Any, ClassVar
from weakref import ref

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from ..calibration import Calibration, initialize
from ..config import WidConfig
from ..coupling import Plan
from ..coupling.index_sets import IndexSets, axis_indices
from ..coupling.trace import aliases, named_weights
from ..errors import ConfigError, DataError, WidError
from ..layers import (
    FoldedWeight,
    compactor_axes,
    first_indices,
    folded_weights,
    install,
    is_at_start,
    student_weights,
)
from ..planning.student import Settled, StudentPlan, check_teacher, empty_student, plan_student
from ..planning.tracing import plain_attention
from ..progressive.masked_statistics import KeptStatistics, check_wide
from ..progressive.progress import Progress
from ..progressive.schedule import WidSchedule
from ..progressive.shrink import Moved, become, can_carry, carry, rewrap, rewrite, take_over
from ..stored_inputs import packed
from .adapter_state import fitting_state, proved_state, refuse_other_teacher, saved_state
from .fingerprint import Fingerprint, digest
from .merge import generation_config_of, set_adapter_aside_when_saved, stock_model
from .module_settings import take_over_patches, take_over_training_settings
from .plain_call import as_if_called_plainly
from .status import Student

Batch = Mapping[str, Any]
Holders = tuple[tuple[str, nn.Module, int | None], ...]  # path, module, rows if it is a table
PROGRESS = "base_model.progress."
CALIBRATED = "base_model.calibrated"

ONE_ADAPTER = (
    "A wid model is one student with one adapter, which cannot be added to or deleted. Call "
    "get_wid_model on a fresh teacher for another student, or unload() for the teacher."
)
IN_PLACE = (
    "Teacher and student differ in shape, so the adapter cannot {} in place: merge_and_unload() returns the student "
    "as a stock model, unload() the teacher."
)
OTHER_LAYERS = (
    "{}: the layers of a wid model are computed from its teacher's. Change the teacher before get_wid_model "
    "(teacher.resize_token_embeddings(...), teacher.classifier = ...), or the student after merge_and_unload()."
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
    tuner_layer_cls = FoldedWeight
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
        with as_if_called_plainly(next(model.parameters()).device):
            planned = planned or plan_student(model, config)
            config = planned.settled.config(config)  # leaves nothing open, whatever loads it
            self.peft_config[adapter_name] = config
            self._put_student(model, planned, config, adapter_name)

    def _put_student(self, model: PreTrainedModel, planned: StudentPlan, config: WidConfig, adapter_name: str) -> None:
        # Kept out of the module tree: the student's originals are the teacher's parameters already.
        self._planned = (planned, model)
        self.model = planned.student
        self._config = config
        self.student = Student(self, adapter_name)
        self._warned = False
        self._outer: ref[PeftModel] | None = None
        self._ready = not config.needs_data
        self._start: bytes | None = None  # digest of the compactors when they were last solved for
        self._optimizer: torch.optim.Optimizer | None = None
        self._wrapped: tuple[nn.Module, ...] = ()  # a tuple, since a module would become a part of this one
        self._statistics: KeptStatistics | None = None
        self._listening: RemovableHandle | None = None
        self.calibration: Calibration | None = None
        self.progress: Progress | None = None
        sets: IndexSets = first_indices(planned.plan)
        if isinstance(config.schedule, WidSchedule):
            self.progress = Progress(planned.plan, config.schedule, self.teacher.device)
            self.model, trial = self._wide(), self._wide()
            self._statistics = KeptStatistics(self.model, planned.plan, planned.trace)
            self._make_narrow(trial, sets)
            check_wide(self.model, trial, planned.plan, planned.trace, sets, self._statistics)
            sets = {}
        else:
            self.model = self._installed(planned.student, sets)
        take_over_training_settings(model, self.model)
        take_over_patches(model, self.model)
        self.model.register_forward_pre_hook(self._before_forward)
        # Which module holds each weight: others put in their place would not be computed from the teacher's.
        paths = {name.rpartition(".")[0] for name in planned.trace.aliases}
        self._holders = _holders(self.model, paths)
        self._teachers = _holders(model, paths)
        waits = [] if self._ready else [c.matrix for c, _ in compactor_axes(self.model, planned.plan)]
        self._waiting = tuple(matrix.register_hook(self._refuse_gradient) for matrix in waits)
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
                `safe_merge` found NaN, layers were replaced or `config` was given other sizes than the weights have, or
                there is no adapter of that name.
        """
        if adapter_names not in (None, [self.active_adapter]):
            raise WidError(ONE_ADAPTER)
        if not self.calibrated:
            if not force:
                raise WidError(f"{self._uncalibrated()} Nothing was merged; force=True merges what is there.")
            warnings.warn(f"Merged by force: {self._uncalibrated()}", stacklevel=2)
        self._find_wrapper()
        self._refuse_other_layers()
        with as_if_called_plainly(self.teacher.device):
            if self.progress is not None and self.is_wide:
                self._finish(self.progress, force)
            planned, teacher = self._planned
            weights = student_weights(self.model, planned.trace.aliases)
            if safe_merge and (bad := [n for n, w in weights.items() if not torch.isfinite(w).all()]):
                raise WidError(f"These merged weights are not finite: {', '.join(bad[:5])}. Nothing was merged.")
            student = stock_model(teacher, self._live("config"), weights, planned.trace.aliases)
        student.generation_config = generation_config_of(
            self._live("generation_config"), student.config, teacher.config
        )
        take_over_training_settings(self.model, student)
        set_adapter_aside_when_saved(student)
        return student.train(self.model.training)

    def unload(self) -> PreTrainedModel:
        """Return the teacher."""
        return self.teacher

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Return the input embeddings where nothing would change; refuse another number of tokens."""
        table: Any = self.model.get_input_embeddings()
        rows = table.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows != table.num_embeddings:
            raise WidError(OTHER_LAYERS.format(f"The vocabulary cannot become {rows} tokens now"))
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse: the table is computed from the teacher's."""
        raise WidError(OTHER_LAYERS.format("The input embeddings cannot be replaced now"))

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Refuse: the head is computed from the teacher's."""
        raise WidError(OTHER_LAYERS.format("The output embeddings cannot be replaced now"))

    def calibrate(
        self, batches: Iterable[Batch], *, lifts: bool = True, spectra: bool = True, basis: bool = True,
        reset: bool = False,
    ) -> None:  # fmt: skip
        """Set the start of every compactor from the teacher's activations on `batches`.

        With `init="calibrated"` indices are chosen, the inside of attention heads is turned to what matters most,
        and each weight's columns are fitted so that it reads from the student's stream what the teacher reads. A
        stream that is proved to meet only RMS norms and matrices keeps its principal directions in place of indices.
        With `init="identity"` only indices are chosen.

        Args:
            batches: keyword dictionaries for the teacher's forward; padding is left out by `attention_mask`. Labels are
                used only where a sequence-to-sequence model makes its decoder's inputs of them.
            lifts: False leaves the fitting of columns out, to see what it is worth.
            spectra: False leaves the turning of heads out.
            basis: False keeps indices of every stream.
            reset: True throws away what compactors have learned so far.

        Raises:
            DataError: there is no batch or nothing but padding, too few tokens, or activations are not finite.
            ConfigError: `init="identity"` with `selection="first"`, which no data changes.
            WidError: the model is not at its start any more, and `reset` is False.
        """
        planned, teacher = self._planned
        config = self._config
        if self.progress is not None:
            raise ConfigError(
                "calibrate() has no effect with a progressive schedule, which starts as the teacher: train it, or make "
                'the model with schedule="narrow".'
            )
        _refuse_unused_data(config)
        if not reset and not self._is_at_start():
            raise WidError(
                "This model's weights are not those of its start: it was trained, loaded or cast since. calibrate() "
                "would throw that away; call calibrate(batches, reset=True) if it should."
            )
        batches = _checked_batches(batches)
        solved = config.init == "calibrated"
        assert config.selection is not None  # the config has filled it in
        with plain_attention(teacher), plain_attention(self.model):
            sets, found = initialize(
                teacher,
                self.model,
                planned.trace,
                planned.plan,
                batches,
                selection=config.selection,
                head_svd=spectra and solved,
                pca=basis and solved,
                reconstruction=lifts and solved,
                ridge=config.calibration_config.ridge,
            )
        self.calibration = found if solved else None
        self.kept.copy_(self._kept(sets))
        self.calibrated.fill_(True)
        self._ready = True
        for listener in self._waiting:
            listener.remove()
        self._waiting = ()
        self._start = self._digest()

    def _is_at_start(self) -> bool:
        """Return whether neither compactors nor the teacher's weights have moved since the last start was made."""
        planned, _ = self._planned
        weights = planned.trace.weights
        if any(self.fingerprint.changed(name, weight) for name, weight in weights.items()):
            return False
        if self._start is not None:
            return self._start == self._digest()
        return not self.calibrated and is_at_start(self.model, weights, planned.plan, first_indices(planned.plan))

    def _digest(self) -> bytes:
        made = sorted(folded_weights(self.model).items())
        return b"".join(digest(f"{name} {key}", p) for name, each in made for key, p in each.named_parameters())

    def _installed(self, student: PreTrainedModel, sets: IndexSets, *, square: bool = False) -> PreTrainedModel:
        """Return `student` with weights that are folded from the teacher's."""
        planned, _ = self._planned
        install(
            student, planned.trace.weights, planned.trace.aliases, planned.plan, sets,
            shifts=self._config.init == "calibrated", square=square,
        )  # fmt: skip
        return student

    def _wide(self) -> PreTrainedModel:
        """Return a model of the teacher's widths whose compactors are the identity."""
        _, teacher = self._planned
        return self._installed(empty_student(teacher, teacher.config), {}, square=True)

    def _make_narrow(self, wide: PreTrainedModel, sets: IndexSets) -> dict[Tensor, Moved]:
        """Make `wide` narrow, in place; return where its compactors went."""
        planned, teacher = self._planned
        narrow = self._installed(empty_student(teacher, planned.student.config), sets)
        moved = take_over(wide, narrow)
        before = empty_student(teacher, teacher.config)
        become(wide, narrow, before, planned.trace.aliases)
        if isinstance(own := self._live("config"), PretrainedConfig) and own is not wide.config and wide is self.model:
            rewrite(own, narrow.config, before.config)  # one that was assigned to the `PeftModel`
        return moved

    def _make_wide(self, narrow: PreTrainedModel) -> KeptStatistics:
        """Make `narrow` wide again, in place, its compactors the identity; return its statistics."""
        planned, teacher = self._planned
        become(narrow, self._wide(), empty_student(teacher, planned.student.config), planned.trace.aliases)
        return KeptStatistics(narrow, planned.plan, planned.trace)

    def _shrink(self, sets: IndexSets) -> None:
        """Make the wide model narrow, and all that trains with it."""
        assert self.progress is not None
        moved = self._make_narrow(self.model, sets)
        if self._statistics is not None:
            self._statistics.remove()
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
                self._statistics = self._make_wide(self.model)
                self.kept = self._kept({}).to(self.kept.device)
            if self._statistics is not None:
                self._statistics.keep(self.progress.kept())

    def _kept(self, sets: IndexSets) -> Tensor:
        outputs = self._planned[0].trace.output_dims
        # The first output may be a number: a loss of routers.
        last = next((dims[-1] for dims in outputs if dims), None)
        return torch.tensor(axis_indices(self.plan, last, sets) if last is not None else [], dtype=torch.long)

    def _uncalibrated(self) -> str:
        how = f"init={self._config.init!r}, selection={self._config.selection!r}"
        return (
            f"This model was made with {how} but has seen no calibration data. Call model.calibrate(batches), pass "
            "calibration_data to get_wid_model, train with WidTrainer or with WidCallback in another trainer, or set "
            'init="identity" and selection="first".'
        )

    def _before_forward(self, *_: Any) -> None:
        """Refuse to train what could not be merged; warn of a forward before calibration."""
        trains = self.model.training and torch.is_grad_enabled()
        if trains and not torch.compiler.is_compiling():
            self._refuse_other_layers()
        # A number of Python's, since looking into a tensor would break a compiled forward in two.
        self._ready = self._ready or bool(self.calibrated)
        if not self._ready:
            if trains:
                raise WidError(f"{self._uncalibrated()} Nothing was trained.")
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self._uncalibrated()} Until then it only selects indices.", stacklevel=2)

    def _refuse_gradient(self, gradient: Tensor) -> None:
        """Refuse a backward pass before calibration, through whichever part of the model it comes."""
        if not self.calibrated:
            raise WidError(f"{self._uncalibrated()} Nothing was trained.")

    def _refuse_other_layers(self) -> None:
        """Refuse a student whose layers were replaced: they would not be merged, or not fit the config."""
        if path := _other(self.model, self._holders):
            raise WidError(OTHER_LAYERS.format(f"`{path}` of the wid model was replaced or resized"))
        if path := _other(self._planned[1], self._teachers):
            raise WidError(
                f"`{path}` of the teacher was replaced or resized after get_wid_model, and the student cannot follow. "
                "Make a wid model of the teacher as it is now, or put the layer back."
            )
        parts = self._wrapper._modules if self._wrapper is not None else {}
        for name in parts:
            if name != "base_model" and hasattr(self.model, name):
                raise WidError(OTHER_LAYERS.format(f"`{name}` was set on the wid model, where nothing uses it"))

    @property
    def _wrapper(self) -> PeftModel | None:
        """The `PeftModel` around this tuner, as far as it is known."""
        outer = self._outer() if self._outer is not None else None
        return outer if outer is not None and outer.base_model is self else None

    def _find_wrapper(self) -> PeftModel | None:
        """Return the `PeftModel` around this tuner, which PEFT's own doors and copies of it do not tell of."""
        if self._wrapper is None:
            every = (thing for thing in gc.get_objects() if issubclass(type(thing), PeftModel))
            found = next((outer for outer in every if outer._modules.get("base_model") is self), None)
            self._outer = ref(found) if found is not None else None
        return self._wrapper

    def _live(self, name: str) -> Any:
        """Return an attribute of the model as its user sees it: one that was assigned to the `PeftModel` wins."""
        outer = self._find_wrapper()
        given = vars(outer) if outer is not None else {}
        return given[name] if name in given else getattr(self.model, name, None)

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
        self.student.folded_weights.requires_grad_(requires_grad)

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
        tuner._outer = ref(model)
        held = proved_state(config, tuner.fingerprint, state_dict)
        tuner._ready = bool(held[CALIBRATED]) if CALIBRATED in held else tuner._ready
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
    with as_if_called_plainly(model.device):
        planned = plan_student(model, config, inputs=example_inputs, proof=verify)
    riding = _with_plan(config, planned)
    if example_inputs is not None:
        with suppress(ConfigError):  # what no file can hold works here, and is asked for again where it is loaded
            riding.example_inputs = packed(example_inputs)
    wrapped = get_peft_model(model, riding, adapter_name=adapter_name)
    wrapped.base_model._outer = ref(wrapped)
    if calibration_data is not None:
        wrapped.base_model.calibrate(calibration_data)
    return wrapped


def _holders(model: nn.Module, paths: Iterable[str]) -> Holders:
    found = [(path, model.get_submodule(path)) for path in sorted(paths)]
    return tuple((path, module, getattr(module, "num_embeddings", None)) for path, module in found)


def _other(model: nn.Module, holders: Holders) -> str | None:
    """Return the path of the first module that is not the one that was there, or has other rows now."""
    for path, module, rows in holders:
        found: nn.Module | None = model
        for name in filter(None, path.split(".")):  # every training forward asks: get_submodule takes milliseconds
            found = found._modules.get(name) if found is not None else None
        if found is not module or (rows is not None and module.num_embeddings != rows):
            return path
    return None


def _checked_batches(batches: Any) -> list[Batch]:
    """Return the batches as a list.

    Raises:
        DataError: they are no dictionaries of keyword arguments.
    """
    if isinstance(batches, Mapping):
        raise DataError("The calibration data is one batch; pass an iterable of batches, such as [batch].")
    try:
        found = list(batches)
    except TypeError as cause:
        raise DataError(
            f"The calibration data is a {type(batches).__name__}; pass an iterable of dictionaries of keyword "
            "arguments for the teacher's forward."
        ) from cause
    if strange := [type(batch).__name__ for batch in found if not isinstance(batch, Mapping)]:
        raise DataError(
            f"A batch of the calibration data is a {strange[0]}; pass dictionaries of keyword arguments "
            "for the teacher's forward, such as a tokenizer or a data collator makes."
        )
    return found


def _refuse_unused_data(config: WidConfig) -> None:
    if not config.needs_data:
        raise ConfigError(
            'calibration data is given but init="identity" with selection="first" does not use it; '
            'set init="calibrated".'
        )


def _with_plan(config: WidConfig, planned: StudentPlan) -> WidConfig:
    """Return `config` with the plan riding along, so that PEFT's constructor does not make it twice."""
    config = deepcopy(config)
    object.__setattr__(config, "_planned", planned)
    return config
