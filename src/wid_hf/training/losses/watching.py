"""Records inputs and outputs of modules in one forward of a model.

Takes a model and names of modules; hooks exist only while a forward runs. Called by the losses that compare a student
with its teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrainingError

Call = tuple[str, int]  # a module, and how often it was called before in the same forward


@dataclass
class Seen:
    """What was recorded in one forward.

    Attributes:
        given: the input tensors of modules, in order, by call.
        returned: the output tensors of modules.
        ran: whether hooks ran at all.
        detached: the modules that ran where no gradients are recorded.
        output: the model's output.
        labelled: whether its logits are those of labelled positions only, as `LabelledPositions` makes them.
    """

    given: dict[Call, Tensor] = field(default_factory=dict)
    returned: dict[Call, Tensor] = field(default_factory=dict)
    ran: bool = False
    detached: set[str] = field(default_factory=set)
    output: Any = None
    labelled: bool = False


@contextmanager
def watch(
    model: nn.Module, of_inputs: Collection[str], of_outputs: Collection[str], place: Callable[[str], str] = str
) -> Iterator[Seen]:
    """Record the first input tensor of modules in `of_inputs`, and the first output tensor of those in `of_outputs`.

    Args:
        model: runs inside.
        of_inputs: names under which inputs are recorded.
        of_outputs: names under which outputs are recorded.
        place: gives the model's own name of each.
    """
    seen = Seen()
    given: Counter[str] = Counter()
    returned: Counter[str] = Counter()

    def note_run(module: nn.Module, args: Any) -> None:
        seen.ran = True

    def note_gradients(name: str) -> None:
        if not torch.is_grad_enabled():
            seen.detached.add(name)

    def note_given(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.given[name, given[name]] = args[0]
            given[name] += 1
            note_gradients(name)

        return hook

    def note_returned(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                seen.returned[name, returned[name]] = first
            returned[name] += 1
            note_gradients(name)

        return hook

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(note_run).remove)
        for name in of_inputs:
            stack.callback(model.get_submodule(place(name)).register_forward_pre_hook(note_given(name)).remove)
        for name in of_outputs:
            stack.callback(model.get_submodule(place(name)).register_forward_hook(note_returned(name)).remove)
        yield seen


def pairs(
    student: Seen, mine: Mapping[Call, Tensor], theirs: Mapping[Call, Tensor]
) -> dict[Call, tuple[Tensor, Tensor]]:
    """Return the tensors that were recorded in both forwards, by call, in the student's order.

    A student that trains may skip layers at random (layerdrop); the result then lacks these.

    Args:
        student: recorded in the student's forward.
        mine: its inputs or its outputs.
        theirs: the same of the teacher.

    Raises:
        TrainingError: nothing can be recorded in the student's forward.
    """
    if not student.ran or not theirs:
        raise TrainingError(
            "Distillation found no outputs of the student's modules, because its forward is compiled or skips hooks. "
            'Use distillation=["logits"], or no torch_compile.'
        )
    return {call: (tensor, theirs[call]) for call, tensor in mine.items() if call in theirs}


def refuse_detached(seen: Seen) -> None:
    """Refuse a forward that was recorded without gradients."""
    if seen.detached:
        raise TrainingError(
            'distillation "hidden" and "relations" get no gradients through reentrant gradient checkpointing: set '
            'gradient_checkpointing_kwargs={"use_reentrant": False}, or leave gradient_checkpointing out.'
        )
