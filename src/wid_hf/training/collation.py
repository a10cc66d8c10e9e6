"""Random masks that do not depend on what was drawn before them, so that a resumed run draws the same.

`Trainer` collates batches ahead of the step that uses them, and on resuming collates the first ones before it restores
the random state. `trainer` wraps the data collator of training for that reason.
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
    """Calls a collator with random numbers that follow from a seed, the epoch and what is in the batch alone.

    The random state of the process is the same afterwards as before. Rows of tensors, arrays, numbers and texts are
    understood; batches of anything else are collated as they would be without this class.

    Args:
        collate: the collator.
        seed: any number; another one gives other masks.

    Attributes:
        epoch: counted from 0 by whoever trains; the same batch gets other masks in another epoch.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.collate = collate
        self.seed = seed
        self.epoch = 0

    def __call__(self, rows: list[Any]) -> Any:
        """Return what the collator makes of `rows`."""
        try:
            content = json.dumps([self.seed, self.epoch, rows], default=_plain)
        except TypeError:
            return self.collate(rows)
        with random_state(int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "little")):
            return self.collate(rows)


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Let torch (on the CPU), NumPy and Python draw from `seed` inside; afterwards all draw as if nothing had been."""
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
    """Return what JSON can write, for `json.dumps`."""
    if isinstance(thing, Mapping):
        return dict(thing)
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, (np.ndarray, np.generic)) and thing.dtype != object:
        return [str(thing.dtype), list(thing.shape), hashlib.sha256(thing.tobytes()).hexdigest()]
    raise TypeError(f"no plain form of a {type(thing).__name__}")
