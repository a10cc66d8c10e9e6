"""Pictures and spoken digits as folders of files, as people have them.

Takes the data of `places`; gives folders `train` and `test` in a folder, the same at every call.
"""

from __future__ import annotations

import base64
import json
import random
import wave
from collections import defaultdict
from pathlib import Path
from typing import Any

from once import write_folder
from places import DATA

from wid_hf.rows import load_rows

STRING = 5  # digits in a sound
TRAINED = 200  # sounds to train on; those held out say every digit once
PAUSE = 0.2  # seconds between digits

Row = dict[str, Any]


def pictures(folder: Path) -> None:
    """Write a JPEG file for each picture of CIFAR-10, in a folder for each class."""
    for split in ("train", "test"):
        write_folder(folder / split, lambda made, split=split: _pictures(made, split))


def _pictures(folder: Path, split: str) -> None:
    for number, row in enumerate(load_rows(str(DATA / "images" / "cifar10" / f"{split}.jsonl.gz"))):
        (folder / row["name"]).mkdir(exist_ok=True)
        (folder / row["name"] / f"{number:05}.jpg").write_bytes(base64.b64decode(row["jpeg"]))


def digits(folder: Path) -> None:
    """Write sounds of five digits by one speaker; those of `test` with them as Whisper writes numbers."""
    write_folder(folder / "train", _to_train_on)
    write_folder(folder / "test", _held_out)


def _to_train_on(folder: Path) -> None:
    speakers, draw = _speakers("train"), random.Random(0)
    for number in range(TRAINED):
        rows = speakers[draw.choice(sorted(speakers))]
        _write_sound(folder / f"{number:03}.wav", draw.sample(rows, STRING))


def _held_out(folder: Path) -> None:
    said = []
    for speaker, rows in sorted(_speakers("test").items()):
        random.Random(speaker).shuffle(rows)  # all speakers have their digits in one order
        for first in range(0, len(rows) - STRING + 1, STRING):
            name, some = f"{speaker}-{first:02}.wav", rows[first : first + STRING]
            _write_sound(folder / name, some)
            said.append({"file_name": name, "transcription": _as_written(some)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")


def _as_written(rows: list[Row]) -> str:
    """Return digits as Whisper writes them, behind the blank with which its texts begin."""
    return f" {', '.join(str(row['label']) for row in rows)}."


def _speakers(split: str) -> dict[str, list[Row]]:
    rows = defaultdict(list)
    for row in load_rows(str(DATA / "audio" / "fsdd" / f"{split}.jsonl.gz")):
        rows[row["speaker"]].append(row)
    return rows


def _write_sound(file: Path, rows: list[Row]) -> None:
    rate = rows[0]["rate"]
    silence = bytes(2 * round(PAUSE * rate))
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(silence.join(base64.b64decode(row["pcm16"]) for row in rows))
