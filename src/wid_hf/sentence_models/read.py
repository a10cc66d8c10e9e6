"""Reads which modules stand behind the transformer of a model.

Takes the name of a model, or the model; gives its pipeline. Called by the objective of sentence vectors, by the writer,
and where teachers are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from transformers import PreTrainedModel

from ..errors import TeacherError
from .files import ModelFiles
from .modules import WITHOUT, Dense, Normalize, Pooling
from .pipeline import SentencePipeline
from .settings import SentenceSettings

MODULES = "modules.json"
LIBRARY = "sentence_transformers."  # modules of other packages are code that comes with a model
FIRST, SECOND = "Transformer", "Pooling"
BEHIND: dict[str, Callable[[ModelFiles, str], Dense | Normalize]] = {"Dense": Dense.read, "Normalize": Normalize.read}


def read_pipeline(model: str, revision: str | None = None) -> SentencePipeline | None:
    """Return what stands behind the transformer, None if `model` is not a sentence-transformers model.

    Args:
        model: folder or Hub id.
        revision: of the model on the Hub.

    Raises:
        TeacherError: there are modules of other kinds than a transformer, a pooling and, behind it, dense layers and
            normalisation; or a file is missing, damaged or a pickle.
    """
    files = ModelFiles(model, revision)
    entries = _entries(files)
    if not entries:
        return None
    kinds = [_kind(entry) for entry in entries]
    expected = [FIRST, SECOND][: len(kinds)]
    unknown = [kind for kind in kinds[2:] if kind not in BEHIND]
    if kinds[:2] != expected or unknown:
        raise TeacherError(
            f"{model} is a sentence-transformers model of {', '.join(kinds)}. Known are a {FIRST}, a {SECOND} and "
            f"behind it {' and '.join(BEHIND)}. {WITHOUT}"
        )
    settings = SentenceSettings.read(files)
    entries[0]["path"] = ""  # a student's transformer is in the folder itself
    if len(kinds) == 1:
        return SentencePipeline(entries, settings)
    pooling, *places = (entry["path"] for entry in entries[1:])
    rest = [BEHIND[kind](files, place) for kind, place in zip(kinds[2:], places, strict=True)]
    return SentencePipeline(entries, settings, Pooling.read(files, pooling), tuple(rest))


def pipeline_of(model: PreTrainedModel) -> SentencePipeline | None:
    """Return what stands behind a loaded transformer in the folder or repository that it was loaded from, or None.

    Raises:
        TeacherError: as `read_pipeline` does.
    """
    name, revision = model.name_or_path, getattr(model.config, "_commit_hash", None)
    return read_pipeline(name, revision) if name else None


def has_pooling(model: str, revision: str | None = None) -> bool:
    """Return whether `model` is one whose hidden states are pooled, so that it is used without a head.

    Args:
        model: folder or Hub id.
        revision: of the model on the Hub.

    Raises:
        TeacherError: modules.json is damaged.
    """
    return SECOND in map(_kind, _entries(ModelFiles(model, revision)))


def _entries(files: ModelFiles) -> list[dict[str, Any]]:
    """Return the entries of modules.json, whose folders lie below the model's; none if there is no such file."""
    found = files.json(MODULES)
    entries: list[dict[str, Any]] = [] if found is None else found
    try:
        places = [PurePosixPath(entry["path"]) for entry in entries]
        kinds = [_kind(entry) for entry in entries]
    except (TypeError, KeyError, AttributeError) as error:
        raise TeacherError(f"{MODULES} of {files.model} is no list of modules with type and path.") from error
    if any(place.is_absolute() or ".." in place.parts for place in places) or not all(kinds):
        raise TeacherError(f"{MODULES} of {files.model} names folders outside of the model's. Do not use this model.")
    return entries


def _kind(entry: dict[str, Any]) -> str:
    """Return `Pooling` of `sentence_transformers.models.Pooling`, and the whole path of what is not of that library."""
    path: str = entry["type"]
    return path.rpartition(".")[2] if path.startswith(LIBRARY) else path
