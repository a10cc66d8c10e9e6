"""The start of a student that several processes train: made by the first one, the same in all, and proved so.

Takes a wid model in each process, before it is wrapped or sharded. Called when the start is made, and by `WidTrainer`
before it makes an optimizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import TrainingArguments

from ..adapter.fingerprint import digest
from ..errors import TrainingError


def start_once(model: PeftModel, args: TrainingArguments, make: Callable[[], None]) -> None:
    """Let the first process make the start of a wid model, and all others load it as they load an adapter.

    Args:
        model: the same wid model in every process.
        args: say which process this is.
        make: makes the start; called in the first process only.

    Raises:
        TrainingError: in the other processes, what `make` raised in the first one.
        TeacherError: in the other processes, if their teacher has other weights.
    """
    if args.world_size == 1:
        make()
        return
    error: Exception | None = None
    if args.process_index == 0:
        try:
            make()
        except Exception as raised:  # the others wait: they must be told of any error
            error = raised
    (told,) = broadcast_object_list([f"{type(error).__name__}: {error}" if error is not None else None])
    if error is not None:
        raise error
    if told is not None:
        raise TrainingError(f"The first process could not make the start of the student. {told}")
    state = _shared_by_first(get_peft_model_state_dict(model) if args.process_index == 0 else {}, args)
    if args.process_index:
        set_peft_model_state_dict(model, state)


def refuse_unequal_starts(model: PeftModel, args: TrainingArguments) -> None:
    """Refuse models that do not have the same weights, bit for bit, in every process.

    Raises:
        TrainingError: in every process; names the processes that differ from the first one.
    """
    if args.world_size == 1:
        return
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(digest(name, tensor))
    found = gather_object([sha.hexdigest()])
    if others := [str(at) for at, each in enumerate(found) if each != found[0]]:
        raise TrainingError(
            f"The model of process {', '.join(others)} has other weights than that of process 0, so they would not "
            "train one student. Make the same teacher in every process: load it from the same folder, and call "
            "transformers.set_seed(...) before a head is made with random weights."
        )


def _shared_by_first(state: dict[str, Tensor], args: TrainingArguments) -> dict[str, Tensor]:
    """Return the tensors of the first process in every process, on the CPU."""
    (layout,) = broadcast_object_list([[(key, t.shape, t.dtype) for key, t in state.items()]])
    found = {}
    for key, shape, dtype in layout:
        tensor = (
            state[key].detach().to(args.device) if key in state else torch.empty(shape, dtype=dtype, device=args.device)
        )
        found[key] = broadcast(tensor.contiguous()).cpu()
    return found
