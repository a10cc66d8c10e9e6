"""Files beside a model, in its folder or on the Hub.

Takes names of models and files; gives paths and JSON. Called by the reader of this package.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import TeacherError


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model.

    Attributes:
        model: folder or Hub id.
        revision: of the model on the Hub.
    """

    model: str
    revision: str | None = None

    def path(self, file: str) -> Path | None:
        """Return where a copy of `file` is, `None` if the model has no such file or cannot be reached."""
        found: str | None = None
        with suppress(OSError):  # the folder that a loaded model came from may be gone
            found = cached_file(
                self.model,
                file,
                revision=self.revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        return None if found is None else Path(found)

    def json(self, file: str) -> Any:
        """Return what a JSON file holds, `None` if there is none.

        Raises:
            TeacherError: the file is not JSON.
        """
        path = self.path(file)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TeacherError(
                f"{file} of {self.model} is not JSON ({error}). Download it again, or remove it if the model works "
                "without it."
            ) from error

    def required(self, file: str) -> dict[str, Any]:
        """Return what a JSON file of names and values holds.

        Raises:
            TeacherError: there is no such file, or it holds something else.
        """
        if found := self.settings(file):
            return found
        raise TeacherError(f"{self.model} has no {file}, or nothing is in it. Download the whole model again.")

    def settings(self, file: str) -> dict[str, Any]:
        """Return what a JSON file of names and values holds, nothing if there is none.

        Raises:
            TeacherError: the file holds something else.
        """
        found = self.json(file)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise TeacherError(f'{file} of {self.model} is not of the form {{"name": value}}. Download it again.')
        return found
