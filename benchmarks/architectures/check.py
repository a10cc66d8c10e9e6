"""The whole path of one family: plan, proof, identity, narrow, one step, merge, save, reload.

Takes a family and its model class, gives a `Verdict`. Called by `__main__` for all families and by the tests
for a sample.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tiny import tiny_model
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from wid_hf import ProofError, WidConfig, WidError, get_wid_model
from wid_hf.coupling import trace, verify
from wid_hf.coupling.trace import output_tensors, quiet_forward
from wid_hf.inputs import example_inputs

LIMIT = 30


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
        reason: why something was refused, not built, or wrong.
    """

    family: str
    task: str
    model: str
    status: str
    widths: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    reason: str = ""


class Wrong(Exception):
    """A check that must hold did not."""


def check(family: str, task: str, class_name: str) -> Verdict:
    """Run one family through everything, within `LIMIT` seconds."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        return verdict(family, task, class_name)
    finally:
        signal.alarm(0)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"took more than {LIMIT} s")


def verdict(family: str, task: str, class_name: str) -> Verdict:
    try:
        teacher = tiny_model(family, class_name)
        inputs = example_inputs(teacher)
        with quiet_forward(teacher):
            outputs = output_tensors(teacher(**inputs))
        if not all(torch.isfinite(t).all() for t in outputs if t.is_floating_point()):
            raise ValueError("the tiny model's outputs are not finite")
    except Exception as cause:  # whatever another library's constructor or forward raises
        return Verdict(family, task, class_name, "not built", reason=_line(cause))
    try:
        return _checked(family, task, class_name, teacher, inputs)
    except TimeoutError as cause:
        return Verdict(family, task, class_name, "not built", reason=f"the tiny model is too slow: {cause}")
    except Exception as cause:
        return Verdict(family, task, class_name, "wrong", reason=f"{type(cause).__name__}: {_line(cause)}")


def be_quiet() -> None:
    """Keep a worker process to one thread and to itself: 400 families warn of many things."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def _checked(family: str, task: str, class_name: str, teacher: PreTrainedModel, inputs: dict[str, Any]) -> Verdict:
    try:
        verify(teacher, trace(teacher, inputs), inputs)
    except ProofError as failed:
        if "Not reached by the example inputs" not in str(failed):
            raise
        return Verdict(family, task, class_name, "refused", reason=str(failed).splitlines()[-1])
    if next(_halved(teacher.config), None) is None:
        return Verdict(family, task, class_name, "not built", reason="its config has no width known to this harness")
    passed: list[tuple[str, tuple[str, ...]]] = []
    reasons: list[str] = []
    for strategy in ("dim", "head"):
        for sizes in _halved(teacher.config):
            try:
                _narrow(teacher, inputs, sizes, strategy)
            except WidError as refusal:
                reasons.append(str(refusal))
            else:
                passed.append((strategy, _leaf_names(sizes)))
                break
    widths = tuple(sorted({name for _, names in passed for name in names}))
    strategies = tuple(strategy for strategy, _ in passed)
    wanted = _leaf_names(next(_halved(teacher.config)))
    status = "works" if set(wanted) <= set(widths) and widths else "partly" if widths else "refused"
    reason = "" if status == "works" else _line(reasons[0]) if reasons else ""
    return Verdict(family, task, class_name, status, widths, strategies, reason)


def _narrow(teacher: PreTrainedModel, inputs: dict[str, Any], sizes: dict[str, Any], strategy: str) -> None:
    """Shrink by `sizes`, take a step, merge, save and reload; raise `Wrong` where something does not hold."""
    teacher = deepcopy(teacher)
    model = get_wid_model(
        teacher, WidConfig(overrides=sizes, head_strategy=strategy, init="identity"), example_inputs=inputs
    )  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    _loss(output_tensors(model(**inputs))).backward()
    optimizer.step()
    student = model.merge_and_unload()
    trained, merged = _outputs(model, inputs), _outputs(student, inputs)
    if not _equal(trained, merged):
        raise Wrong(f"merging changed the outputs ({sizes}, {strategy})")
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        loaded = type(teacher).from_pretrained(folder)
    saved, read = student.state_dict(), loaded.state_dict()
    if saved.keys() != read.keys() or not all(torch.equal(saved[name], read[name]) for name in saved):
        raise Wrong(f"reloading changed a weight ({sizes}, {strategy})")
    # Files are mapped at other alignments than memory is allocated at, which moves the last bits of some kernels.
    if not _equal(merged, _outputs(loaded, inputs), tolerance=1e-5):
        raise Wrong(f"reloading changed the outputs ({sizes}, {strategy})")


def _halved(config: PretrainedConfig) -> Iterator[dict[str, Any]]:
    """Yield what to ask for, the most first: hidden and inner width halved, three quarters of it, then either alone."""
    hidden = _half(config, ("hidden_size",))
    inner = _half(
        config, ("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim")
    )
    for name, part in vars(config).items():
        if isinstance(part, PretrainedConfig) and name == "text_config":
            nested = [{name: sizes} for sizes in _halved(part)]
            if not hidden:
                yield from nested
                return
    # Half the hidden size may equal the embedding size by accident, where some models drop a projection.
    wide = {name: size // 2 * 3 for name, size in hidden.items()}
    for sizes in ({**hidden, **inner}, {**wide, **inner} if wide else {}, hidden, inner):
        if sizes:
            yield sizes


def _half(config: PretrainedConfig, names: tuple[str, ...]) -> dict[str, int]:
    sizes = {name: getattr(config, name, None) for name in names if name in {*vars(config), *config.attribute_map}}
    return {name: size // 2 for name, size in sizes.items() if isinstance(size, int) and size >= 2}


def _leaf_names(sizes: dict[str, Any]) -> tuple[str, ...]:
    names: list[str] = []
    for name, size in sizes.items():
        names += [f"{name}.{below}" for below in _leaf_names(size)] if isinstance(size, dict) else [name]
    return tuple(names)


def _outputs(model: torch.nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    # With gradients: torch.matmul takes another path for weights that record none, with other rounding.
    with quiet_forward(model), torch.enable_grad():
        return [tensor.detach() for tensor in output_tensors(model(**inputs))]


def _equal(a: list[Tensor], b: list[Tensor], tolerance: float = 0.0) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, tolerance, tolerance) for x, y in zip(a, b, strict=True))


def _loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([t.float().square().mean() for t in outputs if t.is_floating_point() and t.requires_grad]).sum()


def _line(cause: object) -> str:
    lines = [line.strip("- ") for line in str(cause).strip().splitlines() if line.strip()]
    useful = [line for line in lines if "cannot become a student" not in line and "No student of" not in line]
    return ((useful or lines or [type(cause).__name__])[0])[:300]
