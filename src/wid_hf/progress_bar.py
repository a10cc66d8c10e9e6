"""Progress bars for long loops.

Takes an iterable, gives the same items and shows the progress on stderr. Called for loops over batches or layers; a
`Trainer` has its own bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import distributed
from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

DELAY = 1.0  # seconds before a bar appears: shorter loops need none

Item = TypeVar("Item")


def progress_bar(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` behind a bar that disappears at the end.

    It is silent after `transformers.utils.logging.disable_progress_bar()`, as transformers' own bars are, and in all
    processes of a distributed run but the first.

    Args:
        iterable: the items.
        description: what is being done, such as `Calibrating`.
        total: number of items, if `len(iterable)` is not defined.
    """
    follows = distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
    hidden = follows or not is_progress_bar_enabled()
    yield from tqdm(iterable, description, total, leave=False, delay=DELAY, disable=hidden)
