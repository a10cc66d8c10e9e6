"""The files that make a folder a sentence-transformers model: pooling and normalisation after the encoder.

Takes the name of a teacher and a student's folder; copies the files, with the student's width in them. Called by
`compress`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import WidWarning
from .paths import expanded

MODULES = "modules.json"
SETTINGS = ("config_sentence_transformers.json", "sentence_bert_config.json")
WIDTH = "word_embedding_dimension"
WITHOUT_WEIGHTS = {"Transformer", "Pooling", "Normalize"}


def save_sentence_modules(teacher: str, folder: Path, width: int | None, *, revision: str | None = None) -> None:
    """Write the files to `folder` that make it a sentence-transformers model, if the teacher is one.

    Modules with weights (Dense) were made for the teacher's width: a warning says that they are left out, and then no
    module is listed.

    Args:
        teacher: folder or Hub id.
        folder: of the student.
        width: of the student's hidden states, if its config has one.
        revision: of the teacher on the Hub.
    """
    modules = _read(teacher, MODULES, revision)
    if modules is None:
        return
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    if others := sorted(kinds.keys() - WITHOUT_WEIGHTS):
        warnings.warn(
            f"{teacher} is a sentence-transformers model with {', '.join(others)}, whose weights fit the teacher's "
            "width only. The student is saved as the transformer alone: pool its hidden states as your own code does.",
            WidWarning,
            stacklevel=2,
        )
        return
    for name in SETTINGS:
        if (path := _cached(teacher, name, revision)) is not None:
            shutil.copyfile(path, folder / name)
    for path in filter(None, kinds.values()):
        (folder / path).mkdir(exist_ok=True)
        if (config := _read(teacher, f"{path}/config.json", revision)) is not None:
            config |= {WIDTH: width} if WIDTH in config and width is not None else {}
            (folder / path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / MODULES).write_text(json.dumps(modules, indent=2), encoding="utf-8")


def _cached(teacher: str, name: str, revision: str | None) -> str | None:
    found: str | None = cached_file(
        expanded(teacher),
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def _read(teacher: str, name: str, revision: str | None) -> Any:
    path = _cached(teacher, name, revision)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
