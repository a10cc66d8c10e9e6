"""A process in which "sim" is a device from the start, and which runs functions for the tests' own process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import torch

import simulated_device

PATIENCE = 240.0  # seconds


class Worker:
    """Runs functions one at a time in a process of their own, which ends with `close`.

    Raises:
        RuntimeError: the device cannot be built here.
    """

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            self._pool.submit(_begin).result(PATIENCE)
        except BaseException:
            self.close()
            raise

    def run(self, module: str, function: str, arguments: Mapping[str, Any]) -> None:
        """Call a function of a module by name; what it raises is raised here, with its traceback."""
        self._pool.submit(_call, module, function, dict(arguments)).result(PATIENCE)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _begin() -> None:
    torch.set_num_threads(1)
    simulated_device.register()


def _call(module: str, function: str, arguments: dict[str, Any]) -> None:
    getattr(import_module(module), function)(**arguments)
