"""Example inputs as JSON, so that an adapter whose model needed them can be planned again when it is loaded.

Takes keyword arguments of a forward, gives what `adapter_config.json` can hold, and back. Tensors are safetensors,
compressed and in base64: reading them never runs code.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import ConfigError

_KEYS = {"arguments", "tensors"}


def as_arguments(inputs: Any) -> dict[str, Any]:
    """Return `inputs` as a dictionary.

    Raises:
        ConfigError: they are not keyword arguments.
    """
    if not isinstance(inputs, Mapping):
        raise ConfigError(
            f"example_inputs={inputs!r} is not a dictionary of keyword arguments for the model's forward. Pass one, "
            'such as {"input_ids": tensor}.'
        )
    return dict(inputs)


def packed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments in a form for JSON; packed ones are returned unchanged.

    Raises:
        ConfigError: this is not a dictionary, or an argument is neither a tensor, a number, a text, None, nor a list or
            dictionary of these.
    """
    inputs = as_arguments(inputs)
    if inputs.keys() == _KEYS:
        return inputs
    tensors: dict[str, Tensor] = {}
    arguments = {name: _described(value, name, tensors) for name, value in inputs.items()}
    return {"arguments": arguments, "tensors": b64encode(zlib.compress(save(tensors))).decode("ascii")}


def unpacked(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the keyword arguments that were `packed`, or None if there are none; plain ones are returned unchanged.

    Raises:
        ConfigError: this is not a dictionary, or not a result of `packed`.
    """
    if stored is None:
        return None
    stored = as_arguments(stored)
    if stored.keys() != _KEYS:
        return stored
    try:
        tensors = load(zlib.decompress(b64decode(stored["tensors"])))
        return {name: _restored(value, tensors) for name, value in stored["arguments"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error, SafetensorError) as cause:
        raise ConfigError(
            "example_inputs in the adapter's config is damaged: load the config by WidConfig.from_pretrained(folder), "
            "set config.example_inputs to the keyword arguments of one forward, and pass the config as config=."
        ) from cause


def _described(value: Any, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().clone().contiguous()
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _described(inner, f"{place}.{key}", tensors) for key, inner in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_described(inner, f"{place}.{at}", tensors) for at, inner in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ConfigError(
        f"example_inputs: {place} is a {type(value).__name__}; tensors, numbers, texts, None and lists or dictionaries "
        "of these can be saved with an adapter."
    )


def _restored(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {name: _restored(inner, tensors) for name, inner in content.items()}
    return [_restored(inner, tensors) for inner in content] if kind == "list" else content
