"""Files and folders that are written once, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wid_hf.atomic_write import atomic_write


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines unless the file is there; then nothing of `rows` is read."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that gets its name in the end, unless it is there."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        write(unfinished)
        unfinished.rename(folder)
