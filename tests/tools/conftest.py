"""A data set that does not end."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import pytest
from datasets import IterableDataset
from toys import texts


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows that were read of the data set `endless`."""
    numbers: list[int] = []

    some = texts(200)

    def rows() -> Iterator[dict[str, str]]:
        for number in range(10**9):
            numbers.append(number)
            yield {"text": some[number % len(some)]}

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> IterableDataset:
        assert (name, config, streaming) == ("endless", None, True)
        return IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return numbers
