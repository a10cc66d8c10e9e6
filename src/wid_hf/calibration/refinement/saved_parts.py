"""Finished parts of a refinement in a folder, so that a later call goes on behind them.

One safetensors file for each part, and `refinement.json` with what they started from. Called by `layer_by_layer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...atomic_write import atomic_write
from ...errors import OutputError
from ...layers.folded_weight import places
from ..report import RefinedPart
from .pieces import Pieces

RECORD = "refinement.json"


class SavedParts:
    """The parts of one refinement in a folder.

    Args:
        folder: made if it does not exist.
        start: digest of what the refinement starts from.
        parts: those that are finished, by name.
    """

    def __init__(self, folder: Path, start: str, parts: dict[str, RefinedPart]) -> None:
        self._folder, self._start, self._parts = folder, start, parts

    @classmethod
    def of(cls, folder: Path, student: nn.Module, pieces: Pieces, *numbers: int) -> SavedParts:
        """Return what a folder holds of the refinement of a student on pieces, with these further arguments.

        Raises:
            OutputError: it holds the refinement of another start, or a record that cannot be read.
        """
        start = _digest(student, pieces, numbers)
        if not (folder / RECORD).exists():
            return cls(folder, start, {})
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            parts = {part["name"]: RefinedPart(**part) for part in record["parts"]}
            is_same = record["start"] == start
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{folder / RECORD} cannot be read ({error}). Give another folder.") from error
        if not is_same:
            raise OutputError(
                f"The folder {folder} holds the refinement of another start: another teacher, other sizes, texts or "
                "steps. Give another folder, or delete this one."
            )
        return cls(folder, start, parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def part(self, name: str) -> RefinedPart:
        """Return the record of a finished part."""
        return self._parts[name]

    def state(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a finished part.

        Raises:
            OutputError: they cannot be read.
        """
        try:
            return load_file(self._path(name))
        except Exception as error:  # safetensors has errors of its own
            raise OutputError(f"{self._path(name)} cannot be read ({error}). Give another folder.") from error

    def save(self, part: RefinedPart, state: Mapping[str, Tensor]) -> None:
        """Add a finished part.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be made: {error}.") from error
        with atomic_write(self._path(part.name)) as path:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        self._parts[part.name] = part
        record = {"start": self._start, "parts": [asdict(each) for each in self._parts.values()]}
        with atomic_write(self._folder / RECORD) as path:
            path.write_text(json.dumps(record, indent=2), encoding="utf-8")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _digest(student: nn.Module, pieces: Pieces, numbers: tuple[int, ...]) -> str:
    """Return a digest of the student's weights, of the data and of further arguments."""
    seen = sha256(repr(numbers).encode())
    for place in sorted(places(student), key=lambda place: place.spot):
        _add(seen, ".".join(place.spot), place.weight.fold(place.original))
    for piece in pieces.all:
        for name, value in sorted(piece.items()):
            _add(seen, name, value) if isinstance(value, Tensor) else seen.update(f"{name} {value}".encode())
    return seen.hexdigest()


def _add(seen: Any, name: str, tensor: Tensor) -> None:
    seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
