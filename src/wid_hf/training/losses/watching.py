"""What one forward of a model shows to those who compare two models: what modules read and what they return.

Takes a model and names of modules; hooks are there while a forward runs, and gone after it. Called by the losses that
compare a student with its teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrainingError

Call = tuple[str, int]  # a module, and how often it was called before in the same forward


@dataclass
class Seen:
    """What one forward showed.

    Attributes:
        read: the tensors that modules read, in order, by call.
        returned: the tensors that modules returned.
        ran: whether the model's own call was seen, without which nothing can be.
        recorded: False where some of these were made without gradients.
        output: what the model returned.
        labelled: whether its logits are those of labelled positions only, as `LabelledPositions` makes them.
    """

    read: dict[Call, Tensor] = field(default_factory=dict)
    returned: dict[Call, Tensor] = field(default_factory=dict)
    ran: bool = False
    recorded: bool = True
    output: Any = None
    labelled: bool = False


@contextmanager
def watch(model: nn.Module, readers: Collection[str], returning: Collection[str]) -> Iterator[Seen]:
    """Note the first tensor that each of `readers` is given and that each of `returning` returns."""
    seen = Seen()
    read: Counter[str] = Counter()
    returned: Counter[str] = Counter()

    def note_run(module: nn.Module, args: Any) -> None:
        seen.ran = True

    def note_read(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.read[name, read[name]] = args[0]
            read[name] += 1
            seen.recorded &= torch.is_grad_enabled()

        return hook

    def note_returned(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                seen.returned[name, returned[name]] = first
            returned[name] += 1
            seen.recorded &= torch.is_grad_enabled()

        return hook

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(note_run).remove)
        for name in readers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note_read(name)).remove)
        for name in returning:
            stack.callback(model.get_submodule(name).register_forward_hook(note_returned(name)).remove)
        yield seen


def pairs(
    student: Seen, shown: Mapping[Call, Tensor], wanted: Mapping[Call, Tensor]
) -> dict[Call, tuple[Tensor, Tensor]]:
    """Return what both forwards showed, by call, in the student's order.

    A student that trains may skip layers at random (layerdrop), of which nothing is returned then.

    Args:
        student: what the student's forward showed.
        shown: of that, what is to be compared.
        wanted: the same of the teacher.

    Raises:
        TrainingError: the student's forward cannot be watched.
    """
    if not student.ran or not wanted:
        raise TrainingError(
            "Distillation found no outputs of the student's modules, because its forward is compiled or skips hooks. "
            'Use distillation=["logits"], or no torch_compile.'
        )
    return {call: (mine, wanted[call]) for call, mine in shown.items() if call in wanted}


def refuse_detached(seen: Seen) -> None:
    """Refuse what a forward showed without gradients."""
    if not seen.recorded:
        raise TrainingError(
            'distillation "hidden" and "relations" get no gradients through reentrant gradient checkpointing: set '
            'gradient_checkpointing_kwargs={"use_reentrant": False}, or leave gradient_checkpointing out.'
        )
