"""Writes the files that make a student's folder a sentence-transformers model.

Takes the name of its teacher and the merged student; gives files with the student's widths, in the layout of the
teacher's, so that what reads the teacher reads the student. Called by `compress`.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

from ..adapter.merge import map_of
from ..errors import WidError, WidWarning
from .modules import CONFIG, WEIGHTS
from .pipeline import SentencePipeline
from .read import MODULES, read_pipeline


def save_sentence_modules(teacher: str, student: PreTrainedModel, folder: Path, *, revision: str | None = None) -> None:
    """Write the files to `folder` that make it a sentence-transformers model, if the teacher is one.

    Modules that are not known are told of in a warning, and then no file is written.

    Args:
        teacher: folder or Hub id.
        student: as it was merged.
        folder: of the student, whose transformer is there.
        revision: of the teacher on the Hub.
    """
    try:
        pipeline = read_pipeline(teacher, revision)
        if pipeline is not None:
            save_pipeline(pipeline.narrowed(student.config.get_text_config().hidden_size, map_of(student)), folder)
    except WidError as error:
        warnings.warn(f"{error} The student is saved as the transformer alone.", WidWarning, stacklevel=2)


def save_pipeline(pipeline: SentencePipeline, folder: Path) -> None:
    """Write the files of a pipeline beside its transformer.

    Args:
        pipeline: of the student.
        folder: of the student.
    """
    for name, settings in pipeline.settings.files.items():
        _write(folder / name, settings)
    for entry, module in zip(pipeline.entries[1:], pipeline.modules, strict=True):
        place = folder / entry["path"]
        if module.config or module.tensors:
            place.mkdir(parents=True, exist_ok=True)
        if module.config:
            _write(place / CONFIG, module.config)
        if module.tensors:
            save_file({name: tensor.contiguous() for name, tensor in module.tensors.items()}, place / WEIGHTS)
    _write(folder / MODULES, pipeline.entries)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
