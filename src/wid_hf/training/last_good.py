"""The last good weights of a training: what it goes back to when its loss is no longer finite.

Takes the parameters that train; keeps one copy of their values, on their device, in memory of the CPU or on disk.
Called by `StudentTrainer`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic_write import atomic_write
from ..errors import ConfigError, OutputError

PLACES = ("device", "cpu", "disk")
FILE = "wid_last_good-{}.safetensors"  # by number of the process
FILES = re.compile(r"\.?wid_last_good-\d+\.safetensors(-\d+)?")  # also one whose writing was killed


class LastGood(ABC):
    """One copy of the weights that train.

    Attributes:
        step: optimizer steps after which the weights were these; None if there is no copy.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._parameters: list[nn.Parameter] = []

    def is_of(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Return whether the copy is of these very parameters."""
        return [*map(id, self._parameters)] == [*map(id, parameters)]

    @torch.no_grad()
    def keep(self, step: int, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the values that `parameters` have after `step`; the earlier copy goes.

        Raises:
            OutputError: the copy cannot be written to disk.
        """
        if not self.is_of(parameters):
            self.drop()
        self._write([*map(_own_part, parameters)])
        self.step, self._parameters = step, [*parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copy into its parameters."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # the copy may still be on its way to the CPU
        for at, parameter in enumerate(self._parameters):
            _own_part(parameter).copy_(self._read(at))

    def drop(self) -> None:
        """Let go of the copy."""
        self.step, self._parameters = None, []

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The copy's tensors that are in memory."""
        return ()

    @abstractmethod
    def _write(self, tensors: Sequence[Tensor]) -> None:
        """Keep the values of `tensors`, those of the last call if there is a copy."""

    @abstractmethod
    def _read(self, at: int) -> Tensor:
        """Return the value of the tensor with this number."""


class InMemory(LastGood):
    """A copy in memory, written over by the next: of the weights' own device, or of the CPU.

    Args:
        on_cpu: whether it is in the CPU's memory, where an accelerator can copy to it without waiting.
    """

    def __init__(self, on_cpu: bool = False) -> None:
        super().__init__()
        self._on_cpu = on_cpu
        self._values: list[Tensor] = []

    def drop(self) -> None:
        """Let go of the copy."""
        super().drop()
        self._values = []

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The copy's tensors."""
        return self._values

    def _write(self, tensors: Sequence[Tensor]) -> None:
        if not self._values:
            self._values = [_on_cpu_like(each) if self._on_cpu else torch.empty_like(each) for each in tensors]
        for value, tensor in zip(self._values, tensors, strict=True):
            value.copy_(tensor, non_blocking=True)  # in order with the optimizer's step, which comes after it

    def _read(self, at: int) -> Tensor:
        return self._values[at]


class OnDisk(LastGood):
    """A copy in a file of safetensors, which goes with it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def drop(self) -> None:
        """Let go of the copy."""
        super().drop()
        self._path.unlink(missing_ok=True)

    def _write(self, tensors: Sequence[Tensor]) -> None:
        named = {str(at): _alone(tensor) for at, tensor in enumerate(tensors)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(self._path) as unfinished:
                save_file(named, unfinished)
        except (OutputError, SafetensorError) as error:
            raise OutputError(
                f"The copy of the last good weights cannot be written: {error} Keep it in memory "
                '(keep_last_good="cpu"), or keep none (keep_last_good=None).'
            ) from error

    def _read(self, at: int) -> Tensor:
        with safe_open(self._path, framework="pt") as file:
            value: Tensor = file.get_tensor(str(at))
        return value


def last_good(place: str | None, folder: Path, process: int = 0) -> LastGood | None:
    """Return where a training keeps its last good weights; None if it keeps none.

    Args:
        place: `"device"`, `"cpu"`, `"disk"` or None.
        folder: of the file on disk.
        process: number of this one among those that train.
    """
    if place is None:
        return None
    return OnDisk(folder / FILE.format(process)) if place == "disk" else InMemory(on_cpu=place == "cpu")


def refuse_unknown_place(place: object) -> None:
    """Refuse what is no place for the last good weights.

    Raises:
        ConfigError: the message has those that are legal.
    """
    if place is not None and place not in PLACES:
        raise ConfigError(f"keep_last_good={place!r} is unknown. Legal: {', '.join(map(repr, PLACES))}, None.")


def _own_part(parameter: nn.Parameter) -> Tensor:
    """Return the values that this process has of a parameter, on the same storage."""
    part: Any = parameter.detach()
    local: Tensor = part.to_local() if hasattr(part, "to_local") else part
    return local


def _on_cpu_like(tensor: Tensor) -> Tensor:
    """Return memory of the CPU for `tensor`, locked in place where its device can use that."""
    if tensor.device.type != "cpu":
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
        except (RuntimeError, NotImplementedError):  # this device cannot lock memory
            pass
    return torch.empty_like(tensor, device="cpu")


def _alone(tensor: Tensor) -> Tensor:
    """Return `tensor` with a storage of its own, as a file of safetensors needs it."""
    is_alone = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if is_alone else tensor.clone(memory_format=torch.contiguous_format)
