"""Which files of a folder this program wrote: its report lists them with their digests.

Takes a folder; gives the list for a report, or a sentence about files that this program did not write. Called when a
report is saved, and before a folder is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "wid_report.json"
CALIBRATION_PICTURE = "calibration.png"
LISTED = "files"  # the report's key
CHUNK = 1 << 20  # bytes
NAMED = 5  # of files in a message


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder` and below it but the report, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE_NAME)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def why_not_ours(folder: Path, ignored: Collection[str] = ()) -> str | None:
    """Return in words which files in `folder` this program did not write; None if it wrote all of them.

    A file that was changed since counts as not written by it. Without a report that lists files, all files do. Files
    with a name in `ignored` are skipped.
    """
    files = _listed(folder / FILE_NAME)
    if files is None:
        others = [path.name for path in folder.iterdir() if path.name not in ignored]
        return f"holds files that wid-hf did not write ({_some(others)})"
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    strangers = [
        name
        for name, path in found.items()
        if name.partition("/")[0] not in ignored and not _is_ours(name, path, files, folders)
    ]
    if not strangers:
        return None
    return f"holds files that wid-hf did not write or that were changed since ({_some(strangers)})"


def _is_ours(name: str, path: Path, files: Mapping[str, Any], folders: Collection[str]) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return name in folders
    return name == FILE_NAME or (path.is_file() and name in files and _digest(path) == files[name])


def _listed(report: Path) -> dict[str, Any] | None:
    """Return the list of files in a report of this program; None for anything else."""
    try:
        values = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"teacher": str, "requested": dict, "sizes": dict, "versions": dict, LISTED: dict}
    if not isinstance(values, dict) or any(not isinstance(values.get(name), kind) for name, kind in kinds.items()):
        return None
    files: dict[str, Any] = values[LISTED]
    return files if "wid-hf" in values["versions"] else None


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
