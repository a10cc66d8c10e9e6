"""A second device made of ordinary memory, to find on any CPU what breaks on an accelerator.

`register()` builds `device.cpp` once, into a cache folder, and makes "sim" a device of PyTorch in this process: tensors
on it must not mix with those of the CPU, and what would make Python wait for an accelerator is counted. It must come
before the first backward pass of a process, so `worker` runs tests in a process of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAME = "sim"
SOURCE = Path(__file__).with_name("device.cpp")
CACHE = Path(os.environ.get("WID_HF_SIMULATED_DEVICE", Path(__file__).parents[3] / ".cache" / "simulated-device"))
FLAGS = ["-O0", "-g0"]  # building takes longer than running
_built: list[Any] = []


def missing() -> str | None:
    """Return why the device cannot be built on this machine; None if it can."""
    absent = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=_path()) is None]
    return f"no simulated device: {' and '.join(absent)} not found" if absent else None


def build() -> Any:
    """Return the extension, built by the first process that asks for it; others wait."""
    from torch.utils import cpp_extension

    os.environ["PATH"] = _path()
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"{torch.__version__}-{sys.implementation.cache_tag}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # unlike torch's own lock, it ends with the process that holds it
        (folder / "lock").unlink(missing_ok=True)
        return cpp_extension.load(
            "simulated_device_extension", [str(SOURCE)], build_directory=str(folder), extra_cflags=FLAGS
        )


def register() -> None:
    """Make "sim" a device in this process, and let modules move to it as they move to CUDA."""
    if _built:
        return
    torch.utils.rename_privateuse1_backend(NAME)
    extension = build()
    extension.register()
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    nn.Module._apply = _apply(nn.Module._apply)
    _built.append(extension)


@contextmanager
def without_float64() -> Iterator[None]:
    """Refuse tensors of float64 on the device, as MPS does."""
    (extension,) = _built
    extension.allow_float64(False)
    try:
        yield
    finally:
        extension.allow_float64(True)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what an accelerator would wait for, copies from the CPU, and indices on the CPU; read it afterwards."""
    (extension,) = _built
    found: Counter[str] = Counter()
    extension.forget_counts()
    try:
        yield found
    finally:
        found.update(extension.counts())


def waits(found: Counter[str]) -> dict[str, int]:
    """Return those of `counted` for which Python waits until the device has done all work before."""
    return {name: number for name, number in found.items() if name.startswith("sync: ")}


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _apply(stock: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return `nn.Module._apply` for which a parameter that moves stays the same object, as between the CPU and CUDA.

    PyTorch makes new parameters for devices that it does not know, and so breaks ties.
    """

    def apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        (extension,) = _built
        for module in self.modules() if recurse else [self]:
            for parameter in module._parameters.values():
                if parameter is not None:
                    with torch.no_grad():
                        moved = function(parameter)
                    if moved.device.type != parameter.device.type and NAME in (
                        moved.device.type,
                        parameter.device.type,
                    ):
                        extension.become(parameter, moved)
                        if parameter.grad is not None:
                            parameter.grad = function(parameter.grad)
        return stock(self, function, recurse)

    return apply


class _Device:
    """As `torch.cuda.device`."""

    def __init__(self, device: Any = None) -> None: ...

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *error: object) -> None: ...


def _module() -> types.ModuleType:
    """Return what `torch.cuda` is for CUDA."""

    def state(device: Any = None) -> Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    def nothing(*_: Any) -> None: ...

    module = types.ModuleType(f"torch.{NAME}")
    vars(module).update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=nothing,
        device=_Device,
        synchronize=nothing,
        empty_cache=nothing,
        manual_seed=nothing,
        manual_seed_all=nothing,
        get_rng_state=state,
        set_rng_state=nothing,
        get_rng_state_all=lambda: [state()],
        set_rng_state_all=nothing,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        is_autocast_enabled=lambda: False,
        _is_in_bad_fork=lambda: False,
        _lazy_init=nothing,
    )
    return module
