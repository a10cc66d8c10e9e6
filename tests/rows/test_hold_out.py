from __future__ import annotations

from collections.abc import Iterator

import pytest
from datasets import Dataset, IterableDataset

from wid_hf.errors import DataError
from wid_hf.rows import hold_out

TEXTS = ["one two", "three", "four five six"]


def test_hold_out_parts_every_row_once_and_repeats_with_its_seed() -> None:
    texts = Dataset.from_dict({"text": [str(number) for number in range(50)]})
    train, validation = hold_out(texts, 8, seed=3)
    assert (len(train), len(validation)) == (42, 8)
    assert sorted(train["text"][:] + validation["text"][:]) == sorted(texts["text"][:])
    assert hold_out(texts, 8, seed=3)[1]["text"][:] == validation["text"][:]
    assert hold_out(texts, 8, seed=4)[1]["text"][:] != validation["text"][:]


def test_a_seed_holds_out_the_rows_that_it_always_did() -> None:
    texts = Dataset.from_dict({"text": [str(number) for number in range(20)]})
    assert hold_out(texts, 4, seed=0)[1]["text"][:] == ["4", "19", "6", "2"]


@pytest.mark.parametrize("validation", [0, -1, 3, 9])
def test_hold_out_refuses_to_leave_a_part_empty(validation: int) -> None:
    with pytest.raises(DataError, match=rf"cannot hold out {validation} of 3 rows. Legal: 1 to 2\."):
        hold_out(Dataset.from_dict({"text": TEXTS}), validation, seed=0)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_to_hold_one_out_are_told_how_many_it_takes(count: int) -> None:
    with pytest.raises(DataError, match=rf"^{count} row.*at least 2 are needed"):
        hold_out(Dataset.from_dict({"text": TEXTS[:count]}), 1, seed=0)


def test_the_first_rows_of_a_stream_are_held_out_and_no_more_are_read_than_needed() -> None:
    read = []

    def numbers() -> Iterator[dict[str, int]]:
        for number in range(1000):
            read.append(number)
            yield {"number": number}

    train, held_out = hold_out(IterableDataset.from_generator(numbers), 3, seed=0)
    assert [row["number"] for row in held_out] == [0, 1, 2]
    assert next(iter(train)) == {"number": 3}
    assert max(read) < 10


@pytest.mark.parametrize("validation", [0, 3, 4])
def test_a_stream_that_would_leave_a_part_empty_is_refused(validation: int) -> None:
    with pytest.raises(DataError, match=rf"cannot hold out {validation} rows of a stream that has no more"):
        hold_out(Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), validation, seed=0)
