"""Random masks that do not depend on earlier random numbers, so that a resumed run has the same masks.

`Trainer` collates batches before the step that uses them, and on resuming collates the first ones before it restores
the random state. So `student_trainer` wraps the data collator of training.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class SteadyCollator:
    """Calls a collator with random numbers that depend only on a seed, the epoch and the rows of the batch.

    The random state of the process is restored. This works for rows of tensors, arrays, numbers and texts; batches of
    anything else are collated as without this class.

    Args:
        collate: the collator.
        seed: any number; another one gives other masks.

    Attributes:
        epoch: counted from 0, set by the trainer; the same batch gets other masks in another epoch.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.collate = collate
        self.seed = seed
        self.epoch = 0

    def __call__(self, rows: list[Any]) -> Any:
        """Return the collator's batch of `rows`."""
        try:
            content = json.dumps([self.seed, self.epoch, rows], default=_plain)
        except TypeError:
            return self.collate(rows)
        with random_state(int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "little")):
            return self.collate(rows)


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Seed torch (on the CPU), NumPy and Python inside; afterwards their random states are restored."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _plain(thing: Any) -> Any:
    """Return a JSON value for `thing`, for `json.dumps`."""
    if isinstance(thing, Mapping):
        return dict(thing)
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, (np.ndarray, np.generic)) and thing.dtype != object:
        return [str(thing.dtype), list(thing.shape), hashlib.sha256(thing.tobytes()).hexdigest()]
    raise TypeError(f"no plain form of a {type(thing).__name__}")
