"""Progress bars for what takes longer than a moment.

Takes an iterable, gives the same items and shows on stderr how far it is. Called wherever batches or layers are
counted; a `Trainer` has a bar already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

DELAY = 1.0  # seconds without a bar: what is done by then needs none

Item = TypeVar("Item")


def progress_bar(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` behind a bar that disappears at the end.

    It is silent after `transformers.utils.logging.disable_progress_bar()`, as transformers' own bars are.

    Args:
        iterable: what to go through.
        description: what happens meanwhile, such as `Calibrating`.
        total: number of items, where `len(iterable)` does not tell.
    """
    hidden = not is_progress_bar_enabled()
    yield from tqdm(iterable, description, total, leave=False, delay=DELAY, disable=hidden)
