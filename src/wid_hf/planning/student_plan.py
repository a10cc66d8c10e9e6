"""From a teacher and a `WidConfig` to a `StudentPlan`: which student to make, and what is needed to make it.

The tuner calls `plan_student` and makes the student; `wid-hf plan` prints what comes out. Everything that can be
refused is refused here, and the teacher is never changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from ..config import SIZES, WidConfig
from ..coupling import Example, Plan, Trace, make_plan, verify
from ..coupling.trace import saved_tensors
from ..errors import ConfigError, PlanError, TeacherError
from ..stored_inputs import unpacked
from .depth import Stack, requested_stacks, shallow_teacher, spread_layers
from .empty_student import empty_student
from .example_inputs import on_device
from .fewer_tokens import with_fewer_tokens
from .own_head import offered_head, with_own_head
from .sizes import Meaning, Request, Sizes, Strategy, Way
from .skeleton import skeleton
from .teacher_check import PARAMETRIZED, check_teacher
from .tracing import accepted_example, plain_attention, trace_student, trace_teacher

MOVED = "NOT the size requested"  # begins the warning of a student of other sizes


@dataclass(frozen=True)
class Settled:
    """What was decided about a request for this teacher.

    Attributes:
        strategy: `"dim"` or `"head"`; `"dim"` if there are no heads.
        sizes: every size that was requested or could have followed from those, as the student has it.
        explanation: how heads change, which other sizes follow, and why, as plan, card and report show it; empty if
            nothing follows.
        moved: sizes that differ from those requested, as `hidden_size=32 instead of 31`.
    """

    strategy: Strategy
    sizes: Sizes
    explanation: str
    moved: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the explanation."""
        return self.explanation

    def config(self, requested: WidConfig) -> WidConfig:
        """Return a request that means the same and leaves nothing open: `requested` itself if it leaves nothing open.

        A saved adapter holds this request, so that it means the same student in later versions.
        """
        if requested.head_strategy != "auto":
            return requested
        named: dict[str, Any] = {name: self.sizes.get(name) for name in SIZES}
        others = {name: size for name, size in self.sizes.items() if name not in SIZES}
        return replace(
            requested, **named, overrides=others, head_strategy=self.strategy, settled=self.explanation or None
        )


@dataclass(frozen=True)
class StudentPlan:
    """Which student a request means for one teacher: made once, never changed, passed on as an argument.

    It holds no tensors beside the teacher's own and the small example inputs.

    Attributes:
        plan: the coupled dimensions with their sizes; `plan.shape(name)` is the shape of a weight of the student.
        trace: what small forwards of the teacher showed: its weights by name, their ties, the dimensions of outputs.
        config: the student's transformers config.
        settled: which sizes were decided on, and why.
        stacks: layers of which the student has fewer.
    """

    plan: Plan
    trace: Trace
    config: PretrainedConfig
    settled: Settled
    stacks: tuple[Stack, ...] = ()

    @property
    def narrows(self) -> bool:
        """Whether any weight of the student is smaller than the teacher's that it is computed from."""
        return _narrows(self.plan, self.trace)


def plan_student(
    teacher: PreTrainedModel,
    config: WidConfig,
    *,
    inputs: Mapping[str, Any] | None = None,
    proof: bool = False,
) -> StudentPlan:
    """Find the student that `config` describes, or refuse with every reason.

    With `head_strategy="auto"` narrower heads are tried first, then fewer ones, heads as they are, other numbers of
    heads for the hidden size requested, and last the nearest hidden sizes, with a warning; all on one trace of the
    teacher.

    Args:
        teacher: a stock transformers model with real weights.
        config: the sizes requested.
        inputs: keyword arguments for one forward of the teacher; by default `config.example_inputs`, else made from the
            teacher's config.
        proof: also run the permutation proof on the teacher.

    Raises:
        TeacherError: the teacher is not a plain `PreTrainedModel` with weights, its class needs more than a config, or
            it does not run on the example inputs.
        ConfigError: a size or name that its config does not have, or that is not smaller; a tie of the embeddings that
            the teacher or its class cannot have.
        PlanError: sizes that contradict each other or shrink a frozen dimension.
        ProofError: the permutation proof failed.
    """
    check_teacher(teacher)
    inputs = _inputs(teacher, config) if inputs is None else inputs
    whole = with_kept_tokens(teacher, config)
    stacks = settled_stacks(whole, config, inputs=inputs)
    planned = planned_teacher(whole, config, inputs=inputs, stacks=stacks)
    is_smaller = bool(stacks) or whole is not teacher
    found = plan_sizes(planned, config, inputs=inputs, proof=proof, is_smaller=is_smaller)
    return replace(found, stacks=stacks)


def plan_sizes(
    teacher: PreTrainedModel,
    config: WidConfig,
    *,
    inputs: Mapping[str, Any] | None = None,
    proof: bool = False,
    is_smaller: bool = False,
) -> StudentPlan:
    """Find the student of a teacher that has the layers and the head which `config` asks for; see `plan_student`.

    Args:
        teacher: as `planned_teacher` returns it.
        config: the sizes requested.
        inputs: keyword arguments for one forward of the teacher.
        proof: also run the permutation proof on the teacher.
        is_smaller: whether it has fewer layers or tokens than the model that `config` is about, so that sizes may stay.
    """
    inputs = _inputs(teacher, config) if inputs is None else inputs
    request = Request(teacher.config, config, is_smaller=is_smaller)
    trace, further = trace_teacher(teacher, inputs)
    if proof:
        _prove(teacher, trace)
    refused: dict[Way, PlanError] = {}
    for meaning, candidate in request.configs():
        if meaning.way > Way.AS_THEY_ARE and _is_not_about_heads(refused):
            break
        try:
            plan, student = _planned(teacher, candidate, trace, partial(trace_student, inputs=inputs, further=further))
            if not is_smaller and not _narrows(plan, trace):
                raise PlanError("- no weight of the student would be smaller than the teacher's")
        except PlanError as refusal:
            refused.setdefault(meaning.way, refusal)
            continue
        settled = _settled(request, meaning, student, _against(request, refused))
        if settled.moved:
            warnings.warn(str(settled), stacklevel=2)
        offered = offered_head(teacher, trace, plan) if config.tie_word_embeddings is None else ""
        return StudentPlan(replace(plan, settled=str(settled), offered=offered), trace, student, settled)
    raise PlanError(_refusal_text(teacher, request, refused)) from next(iter(refused.values()))


def with_kept_tokens(teacher: PreTrainedModel, config: WidConfig) -> PreTrainedModel:
    """Return `teacher` with only the tokens that `config` keeps; itself if that says nothing.

    Raises:
        ConfigError: the vocabulary is not given as numbers of tokens, or not by legal ones.
        PlanError: see `with_fewer_tokens`.
    """
    if config.vocabulary is None:
        return teacher
    if not isinstance(config.vocabulary, list):
        raise ConfigError(
            f"vocabulary={config.vocabulary!r} needs a tokenizer and texts, which are not here: pass the numbers of "
            "the tokens, wid_hf.vocabulary.kept_tokens(tokenizer, texts=...), or use wid_hf.compress(...)."
        )
    return with_fewer_tokens(teacher, config.vocabulary)


def planned_teacher(
    teacher: PreTrainedModel,
    config: WidConfig,
    *,
    inputs: Mapping[str, Any] | None = None,
    stacks: Sequence[Stack] | None = None,
) -> PreTrainedModel:
    """Return the teacher that `config` plans with: itself, or a model on its tensors with fewer layers or its own head.

    Args:
        teacher: a model that passes `check_teacher`.
        config: its `tie_word_embeddings`, `num_hidden_layers`, `layers` and counts in `overrides` decide.
        inputs: keyword arguments for one forward of the teacher.
        stacks: of the teacher, with the layers that stay; by default those that `config` names, or layers that are
            spread over all.

    Raises:
        ConfigError: a tie or layers that the teacher or its class cannot have.
        PlanError: layers that cannot stand where they would.
    """
    if stacks is None:
        stacks = settled_stacks(teacher, config, inputs=inputs)
    inputs = _inputs(teacher, config) if inputs is None else inputs
    teacher = with_own_head(teacher, config.tie_word_embeddings, inputs)
    if not stacks:
        return teacher
    try:
        return shallow_teacher(teacher, stacks, small_forward(teacher, config, inputs))
    except PlanError as refusal:
        raise PlanError(
            f"{type(teacher).__name__} cannot keep these layers alone, {'; '.join(map(str, stacks))}\n{refusal}\nKeep "
            "layers whose kinds come in the teacher's order (its first layer often differs from the others), or give a "
            "number of layers, so that calibration chooses among those that can stay."
        ) from refusal


def settled_stacks(
    teacher: PreTrainedModel, config: WidConfig, *, inputs: Mapping[str, Any] | None = None
) -> tuple[Stack, ...]:
    """Return the stacks that `config` makes shorter, with the layers that it names or that are spread over all.

    Raises:
        ConfigError: see `requested_stacks`.
        TeacherError: no small forward works.
    """
    stacks = requested_stacks(teacher, config)
    if all(stack.kept is not None for stack in stacks):  # `planned_teacher` says whether they can stay
        return stacks
    return spread_layers(teacher, stacks, small_forward(teacher, config, inputs))


def small_forward(teacher: PreTrainedModel, config: WidConfig, inputs: Mapping[str, Any] | None = None) -> Example:
    """Return one forward of `teacher` that works, of `inputs`, those in `config`, or made from the teacher's config.

    Raises:
        TeacherError: there is none.
    """
    return accepted_example(teacher, _inputs(teacher, config) if inputs is None else inputs)


def prove_couplings(teacher: PreTrainedModel, config: WidConfig) -> None:
    """Run the permutation proof on `teacher`; the sizes in `config` do not matter.

    Args:
        teacher: a stock transformers model with real weights.
        config: holds the example inputs, if those made from the teacher's config do not fit.

    Raises:
        TeacherError: see `plan_student`.
        ProofError: the permutation proof failed.
    """
    check_teacher(teacher)
    teacher = planned_teacher(teacher, config)
    trace, _ = trace_teacher(teacher, _inputs(teacher, config))
    _prove(teacher, trace)


def _prove(teacher: PreTrainedModel, trace: Trace) -> None:
    with plain_attention(teacher):
        verify(teacher, trace)


def _inputs(teacher: PreTrainedModel, config: WidConfig) -> dict[str, Any] | None:
    return on_device(teacher, unpacked(config.example_inputs))


def _planned(
    teacher: PreTrainedModel,
    candidate: PretrainedConfig | PlanError,
    trace: Trace,
    trace_student: Callable[[PreTrainedModel], Trace],
) -> tuple[Plan, PretrainedConfig]:
    """Return the plan for a student of this config, and the config as the student's class completes it.

    Raises:
        PlanError: there is no such student.
    """
    if isinstance(candidate, PlanError):
        raise candidate
    shapes = _weight_shapes(type(teacher), candidate, trace)
    make_plan(trace, shapes)  # finds contradictions before anything is allocated
    student = _allocated(teacher, candidate)
    return make_plan(trace, shapes, trace_student(student)), student.config


def _narrows(plan: Plan, trace: Trace) -> bool:
    return any(plan.shape(name) != tuple(weight.shape) for name, weight in trace.weights.items())


def _settled(request: Request, meaning: Meaning, student: PretrainedConfig, against: Mapping[Way, str]) -> Settled:
    """Return what was decided; `against` has the first reason against each way that was tried."""
    config = request.config
    strategy: Strategy = meaning.strategy or ("head" if config.head_strategy == "head" else "dim")
    moved = request.moved(meaning)
    changes = request.changes(meaning, student)
    reason = f'The head strategy "{strategy}" was requested.'
    if config.head_strategy == "auto":
        better = [f"{way.words} ({text})" for way, text in sorted(against.items()) if way < meaning.way]
        first = "narrower heads are possible" if strategy == "dim" else "that number of heads was requested"
        why = f"these are not possible: {'; '.join(better)}" if better else first
        reason = f'The head strategy "auto" chose "{strategy}", because {why}.'
    sentences = [f"{MOVED}: {', '.join(moved)}."] if moved else []
    sentences += [f"{'; '.join(changes)}.", reason] if changes else []
    return Settled(strategy, request.pinned(meaning, student), config.settled or " ".join(sentences), tuple(moved))


def _against(request: Request, refused: Mapping[Way, PlanError]) -> dict[Way, str]:
    """Return the first reason, on one line, against each way that was tried or is impossible."""
    return request.closed | {way: str(refusal).splitlines()[0].removeprefix("- ") for way, refusal in refused.items()}


def _is_not_about_heads(refused: Mapping[Way, PlanError]) -> bool:
    """Return whether narrower heads and fewer heads fail for a common reason, which has nothing to do with heads."""
    narrower, fewer = (set(str(refused.get(way, "")).splitlines()) for way in (Way.NARROWER, Way.FEWER))
    return bool(narrower & fewer - {""})


def _allocated(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Return the empty student, or refuse if its class fails with real tensors."""
    try:
        return empty_student(teacher, config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as cause:
        raise PlanError(f"- {type(teacher).__name__} cannot be made at these sizes: {_line(cause)}") from cause


def _weight_shapes(
    model_class: type[PreTrainedModel], config: PretrainedConfig, teacher: Trace
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the student, by the teacher's name of it, without allocating."""
    try:
        if (check := getattr(config, "validate", None)) is not None:  # a config checks itself again when it is saved
            check()
        empty = skeleton(model_class, config)
    except Exception as refusal:  # each class checks its config in its own way, and raises other errors
        raise PlanError(f"- {model_class.__name__} itself refuses this config: {_line(refusal)}") from refusal
    saved = saved_tensors(empty)
    if any(".parametrizations." in name and name not in saved for name in teacher.weights):
        raise TeacherError(PARAMETRIZED)
    return {name: tuple(t.shape) for name, t in saved.items() if teacher.aliases.get(name, name) == name}


def _line(cause: Exception) -> str:
    """Return the message of another library's error on one line; its class name if it has none."""
    return " ".join(str(cause).split()) or type(cause).__name__


def _refusal_text(teacher: PreTrainedModel, request: Request, refused: Mapping[Way, PlanError]) -> str:
    """Return all that was tried with the reasons against it, each reason once."""
    config = request.config
    sizes = ", ".join(f"{name}={size}" for name, size in config.requested.items())
    against: dict[Way, str] = {way: f"- {text}" for way, text in request.closed.items()}
    against |= {way: str(refusal) for way, refusal in refused.items()}
    if len(against) == 1 or _is_not_about_heads(refused):
        problems = next(iter(against.values()))
    else:
        others = f" ({', '.join(request.other_sizes())})"
        problems = "\n".join(
            f"With {way.words}{others if way is Way.NEAREST_SIZE else ''}:\n{text}"
            for way, text in sorted(against.items())
        )
    hint = ""
    if config.head_strategy == "dim" and "meets buffer" in problems:
        hint = '\nTables such as rotary positions fix the width of heads: the head strategy "head" drops whole heads.'
    return (
        f"{type(teacher).__name__} cannot become a student with {sizes} and the head strategy "
        f'"{config.head_strategy}":\n'
        f"{problems}{hint}\nLeave the dimensions named here at the teacher's sizes. The page Architectures of the "
        "documentation explains these reasons."
    )
