"""Tables that name files of images and of sounds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import RATE, objective_of, picture, tone, write_wav

from wid_hf.rows.sounds import samples
from wid_hf.tools.training_data import load_prepared

SOURCES = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


def write_table(path: Path, role: str, names: list[str]) -> str:
    path.write_text(f"{role},label\n" + "".join(f"{name},{at % 3}\n" for at, name in enumerate(names)))
    return str(path)


def write_pictures(folder: Path) -> list[str]:
    folder.mkdir()
    for number in range(2):
        picture(number).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"none")
    shutil.copy(folder / "1.png", folder.parent / "apart.png")
    return ["in/0.png", str(folder.parent / "apart.png"), "in/broken.png", "in/missing.png", ""]


@SOURCES
def test_paths_of_images_begin_in_the_folder_of_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    table = write_table(tmp_path / "table.csv", "image", write_pictures(tmp_path / "in"))
    monkeypatch.chdir("/")
    made = load_prepared(table, "train", objective_of("images", tmp_path / "model"), streaming=streaming)
    rows: list[Any] = list(made.rows)
    assert [row["label"] for row in rows] == [0, 1]
    assert all(np.array_equal(row["image"], picture(at)) for at, row in enumerate(rows))
    assert made.dropped == {"the image cannot be read": 2, "there is no image": 1}


@SOURCES
def test_paths_of_sounds_too(tmp_path: Path, streaming: bool) -> None:
    for number in range(2):
        write_wav(tmp_path / "in" / f"{number}.wav", tone(number))
    table = write_table(tmp_path / "table.csv", "speech", ["in/0.wav", "in/1.wav", "in/2.wav"])
    made = load_prepared(table, "train", objective_of("sounds", tmp_path / "model"), streaming=streaming)
    heard = [samples(row["audio"]) for row in made.rows]
    assert [rate for _, rate in heard] == [RATE, RATE]
    for number, (values, _) in enumerate(heard):
        assert values == pytest.approx(tone(number), abs=1e-3)
    assert made.dropped == {"the audio cannot be read": 1}
