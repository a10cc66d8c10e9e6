"""The stock model that results from a merge, and where it may be saved.

Takes the teacher, a config and folded weights. Called by the tuner.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import wraps
from inspect import signature
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from ..config import PeftType
from ..coupling.trace import saved_tensors
from ..errors import OutputError, WidError
from ..planning.empty_student import empty_student
from .output_map import remove_output_map, save_output_map

ASIDE = "wid_adapter"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def stock_model(
    teacher: PreTrainedModel, config: PretrainedConfig, weights: Mapping[str, Tensor], names: Mapping[str, str]
) -> PreTrainedModel:
    """Return an instance of the teacher's class with these weights; names of one tensor stay tied.

    Args:
        teacher: its class, device and mode are used.
        config: the current one; it may have been changed since the student was made.
        weights: by their first names.
        names: every name in a checkpoint with the first name of the same tensor.

    Raises:
        WidError: the config is not that of a model with weights of these shapes, so that it could not be loaded again.
    """
    advice = "Set the sizes in model.config back, or change them on the teacher before get_wid_model."
    try:
        student = empty_student(teacher, config)
    except Exception as cause:  # a class may raise anything for a config from which it cannot be made
        raise WidError(
            f"{type(teacher).__name__} cannot be made from model.config as it is now: {cause} {advice}"
        ) from cause
    wrong = []
    tensors: dict[str, Tensor] = {}
    if others := sorted(set(saved_tensors(student)) ^ set(names)):
        raise WidError(f"model.config as it is now does not have the weights that were trained: {others[0]}. {advice}")
    ties = [getattr(each.get_text_config(), "tie_word_embeddings", None) for each in (config, teacher.config)]
    if ties[0] != ties[1]:
        raise WidError(
            f"model.config.tie_word_embeddings is {ties[0]} now; the weights were trained with {ties[1]}. {advice}"
        )
    for name, first in names.items():
        path, _, attribute = name.rpartition(".")
        module = student.get_submodule(path)
        there = getattr(module, attribute)
        if there.shape != weights[first].shape:
            wrong.append(f"{name} is {tuple(weights[first].shape)}, in model.config {tuple(there.shape)}")
        elif isinstance(there, nn.Parameter):
            module.register_parameter(attribute, tensors.setdefault(first, nn.Parameter(weights[first])))
        else:
            module.register_buffer(attribute, tensors.setdefault(first, weights[first]))
    if wrong:
        raise WidError(f"{len(wrong)} weights do not fit model.config as it is now: {wrong[0]}. {advice}")
    return student


def generation_config_of(
    live: GenerationConfig | None, config: PretrainedConfig, teacher: PretrainedConfig
) -> GenerationConfig | None:
    """Return a copy of the live generation config for a model with `config`.

    A generation config that its class derived from the teacher's config follows later changes of special tokens in the
    config: `Trainer` only adds the new end token and keeps the old one, which came from the old config.
    """
    found = deepcopy(live)
    if found is None or not getattr(found, "_from_model_config", False):
        return found
    now, before = (each.get_text_config(decoder=True) for each in (config, teacher))
    for name in SPECIAL_TOKENS:
        if getattr(now, name, None) != getattr(before, name, None):
            setattr(found, name, getattr(now, name))
    return found


def remember_map(student: PreTrainedModel, output_map: Tensor | None) -> None:
    """Let a merged student know how its first outputs follow from its teacher's; `map_of` asks it."""
    student.wid_output_map = output_map


def map_of(student: nn.Module) -> Tensor | None:
    """Return the map `(n, k)` from the teacher's first outputs to those of a merged student.

    None if they are as wide as the teacher's, or it is not such a student, or it was saved and loaded since.
    """
    found: Tensor | None = getattr(student, "wid_output_map", None)
    return found


def prepare_saving(student: PreTrainedModel, output_map: Tensor | None) -> None:
    """Make `student.save_pretrained` do two things that the class's own does not.

    An adapter of wid_hf in the same folder moves to a subfolder: `from_pretrained` looks for `adapter_config.json`
    first, and would load the teacher with the adapter, or fail if wid_hf is not installed. The map of turned outputs
    is saved beside the student, and pushed with it.

    Args:
        student: the merged student.
        output_map: `(n, k)` from the teacher's outputs to the student's; None if they are not turned.
    """
    own = type(student).save_pretrained

    @wraps(own)
    def save_pretrained(self: PreTrainedModel, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        folder = Path(save_directory)
        _set_aside(folder)
        if output_map is None:
            remove_output_map(folder)  # of another student that was saved here before
            return own(self, save_directory, *args, **kwargs)
        own(self, save_directory, *args, **kwargs | {"push_to_hub": False})
        if not kwargs.get("is_main_process", True):
            return None
        save_output_map(output_map, folder)
        if kwargs.get("push_to_hub"):
            # The class's own would have uploaded the folder before the map was there.
            told = {name: kwargs[name] for name in signature(self.push_to_hub).parameters if name in kwargs}
            return self.push_to_hub(**{"repo_id": folder.name} | told)
        return None

    student.save_pretrained = MethodType(save_pretrained, student)


def _set_aside(folder: Path) -> None:
    """Move the files of an adapter of wid_hf into a subfolder.

    Raises:
        OutputError: there is an adapter of another method.
    """
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return
    try:
        method = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError):
        method = None
    if method != PeftType.WID.value:
        raise OutputError(
            f"The folder {folder} holds an adapter ({ADAPTER_CONFIG_NAME}, peft_type {method!r}), and from_pretrained "
            "would load that instead of the student. Save the student in another folder."
        )
    number = 1
    while (aside := folder / (ASIDE if number == 1 else f"{ASIDE}-{number}")).exists():
        number += 1
    aside.mkdir()
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    warnings.warn(
        f"The folder {folder} held a wid adapter, and from_pretrained would load that instead of the student. The "
        f"adapter is in {aside} now.",
        stacklevel=4,
    )
