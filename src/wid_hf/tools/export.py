"""A student, or any stock model, as an ONNX file for other programs.

Takes a folder or Hub id, gives one file. torch's exporter writes it, from inputs made from the model's config; the file
is run by onnxruntime and compared with the model before it gets its name. Called by `wid-hf export`.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import OutputError, WidError
from ..extras import extra
from ..hub.paths import expanded
from ..planning.example_inputs import LENGTH, example_inputs
from .staging import clear_stale, staging_folder
from .teachers import load_teacher

TOLERANCE = 1e-4
TRIED = ((1, 5), (6, 14))  # rows and tokens of the comparison: fewer and more than the exporter sees
Tensors = dict[str, Tensor]
DATA = ".data"  # after the name of the file: where torch puts weights of more than 2 GB
MADE = "made"
MARK = "wid-hf"  # in the metadata of files that are exported here


@dataclass(frozen=True)
class Exported:
    """The file that was written.

    Attributes:
        difference: the largest between an output of onnxruntime and of the model.
        inputs: shape of each input by name; axes that may have any size have a name.
        outputs: names of the outputs.
        bytes: size of all that was written.
    """

    difference: float
    inputs: dict[str, list[int | str]]
    outputs: list[str]
    bytes: int


def export_onnx(
    name: str, output: Path, *, revision: str | None = None, trust_remote_code: bool = False, overwrite: bool = False
) -> Exported:
    """Write the model in the folder or Hub repository `name` to the file `output`, in float32.

    The number of rows is free in the file, and so is the number of tokens, if the model takes tokens; images and
    sound have the size in the config. Weights of more than protobuf's 2 GB go to `output` + ".data".

    Raises:
        MissingExtraError: onnx, onnxruntime or onnxscript is not installed.
        WidError: the exporter does not support something in the model, or the file's outputs differ from the model's.
        OutputError: `output` exists already and is not an ONNX file or must not be replaced; or it cannot be written.
        TeacherError: `name` cannot be loaded.
    """
    with extra("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    name, output = expanded(name), Path(expanded(output))
    _check_output(output, overwrite, name)
    model = load_teacher(name, revision=revision, trust_remote_code=trust_remote_code, dtype="float32")
    model.set_attn_implementation("eager")  # the fused one has views that the exporter cannot write for every model
    for part in model.modules():
        if isinstance(part, PreTrainedModel):  # T5's decoder has its own config
            part.config.use_cache = False
    inputs = _inputs(model)
    clear_stale(output.parent, output.name)
    with staging_folder(output.parent, output.name) as folder:
        unfinished = folder / MADE / output.name
        unfinished.parent.mkdir()
        outputs = _write(model, inputs, unfinished)
        shapes, difference = _compare(model, inputs, unfinished)
        if not difference <= TOLERANCE:  # NaN is refused as well
            raise WidError(
                f"The ONNX file of {name} does not equal the model: in onnxruntime its outputs differ by up to "
                f"{difference:.2g}, more than {TOLERANCE:g}. Nothing was written to {output}. Try another version of "
                "torch, onnxscript or onnxruntime."
            )
        files = sorted(unfinished.parent.iterdir(), key=lambda file: file == unfinished)  # weights beside it first
        size = sum(file.stat().st_size for file in files)
        for file in files:
            try:
                file.replace(output.parent / file.name)
            except OSError as error:
                raise OutputError(f"{output.parent / file.name} cannot be written: {error}.") from error
    return Exported(difference, shapes, outputs, size)


def _check_output(output: Path, overwrite: bool, name: str) -> None:
    """Refuse a path that cannot be written, or that has anything but an ONNX file of wid-hf and its weights."""
    try:
        writable = output.parent.is_dir() and os.access(output.parent, os.W_OK)
        longest = os.pathconf(output.parent, "PC_NAME_MAX") if writable and hasattr(os, "pathconf") else None
    except (OSError, ValueError) as error:
        raise OutputError(f"The output {output} cannot be a file: {error}. Name another.") from error
    if not writable:
        raise OutputError(f"The output {output} cannot be written: {output.parent} is not a writable folder.")
    if longest is not None and len(os.fsencode(output.name + DATA)) > longest:
        raise OutputError(f"The output {output} has a name that is too long. Legal: {longest - len(DATA)} bytes.")
    if output.is_dir():
        raise OutputError(f"The output {output} is a folder. Name a file in it, such as {output / 'model.onnx'}.")
    there = [path for path in (output, output.with_name(output.name + DATA)) if os.path.lexists(path)]
    if there and not _is_ours(output):
        where = f" It is part of the model {name}." if output.parent.resolve() == Path(name).resolve() else ""
        raise OutputError(
            f"{there[0]} exists already and is no ONNX file that wid-hf wrote, so it is not replaced.{where} "
            "Name another file."
        )
    if there and not overwrite:
        raise OutputError(f"The output {output} exists already. Name another file, or pass overwrite=True.")


def _is_ours(path: Path) -> bool:
    """Return whether a file holds a model that was exported here."""
    import onnx

    if not path.is_file():
        return False
    try:
        return any(entry.key == MARK for entry in onnx.load(path, load_external_data=False).metadata_props)
    except Exception:  # protobuf and onnx raise various errors for other files
        return False


def _inputs(model: PreTrainedModel) -> Tensors:
    """Return example inputs, with a mask of padding if the model takes tokens and a mask."""
    inputs = {key: value for key, value in example_inputs(model).items() if isinstance(value, Tensor)}
    if "input_ids" in inputs and "attention_mask" in inspect.signature(model.forward).parameters:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def _write(model: PreTrainedModel, inputs: Tensors, path: Path) -> list[str]:
    """Export `model` to `path`; return the names of its outputs."""
    names = [name for name, _ in _outputs(model, inputs)]
    free = {key: {0: "batch"} | ({1: _length(key)} if _has_length(value) else {}) for key, value in inputs.items()}
    try:
        with warnings.catch_warnings():
            # Warnings of torch about its own code, and about two inputs that share a length, as they should.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name: ", category=UserWarning)
            program = torch.onnx.export(
                model, (), kwargs=inputs, dynamic_shapes=free, output_names=names, dynamo=True, verbose=False
            )
            assert program is not None  # only torch's older exporter returns None
            program.model.metadata_props[MARK] = version(MARK)
            program.save(path)
    except Exception as cause:  # the exporter's passes may raise anything
        raise WidError(
            f"torch cannot export {type(model).__name__} to ONNX: {_summary(cause)}. The traceback above names the "
            "operation; this is a limit of torch's exporter or of the model's code, not of the student."
        ) from cause
    return names


def _compare(model: PreTrainedModel, inputs: Tensors, path: Path) -> tuple[dict[str, list[int | str]], float]:
    """Return the input shapes of the file, and how far its outputs are from the model's on inputs of other sizes."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    differences = []
    for rows, length in TRIED:
        given = {key: _resized(key, value, rows, length) for key, value in inputs.items()}
        found = session.run(None, {key: given[key].numpy() for key in shapes})
        for (_, tensor), array in zip(_outputs(model, given), found, strict=True):
            differences.append((tensor - torch.from_numpy(array)).abs().max())
    return shapes, float(torch.stack(differences).max())


def _resized(key: str, value: Tensor, rows: int, length: int) -> Tensor:
    """Return `value` with other numbers of rows and tokens; the second half of the last row is padding."""
    value = value.repeat(rows, *[1] * (value.ndim - 1))[:rows]
    if _has_length(value):
        value = value.repeat(1, length)[:, :length].clone()
    if key == "attention_mask":
        value[-1, length // 2 :] = 0
    return value


def _outputs(model: PreTrainedModel, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that the model returns; those in a tuple, such as hidden states, with their number."""
    with torch.no_grad():
        output: Any = model(**inputs, return_dict=True)
    for name, value in output.items():
        if isinstance(value, Tensor):
            yield name, value
        else:
            yield from ((f"{name}_{number}", part) for number, part in enumerate(value))


def _has_length(value: Tensor) -> bool:
    return value.ndim == 2 and not value.is_floating_point() and value.shape[1] == LENGTH


def _length(key: str) -> str:
    return "decoder_length" if key.startswith("decoder_") else "length"


def _summary(error: Exception) -> str:
    """Return the line of an error that says what went wrong: exporters put advice before the cause."""
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0].rstrip(".") if str(cause).strip() else type(cause).__name__
