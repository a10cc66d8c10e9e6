"""Finished runs, one JSON file each, so that an interrupted evaluation continues where it stopped.

Takes a run's settings and a function that makes the run; gives its record. A record is found by its settings alone;
after a change of the code, delete the folder to measure again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...atomic_write import atomic_write
from ...errors import FormatError, OutputError
from ...format_version import KEY, refuse_newer

Record = dict[str, Any]
FORMAT_VERSION = 1


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, which changes only when the new file is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {path.parent} cannot be made: {error}.") from error
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Runs:
    """A folder of records."""

    folder: Path

    def get(self, made_from: Mapping[str, Any], make: Callable[[], Record]) -> Record:
        """Return the record of the run with these settings, or make it if there is none yet.

        Args:
            made_from: everything that the record depends on, as JSON can hold it; part of the record.
            make: gives the rest of the record.

        Raises:
            OutputError: the file is not such a record, or none can be written.
            FormatError: a newer wid_hf wrote it.
        """
        text = json.dumps(made_from, sort_keys=True)
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            write_json(file, {**make(), "made_from": dict(made_from), KEY: FORMAT_VERSION})
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            refuse_newer(record.pop(KEY, None), FORMAT_VERSION, str(file))
            if json.dumps(record["made_from"], sort_keys=True) != text:
                raise ValueError("it is of another run")
        except FormatError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{file} is not a record of `evaluate` ({error}). Move it away.") from error
        return dict(record)
