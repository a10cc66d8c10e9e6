"""Hidden folders to work in; a run that is killed leaves one behind, and the next run deletes it.

Takes their parent folder and the name of the result. The process that makes one holds a lock on a file in it as long as
it lives, so that a stale folder can be distinguished from one in use without process ids.
Called by `output_folder` and `export`.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, so nothing counts as stale
    fcntl = None  # type: ignore[assignment]

OWNER = "owner.json"
TAG = ".wid-hf-"
TRIES = 10
NAME_BYTES = 100  # of the result's name, so that the folder's own name is not too long


@contextmanager
def staging_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder in `parent` for making `name`; it is deleted at the end, with everything in it.

    A folder without the file `OWNER` at the end is not deleted: see `let_go`.

    Raises:
        OSError: `parent` cannot be written.
    """
    folder, lock = _make(parent, name)
    try:
        yield folder
    finally:
        if (folder / OWNER).exists():
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def let_go(folder: Path) -> None:
    """Protect a staging folder from being deleted, because something in it must not be lost."""
    (folder / OWNER).unlink(missing_ok=True)


@contextmanager
def stale_folders(parent: Path, name: str) -> Iterator[list[Path]]:
    """Yield the folders that killed runs left in `parent` while making `name`; they are locked inside the context.

    Only folders whose `OWNER` file names `name`, and whose process is gone, are among them.
    """
    locked: list[tuple[Path, int]] = []
    try:
        for folder in sorted(parent.glob(f"{_glob_safe(_prefix(name))}*")) if parent.is_dir() else []:
            lock = _taken_over(folder, name)
            if lock is not None:
                locked.append((folder, lock))
        yield [folder for folder, _ in locked]
    finally:
        for _, lock in locked:
            os.close(lock)


def clear_stale(parent: Path, name: str) -> None:
    """Delete the folders that killed runs left in `parent` while making `name`, and in which nothing is complete."""
    with stale_folders(parent, name) as folders:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def is_staging(entry: Path, name: str) -> bool:
    """Return whether `entry` is a staging folder for `name`, stale or in use."""
    return entry.name.startswith(_prefix(name)) and entry.is_dir() and not entry.is_symlink()


def _make(parent: Path, name: str) -> tuple[Path, int]:
    """Return a new folder and a file descriptor that holds its lock."""
    for attempt in range(TRIES):
        folder = parent / f"{_prefix(name)}{secrets.token_hex(4)}"
        try:
            folder.mkdir()
            lock = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if not take_lock(lock):  # another run has locked the folder, still empty, as a stale one
                os.close(lock)
                continue
            # Only now, so that a folder with this file has always been locked.
            os.write(lock, json.dumps({"program": "wid-hf", "makes": name}).encode())
            return folder, lock
        except (FileExistsError, FileNotFoundError):
            if attempt == TRIES - 1:
                raise
    raise OSError(errno.EAGAIN, "no folder to work in could be made", str(parent))


def _taken_over(folder: Path, name: str) -> int | None:
    """Return the lock of a folder that a dead process made for `name`; None for every other folder."""
    if fcntl is None or not is_staging(folder, name):
        return None
    try:
        entries = [entry.name for entry in folder.iterdir()]
        if not entries:
            folder.rmdir()  # its maker died, or retries; a folder that holds anything is not removed by this
            return None
        lock = os.open(folder / OWNER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        content = os.read(lock, 1 << 16)
        unused = not content and entries == [OWNER]
        if (unused or _makes(content) == name) and take_lock(lock):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _makes(content: bytes) -> str | None:
    try:
        owner = json.loads(content)
    except ValueError:
        return None
    return owner.get("makes") if isinstance(owner, dict) and owner.get("program") == "wid-hf" else None


def take_lock(file: int) -> bool:
    """Take the lock; return False if another process has it. On a file system without locks, none has."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prefix(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:NAME_BYTES])}{TAG}"


def _glob_safe(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
