"""The whole path of one family: plan, proof, identity, narrow, one step, merge, save, reload.

Takes a family and its model class, gives a `Verdict`. Called by `__main__` for all families and by the tests
for a sample.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from ask import asks, by_default, has_heads, is_hidden, leaf_names, wanted
from tiny import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from wid_hf import ProofError, WidConfig, WidError, get_wid_model
from wid_hf.coupling import Example, Trace, make_plan, verify
from wid_hf.coupling.trace import output_tensors, quiet_forward
from wid_hf.layers import first_indices, install
from wid_hf.planning.empty_student import empty_student
from wid_hf.planning.example_inputs import example_inputs, further_example
from wid_hf.planning.student_plan import Settled, check_teacher, trace_student, trace_teacher

Further = list[tuple[str, str]]
LIMIT = 60  # seconds of processor time

T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """What came out for one family.

    Attributes:
        family: its `model_type`.
        task: the auto mapping it was taken from.
        model: the model class.
        status: `works`, `partly`, `refused`, `not built` or `wrong`.
        widths: which sizes shrank in a run that passed every check.
        strategies: which head strategies did.
        hidden: whether the width of the residual stream, of one part at least, is among them.
        reason: why something was refused, not built, or wrong.
        default: the head strategy that half the hidden size alone came to mean, `"no heads"` where there are none;
            empty where that was refused, or where another hidden size was taken.
    """

    family: str
    task: str
    model: str
    status: str
    widths: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    hidden: bool = False
    reason: str = ""
    default: str = ""


class TooSlow(BaseException):
    """A family took too long; no `except Exception` on the way may take that for a refusal of the model's."""


class Wrong(Exception):
    """A check that must hold did not."""


def check(family: str, task: str, class_name: str) -> Verdict:
    """Run one family through everything, within `LIMIT` seconds."""

    def too_slow(reason: str) -> Verdict:
        return Verdict(family, task, class_name, "not built", reason=reason)

    return limited(lambda: verdict(family, task, class_name), too_slow)


def limited(work: Callable[[], T], too_slow: Callable[[str], T]) -> T:
    """Return what `work` finds within `LIMIT` seconds, or what is made of the reason why it found nothing."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        return work()
    except TooSlow as cause:
        return too_slow(f"the tiny model is too slow: {cause}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_long(*_: Any) -> None:
    raise TooSlow(f"took more than {LIMIT} s")


def verdict(family: str, task: str, class_name: str) -> Verdict:
    try:
        teacher = tiny_model(family, class_name)
        inputs = example_inputs(teacher)
        with quiet_forward(teacher):
            outputs = output_tensors(teacher(**inputs))
        if not all(torch.isfinite(t).all() for t in outputs if t.is_floating_point()):
            raise ValueError("the tiny model's outputs are not finite")
    except Exception as cause:  # whatever another library's constructor or forward raises
        return Verdict(family, task, class_name, "not built", reason=line_of(cause))
    try:
        return _checked(family, task, class_name, teacher, inputs)
    except Exception as cause:
        return Verdict(family, task, class_name, "wrong", reason=f"{type(cause).__name__}: {line_of(cause)}")


def be_quiet() -> None:
    """Keep a worker process to one thread and to itself: 400 families warn of many things."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def _checked(family: str, task: str, class_name: str, teacher: PreTrainedModel, inputs: dict[str, Any]) -> Verdict:
    asked = asks(teacher.config)
    if not asked:
        return Verdict(family, task, class_name, "refused", reason="its config states no width as a number or a list")
    try:
        check_teacher(teacher)
        seen, further = trace_teacher(teacher, inputs)
        _prove(teacher, seen)
        _same_at_full_size(teacher, seen, further)
    except WidError as refusal:
        return Verdict(family, task, class_name, "refused", reason=line_of(refusal))
    passed: list[tuple[str, tuple[str, ...]]] = []
    reasons: list[str] = []
    for strategy in ("dim", "head") if has_heads(teacher.config) else ("dim",):
        for sizes in asked:
            try:
                _narrow(teacher, further, sizes, strategy)
            except WidError as refusal:
                reasons.append(str(refusal))
            else:
                passed.append((strategy, leaf_names(sizes)))
                break
    default = ""
    if alone := by_default(teacher.config):
        try:
            settled = _narrow(teacher, further, alone, "auto")
        except WidError as refusal:
            reasons.insert(0, str(refusal))
        else:
            told = settled.strategy if has_heads(teacher.config) else "no heads"
            default = "" if settled.moved else told
    widths = tuple(sorted({name for _, names in passed for name in names}))
    strategies = tuple(strategy for strategy, _ in passed) if has_heads(teacher.config) else ()
    status = "works" if widths and wanted(teacher.config) <= set(widths) else "partly" if widths else "refused"
    hidden = any(is_hidden(teacher.config, name) for name in widths)
    reason = "" if status == "works" and default else line_of(reasons[0]) if reasons else ""
    return Verdict(family, task, class_name, status, widths, strategies, hidden, reason, default)


def _prove(teacher: PreTrainedModel, seen: Trace) -> None:
    """Run the permutation proof; a weight that the inputs did not reach is a refusal, not an error."""
    try:
        verify(teacher, seen)
    except ProofError as failed:
        if "Not reached by the example inputs" not in str(failed):
            raise Wrong(str(failed)) from failed
        raise WidError(str(failed).splitlines()[-1]) from failed


def _same_at_full_size(teacher: PreTrainedModel, seen: Trace, further: Further) -> None:
    """A student as wide as its teacher, made by the same steps as a narrow one, must be the teacher."""
    student = empty_student(teacher, teacher.config)
    shapes = {name: tuple(weight.shape) for name, weight in seen.weights.items()}
    plan = make_plan(seen, shapes, trace_student(student, None, further))
    teacher = deepcopy(teacher)  # some keep what their last forward computed, with its gradients
    install(student, seen.weights, seen.aliases, plan, first_indices(plan))
    if plan.scales or not equal(_outputs(student, further), _outputs(teacher, further)):
        raise Wrong("a student of the teacher's own sizes is not the teacher")


def _narrow(teacher: PreTrainedModel, further: Further, sizes: dict[str, Any], strategy: str) -> Settled:
    """Shrink by `sizes`, take a step, merge, save and reload; raise `Wrong` where something does not hold.

    Returns:
        what the sizes came to mean.
    """
    teacher = deepcopy(teacher)
    model = get_wid_model(teacher, WidConfig(overrides=sizes, head_strategy=strategy, init="identity"))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()  # Reformer refuses gradients in evaluation mode
    _loss(output_tensors(model(**example_inputs(model.base_model.model)))).backward()
    optimizer.step()
    model.eval()
    student = model.merge_and_unload()
    trained, merged = _outputs(model.base_model.model, further), _outputs(student, further)
    if not equal(trained, merged):
        raise Wrong(f"merging changed the outputs ({sizes}, {strategy})")
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        loaded = type(teacher).from_pretrained(folder)
    saved, read = student.state_dict(), loaded.state_dict()
    if saved.keys() != read.keys() or not all(torch.equal(saved[name], read[name]) for name in saved):
        raise Wrong(f"reloading changed a weight ({sizes}, {strategy})")
    # Files are mapped at other alignments than memory is allocated at, which moves the last bits of some kernels.
    if not equal(merged, _outputs(loaded, further), tolerance=1e-5):
        raise Wrong(f"reloading changed the outputs ({sizes}, {strategy})")
    return model.base_model.settled


def _outputs(model: PreTrainedModel, further: Further) -> list[Tensor]:
    """Return the outputs for the example inputs and for every further example."""
    examples = [Example(example_inputs(model)), *(further_example(model, *extra) for extra in further)]
    # With gradients: torch.matmul takes another path for weights that record none, with other rounding.
    with quiet_forward(model), torch.enable_grad():
        outputs = [output_tensors(model.get_submodule(e.part)(**e.inputs)) for e in examples]
    return [tensor.detach() for tensors in outputs for tensor in tensors]


def equal(a: list[Tensor], b: list[Tensor], tolerance: float = 0.0) -> bool:
    """Return whether tensors are equal, or as near as that."""
    return len(a) == len(b) and all(torch.allclose(x, y, tolerance, tolerance) for x, y in zip(a, b, strict=True))


def _loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([t.float().square().mean() for t in outputs if t.is_floating_point() and t.requires_grad]).sum()


def line_of(cause: object) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip("- ") for line in str(cause).strip().splitlines() if line.strip()]
    headings = ("cannot become a student", "No student of", "With narrower heads:", "With heads as they are:")
    useful = [line for line in lines if not any(heading in line for heading in headings)]
    return ((useful or lines or [type(cause).__name__])[0])[:300]
