"""`output_map.safetensors`: how the turned outputs of a student follow from its teacher's, saved beside the student.

Takes the map and a folder, or a folder or the name of a model; gives the file or the map. Called by a merged student's
`save_pretrained` and by users.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import cached_file

from ..atomic_write import atomic_write
from ..errors import WidError
from ..format_version import KEY, refuse_newer

OUTPUT_MAP = "output_map.safetensors"
NAME = "output_map"  # of the tensor
FORMAT_VERSION = 1


def save_output_map(output_map: Tensor, folder: Path) -> None:
    """Write the map `(n, k)` into `folder`, with both sizes as metadata.

    Raises:
        OutputError: it cannot be written.
    """
    n, k = output_map.shape
    told = {"teacher_size": str(n), "student_size": str(k), "outputs": "turned", KEY: str(FORMAT_VERSION)}
    with atomic_write(folder / OUTPUT_MAP) as unfinished:
        save_file({NAME: output_map.detach().cpu().contiguous()}, unfinished, metadata=told)


def remove_output_map(folder: Path) -> None:
    """Remove the map from `folder`, if there is one and `save_output_map` wrote it."""
    try:
        with safe_open(folder / OUTPUT_MAP, framework="pt") as file:
            is_ours = KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return
    if is_ours:
        (folder / OUTPUT_MAP).unlink()


def load_output_map(student: str | PathLike[str], revision: str | None = None) -> Tensor:
    """Return the map `(n, k)` from a teacher's outputs to those of its student whose outputs are turned.

    The student's outputs are about `y_t @ output_map`, with `y_t (..., n)` the teacher's. A head of the teacher's
    outputs with the weight `W (labels, n)` serves the student as `W @ output_map`, with the same bias.

    Args:
        student: the folder in which the merged student was saved, or its name on the Hub.
        revision: of the student on the Hub.

    Raises:
        WidError: there is no such file, or it is damaged.
        FormatError: a newer wid_hf wrote it.
    """
    path = _found(fspath(student), revision)
    try:
        with safe_open(path, framework="pt") as file:
            version = (file.metadata() or {}).get(KEY, "")
            refuse_newer(int(version) if version.isdigit() else version, FORMAT_VERSION, path)
            found: Tensor = file.get_tensor(NAME)
    except (SafetensorError, OSError) as error:
        raise WidError(f"{path} is damaged ({error}). Save the student, or download it, again.") from error
    return found


def _found(student: str, revision: str | None) -> str:
    folder = Path(student).expanduser()
    try:
        path: str | None = cached_file(
            str(folder) if folder.is_dir() else student,
            OUTPUT_MAP,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError as error:
        raise WidError(f"{student!r} is neither a folder nor a model on the Hub that can be read: {error}") from error
    if path is None:
        raise WidError(
            f"{student} holds no {OUTPUT_MAP}. It is written beside a student of wid_hf whose outputs are turned. "
            "Another student's outputs are some coordinates of the teacher's, or as wide as the teacher's: the map of "
            "every student is model.base_model.output_map before merge_and_unload()."
        )
    return path
