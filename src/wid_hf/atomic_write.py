"""Files that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, which becomes `path` at the end, and is removed if that is not reached.

    Raises:
        OutputError: it cannot be written: a full disk, a folder in its place.
    """
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
