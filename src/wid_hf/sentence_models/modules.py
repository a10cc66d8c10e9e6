"""The modules behind the transformer of a sentence-transformers model: pooling, dense layers, normalisation.

Takes their files; gives functions of vectors, and the same modules for a student's widths. Called by the pipeline and
its reader. What each computes is what sentence-transformers computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..errors import TeacherError, WidError
from .files import ModelFiles
from .pooling import KEYS, LINEAR, POOLINGS

CONFIG, WEIGHTS = "config.json", "model.safetensors"
WIDTHS = ("word_embedding_dimension", "embedding_dimension")  # the key before version 5.4 and the key now
EMBEDDING = "sentence_embedding"  # what the vectors of texts are called between modules
WITHOUT = "task=features trains the transformer alone, and saves nothing behind it."


@dataclass(frozen=True, eq=False)
class SentenceModule:
    """One module behind the transformer.

    Attributes:
        config: as its file has it; empty if it has none.
    """

    config: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its weights by their names in its file."""
        return {}


@dataclass(frozen=True, eq=False)
class Pooling(SentenceModule):
    """One vector per text; those of several modes stand behind each other.

    Attributes:
        modes: keys of `POOLINGS`.
        include_prompt: whether tokens of the prompt count.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    @classmethod
    def read(cls, files: ModelFiles, folder: str) -> Pooling:
        """Return the module of `folder`, in either layout of its config.

        Raises:
            TeacherError: a mode is unknown.
        """
        config = files.required(f"{folder}/{CONFIG}")
        given = config.get("pooling_mode", [mode for key, mode in KEYS.items() if config.get(key)] or "mean")
        modes = (given,) if isinstance(given, str) else tuple(given)
        if unknown := [mode for mode in modes if mode not in POOLINGS]:
            raise TeacherError(
                f"{folder}/{CONFIG} of {files.model} pools by {', '.join(map(repr, unknown))}. Known: "
                f"{', '.join(POOLINGS)}. Change it if it is a slip; task=features trains the transformer without it."
            )
        return cls(config, modes, config.get("include_prompt", True))

    @property
    def is_linear(self) -> bool:
        """Whether the vector of turned states is the turned vector."""
        return LINEAR.issuperset(self.modes)

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return vectors `(b, modes * h)`, float32, of `states (b, s, h)` with the attention mask `(b, s)`."""
        return torch.cat([POOLINGS[mode](states, mask) for mode in self.modes], dim=-1)

    def narrowed(self, width: int) -> Pooling:
        """Return this pooling for states of another width."""
        return replace(self, config={**self.config, **{key: width for key in WIDTHS if key in self.config}})


@dataclass(frozen=True, eq=False)
class Normalize(SentenceModule):
    """Vectors of length 1."""

    @classmethod
    def read(cls, files: ModelFiles, folder: str) -> Normalize:
        """Return the module of `folder`.

        Raises:
            TeacherError: it normalises something else than the vectors of texts.
        """
        return cls(_of_vectors(files.settings(f"{folder}/{CONFIG}"), files, folder))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return `vectors (b, m)` divided by their lengths."""
        return functional.normalize(vectors, dim=-1)


@dataclass(frozen=True, eq=False)
class Dense(SentenceModule):
    """A matrix, a bias and an activation.

    Attributes:
        weight: `(m, n)`.
        bias: `(m,)`, if it has one.
        activation: of the result.
    """

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module

    @classmethod
    def read(cls, files: ModelFiles, folder: str) -> Dense:
        """Return the module of `folder`.

        Raises:
            TeacherError: there are no weights in safetensors, the activation is not one of torch's, it adds its input
                to its result, or it reads something else than the vectors of texts.
        """
        config = _of_vectors(files.required(f"{folder}/{CONFIG}"), files, folder)
        if config.get("use_residual"):
            raise TeacherError(f"{folder} of {files.model} adds its input to its result. {WITHOUT}")
        weights = _weights(files, f"{folder}/{WEIGHTS}")
        if "linear.weight" not in weights:
            raise TeacherError(f"{folder}/{WEIGHTS} of {files.model} lacks linear.weight. Download it again.")
        return cls(config, weights["linear.weight"], weights.get("linear.bias"), _activation(config, files, folder))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors `(b, m)` of `vectors (b, n)`."""
        bias = None if self.bias is None else self.bias.to(vectors)
        made: Tensor = self.activation(functional.linear(vectors, self.weight.to(vectors), bias))
        return made

    def narrowed(self, width: int, output_map: Tensor | None) -> Dense:
        """Return this layer for a student's pooled vectors; its result stays in the same space.

        Args:
            width: of the student's pooled vectors.
            output_map: `(h, k)` from the teacher's last hidden states to the student's. Pooled vectors of several modes
                are several of these widths. None if nobody knows it, or there is none.

        Raises:
            WidError: there is no map, and the layer is for another width.
        """
        if output_map is None:
            if self.weight.shape[1] != width:
                raise WidError(
                    f"The dense layer of this sentence-transformers model takes vectors of {self.weight.shape[1]} "
                    f"numbers, and the student's have {width}. It can follow only a student whose outputs are a map of "
                    "the teacher's."
                )
            return self
        per_mode = self.weight.float().unflatten(1, (-1, len(output_map)))
        weight = (per_mode @ output_map.to(self.weight.device).float()).flatten(1).to(self.weight.dtype)
        return replace(self, config={**self.config, "in_features": width}, weight=weight)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Weight and bias by their names in its file."""
        return {"linear.weight": self.weight} | ({} if self.bias is None else {"linear.bias": self.bias})


def _of_vectors(config: dict[str, Any], files: ModelFiles, folder: str) -> dict[str, Any]:
    """Return the config of a module of the vectors of texts; refuse one of something else."""
    places = {config.get(key) or EMBEDDING for key in ("module_input_name", "module_output_name")}
    if places != {EMBEDDING}:
        raise TeacherError(
            f"{folder} of {files.model} reads or writes {', '.join(sorted(places - {EMBEDDING}))}, not the vectors of "
            f"texts ({EMBEDDING}). {WITHOUT}"
        )
    return config


def _weights(files: ModelFiles, file: str) -> dict[str, Tensor]:
    path = files.path(file)
    if path is None:
        raise TeacherError(
            f"{files.model} has no {file}. Weights in pytorch_model.bin are not read: it is a pickle, which can run "
            "any code. If you trust the model, load and save it with sentence-transformers, which writes safetensors."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"{file} of {files.model} is damaged ({error}). Download it again.") from error


def _activation(config: Mapping[str, Any], files: ModelFiles, folder: str) -> nn.Module:
    """Return the activation that a config names by its import path, such as `torch.nn.modules.activation.Tanh`."""
    path = str(config.get("activation_function", "torch.nn.Tanh"))
    kind = getattr(nn, path.rpartition(".")[2], None)
    if path.startswith("torch.nn.") and isinstance(kind, type) and issubclass(kind, nn.Module):
        with suppress(TypeError):  # of a module that needs arguments, which is no activation
            return kind()
    raise TeacherError(f"{folder} of {files.model} has the activation {path}, which is none of torch.nn. {WITHOUT}")
