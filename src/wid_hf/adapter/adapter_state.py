"""What a saved adapter holds, and the checks before any of it is loaded.

Takes a wid model inside its `PeftModel` and a state dict; gives the part that is saved, or the part that may be
loaded. Called by PEFT through the tuner's hooks. A list of digests is saved with the tensors: of each tensor, of the
teacher, and of the sizes in `adapter_config.json`, since two students may have weights of the same shapes and still
be different functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config import WidConfig
from ..errors import TeacherError, WidError
from ..layers import whole
from .fingerprint import Fingerprint, digest

STUDENT = "base_model.model."  # PEFT's prefix for the names of the model that runs
DIGESTS = "base_model.digests"  # (2 + tensors, 32) bytes: of the sizes, of the teacher, of each tensor
SHIFT = ".shift"
AGAIN = "Download or save the adapter again."


def saved_state(
    model: PeftModel, config: WidConfig, teacher: Fingerprint, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return compactors, index sets, and each weight of the teacher that trains or has changed, with their digests.

    Args:
        model: the `PeftModel`.
        config: of the adapter.
        teacher: the teacher before any training.
        state: the state dict of `model`, gathered from all processes; teacher's weights that it lacks are unchanged.
    """
    own, teachers = _keys(model, teacher.names)
    trains = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    here = {key: name for key, name in teachers.items() if key in state}
    moved = [key for key, name in here.items() if key in trains or teacher.changed(name, state[key])]
    saved = {key: state[key] for key in [*own, *moved]}
    rows = [*_origin(config, teacher), *(digest(key, tensor) for key, tensor in saved.items())]
    return saved | {DIGESTS: torch.tensor([list(row) for row in rows], dtype=torch.uint8)}


def gathered_state(model: PeftModel, teacher: Fingerprint, *, keeps: bool) -> dict[str, Tensor]:
    """Return what `saved_state` needs of a model whose tensors are shared by processes, one tensor after the other.

    All processes must call this.

    Args:
        model: the `PeftModel`.
        teacher: the teacher before any training.
        keeps: whether this process saves; others only give their parts, and return nothing.
    """
    own, teachers = _keys(model, teacher.names)
    trains = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    parts = model.state_dict(keep_vars=True)
    found = {}
    for key in [*own, *teachers]:
        tensor = whole(parts[key]).detach()
        if keeps and (key not in teachers or key in trains or teacher.changed(teachers[key], tensor)):
            found[key] = tensor.cpu()
    return found


def proved_state(config: WidConfig, teacher: Fingerprint, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all that `saved_state` gave, after proving by digests that nothing has changed.

    Args:
        config: of the adapter.
        teacher: the teacher of the model to load into, before any training.
        state: what was read from the adapter's file.

    Raises:
        TeacherError: the adapter was made from another teacher.
        WidError: the file is damaged or incomplete, or the config is not that of the adapter.
    """
    listed = _listed(state)
    sizes, origin = _origin(config, teacher)
    if sizes not in listed:
        raise WidError(
            f"The sizes in adapter_config.json ({_sizes(config)}) are not those of the adapter's weights, or one of "
            f"the two files is damaged. {AGAIN}"
        )
    if origin not in listed:
        refuse_other_teacher(None, teacher)
    # Tensors that are not listed come from elsewhere: PEFT's save_embedding_layers=True adds the teacher's tables.
    proved = {key: tensor for key, tensor in state.items() if key != DIGESTS and digest(key, tensor) in listed}
    if lost := len(listed) - 2 - len(proved):
        raise WidError(
            f"Checksum mismatch for {lost} of the adapter's {len(listed) - 2} tensors: they were changed or are "
            f"missing. {AGAIN}"
        )
    return proved


def fitting_state(
    model: PeftModel, config: WidConfig, teacher: Fingerprint, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return `state`, the proved state of an adapter, after checking that it fits `model`.

    Shifts of norms' vectors that an adapter of format 1 does not have are zero.

    Args:
        model: the `PeftModel`, whose weights may have been trained since it was made; in the adapter's phase of a
            progressive training.
        config: of the adapter.
        teacher: its teacher before any training.
        state: the result of `proved_state`.

    Raises:
        WidError: the model is not that of the adapter.
    """
    own, teachers = _keys(model, teacher.names)
    here = model.state_dict()
    if config.format_version == 1:
        state = {**_zero_shifts(own, here), **state}
    fits = {key for key, tensor in state.items() if key in here and here[key].shape == tensor.shape}
    if unfit := sorted({*own, *state} - fits):
        raise WidError(
            f"{len(unfit)} tensors of adapter and student differ in name or shape, the first is {unfit[0]}. Either "
            "adapter_config.json was changed, or the adapter was saved with another version of wid_hf or of the "
            "model's code. Use those versions."
        )
    if moved := [name for key, name in teachers.items() if key not in state and teacher.changed(name, here[key])]:
        raise WidError(
            f"The adapter leaves {len(moved)} of the teacher's weights unchanged, the first is {moved[0]}, but in this "
            "model they were trained. Load it onto a fresh copy of the teacher."
        )
    return dict(state)


def refuse_other_teacher(saved: str | None, teacher: Fingerprint) -> None:
    """Refuse a teacher whose fingerprint is not `saved`.

    Raises:
        TeacherError: the message says what to load.
    """
    if saved != teacher.value:
        raise TeacherError(
            "The adapter was made from another teacher: the weights given differ in names, shapes, dtypes or values. "
            "Load the one that adapter_config.json names (base_model_name_or_path, revision), in the dtype it had "
            "then and before any training."
        )


def _zero_shifts(own: Iterable[str], here: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(here[key]) for key in own if key.endswith(SHIFT)}


def _listed(state: Mapping[str, Tensor]) -> set[bytes]:
    rows = state.get(DIGESTS)
    if rows is None or rows.ndim != 2 or rows.dtype != torch.uint8:
        raise WidError(
            f"The adapter's file holds no list of checksums: it is damaged, or was not saved by wid_hf. {AGAIN}"
        )
    return {bytes(row) for row in rows.tolist()}


def _origin(config: WidConfig, teacher: Fingerprint) -> tuple[bytes, bytes]:
    return hashlib.sha256(_sizes(config).encode()).digest(), bytes.fromhex(teacher.value)


def _sizes(config: WidConfig) -> str:
    sizes = json.dumps(config.requested | {"head_strategy": config.head_strategy})
    return json.dumps(json.loads(sizes), sort_keys=True)  # first as JSON: it turns layer numbers into texts


def _keys(model: PeftModel, names: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the keys of the student's own tensors, and those of the teacher's weights with their first names.

    Of a tensor with several keys, such as a tied table, it is the first one.
    """
    student = model.base_model.model
    teachers = {f"{STUDENT}{_key(student, name)}": first for name, first in names.items()}
    keys = {id(tensor): key for key, tensor in reversed(model.state_dict(keep_vars=True).items())}.values()
    return [key for key in keys if key not in teachers], {key: teachers[key] for key in keys if key in teachers}


def _key(student: nn.Module, name: str) -> str:
    """Return the student's key of the tensor from which its weight `name` is computed."""
    path, _, attribute = name.rpartition(".")
    if not parametrize.is_parametrized(student.get_submodule(path), attribute):
        return name
    return ".".join(filter(None, (path, "parametrizations", attribute, "original")))
