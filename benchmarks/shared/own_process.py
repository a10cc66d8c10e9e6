"""Work in a process of its own, which may run out of memory without an end to everything else."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch


def in_own_process(
    work: Callable[..., Any], *given: Any, environment: Mapping[str, str] | None = None, method: str = "spawn"
) -> Any:
    """Return what `work(*given)` does in a fresh process with as many threads; None where it was killed or full.

    Args:
        work: a function that can be imported by name.
        given: to it.
        environment: variables that the process has beside this one's.
        method: how it starts; `"fork"` costs no imports, and is safe only where this process has computed nothing yet.
    """
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context(method), _threads, (torch.get_num_threads(),)) as pool:
            return pool.submit(work, *given).result()
    except (BrokenProcessPool, torch.OutOfMemoryError):
        return None
    finally:
        os.environ.clear()
        os.environ.update(before)


def _threads(count: int) -> None:
    torch.set_num_threads(count)
