"""The digest of rows: the same for the same rows in another process, another one for others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image
from media import picture
from toys import texts

from wid_hf.rows.digest import LOOKED_AT, digest


def rows(count: int = 40) -> dict[str, list[Any]]:
    return {"text": texts(count), "label": [number % 3 for number in range(count)]}


def test_it_is_of_all_values_and_columns_and_of_their_order() -> None:
    known = Dataset.from_dict(rows())
    assert digest(known) == digest(Dataset.from_dict(rows()))
    others = [
        known.select(range(39)),
        known.select([1, 0, *range(2, 40)]),
        known.rename_column("text", "body"),
        known.map(lambda row, at: {"label": row["label"] + (at == 39)}, with_indices=True),
    ]
    assert len({digest(known), *map(digest, others)}) == 5


@pytest.mark.parametrize("at", [0, -1])
def test_first_and_last_rows_of_many_are_among_those_that_are_looked_at(at: int) -> None:
    numbers = [*range(2 * LOOKED_AT)]
    before = digest(Dataset.from_dict({"number": numbers}))
    numbers[at] = -5
    assert digest(Dataset.from_dict({"number": numbers})) != before


def test_it_is_the_same_in_another_process(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    Dataset.from_dict(rows()).to_json(file)
    code = "import sys; from wid_hf.rows import load_rows; from wid_hf.rows.digest import digest; "
    code += "print(digest(load_rows(sys.argv[1])))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code, str(file)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "HF_DATASETS_CACHE": str(tmp_path / seed)},
        ).stdout
        for seed in "12"
    }
    assert len(told) == 1


def test_images_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "a.png")
    images = Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", Image())
    monkeypatch.setattr(Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    assert len(digest(images)) == 16
