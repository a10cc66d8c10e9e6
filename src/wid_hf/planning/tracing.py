"""Runs a teacher, and then its student, on small examples and gives their traces.

Takes a model and, if the user gave some, example inputs; gives a `Trace` for `coupling.make_plan`. Any error that the
model raises becomes a `TeacherError` or a `PlanError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..coupling import Example, Trace
from ..coupling.routing import rolled_routers
from ..coupling.trace import call, output_tensors, quiet_forward
from ..errors import PlanError, TeacherError
from .example_inputs import Inputs, example_forms, further_example, further_examples


def trace_teacher(
    teacher: PreTrainedModel, inputs: Mapping[str, Any] | None = None
) -> tuple[Trace, list[tuple[str, str]]]:
    """Trace `teacher`, also with optional arguments while there are weights that no forward has reached.

    Args:
        teacher: a model that passes `check_teacher`.
        inputs: keyword arguments of one forward; by default made from its config, in the first form that the model
            accepts.

    Returns:
        the trace, and which parts and arguments were used (see `further_examples`).

    Raises:
        TeacherError: the model does not run on the given inputs, or on any that were made for it.
    """
    seen = Trace(teacher)
    with plain_attention(teacher):
        _run_first(seen.run, teacher, inputs)
        further = []
        for part, argument in further_examples(teacher, seen.unreached):
            if not seen.unreached:
                break
            try:
                if seen.run(further_example(teacher, part, argument), optional=True):
                    further.append((part, argument))
            except Exception:  # a model may raise anything for an argument that it does not accept in this form
                continue
        for rows in rolled_routers(seen):
            seen.run(Example(seen.examples[0].inputs, rolled=rows), optional=True)
    seen.finish()
    return seen, further


def trace_student(student: PreTrainedModel, inputs: Mapping[str, Any] | None, further: list[tuple[str, str]]) -> Trace:
    """Trace `student` with the same examples as its teacher.

    Raises:
        PlanError: it does not run at its sizes.
    """
    seen = Trace(student)
    try:
        with plain_attention(student):
            _run_first(seen.run, student, inputs)
            for part, argument in further:
                seen.run(further_example(student, part, argument))
    except Exception as refusal:  # such as rotary positions of an odd head width
        cause = refusal.__cause__ if isinstance(refusal, TeacherError) else refusal
        raise PlanError(f"- {type(student).__name__} does not run at these sizes: {_error_text(cause)}") from cause
    seen.finish()
    return seen


def first_outputs(model: PreTrainedModel) -> tuple[Example, list[Tensor]]:
    """Return an example made from the model's config, and what the model gives for it.

    Raises:
        TeacherError: it does not run on any that were made for it.
    """
    return _run_first(lambda example: (example, example_outputs(model, example)), model, None)


def example_outputs(model: PreTrainedModel, example: Example) -> list[Tensor]:
    """Return all tensors that `model` gives for `example`, in evaluation mode, always in the same order."""
    with plain_attention(model), quiet_forward(model):
        torch.manual_seed(0)  # some models draw masks in evaluation as well
        return output_tensors(call(model, example.part, example.inputs, {}))


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` compute attention by operations that can be watched, as it does with "eager".

    Kernels that are compiled when they run (flex attention) or run on some devices only (flash attention) compute the
    same from the same weights. Afterwards the former implementation is set again.
    """
    configs = [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
    before = [(config, config._attn_implementation) for config in configs]
    watched = ("eager", "sdpa", None)
    if all(name in watched for _, name in before):
        yield
        return
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _run_first(run: Callable[[Example], Any], model: PreTrainedModel, inputs: Mapping[str, Any] | None) -> Any:
    """Run the model's own forward by `run`, on inputs in the first form that it accepts if the user gave none.

    Raises:
        TeacherError: it accepts none; names what was tried and the model's errors.
    """
    forms: tuple[Callable[[PreTrainedModel], Inputs], ...] = example_forms
    if inputs is not None:
        forms = (lambda _: dict(inputs),)
    tried, first = [], None
    for form in forms:
        made: Inputs = {}
        try:
            made = form(model)
            return run(Example(made))
        except Exception as refusal:  # a model may raise anything, and a config may lack what inputs are made from
            first = first or refusal
            line = f"- {_described(made) or 'no inputs could be made'}: {_error_text(refusal)}"
            tried += [line] if line not in tried else []
    name = type(model).__name__
    what = "the example inputs that were given" if inputs is not None else "example inputs made from its config"
    raise TeacherError(
        f"{name} does not run on {what}, so its dimensions cannot be found:\n"
        + "\n".join(tried)
        + "\nPass the keyword arguments of one forward that works (small ones suffice): "
        "get_wid_model(model, config, example_inputs={...}), plan_student(model, config, inputs={...}), or as "
        "example_inputs of the WidConfig."
    ) from first


def _described(inputs: Mapping[str, Any]) -> str:
    words = [f"{name} {tuple(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor)]
    return ", ".join(words) or ", ".join(inputs)


def _error_text(cause: BaseException | None) -> str:
    """Return the class and the first lines of an error that a model raised."""
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines[:2])[:300]}"
