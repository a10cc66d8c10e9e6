"""Which checkpoints are whole: a run that is killed while it writes one leaves a folder that looks like the others.

Takes folders that `Trainer` wrote; finds from their content what is missing; nothing is unpickled. Called by `trainer`
before it resumes.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..errors import WidError

NUMBERED = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
RANDOM_STATE = "rng_state.pth"
RANDOM_STATE_OF_RANK = re.compile(r"rng_state_(\d+)\.pth")


def last_whole_checkpoint(run: Path, *, processes: int = 1, model_only: bool = False, warn: bool = True) -> Path:
    """Return the whole checkpoint with the highest step; a warning names each later one and what it lacks.

    Args:
        run: the folder that holds `checkpoint-<step>` folders.
        processes: how many processes train; see `missing_parts`.
        model_only: see `missing_parts`.
        warn: False gives no warnings, for all processes but one.

    Raises:
        WidError: there is none.
    """
    steps = _by_step(run)
    torn: list[str] = []
    for step in sorted(steps, reverse=True):
        missing = missing_parts(steps[step], processes=processes, model_only=model_only)
        if not missing:
            for line in torn if warn else []:
                warnings.warn(f"{line} It is skipped; training resumes from {steps[step]}.", stacklevel=3)
            return steps[step]
        torn.append(_not_whole(steps[step], missing))
    found = " ".join(torn) or f"{run} has no folder {PREFIX_CHECKPOINT_DIR}-<step>."
    raise WidError(
        f"There is no checkpoint to resume from. {found} Leave resume_from_checkpoint out to train from the start."
    )


def refuse_torn_checkpoint(folder: Path, *, processes: int = 1, model_only: bool = False) -> None:
    """Check a checkpoint that was given by name.

    Args:
        folder: the checkpoint.
        processes: how many processes train; see `missing_parts`.
        model_only: see `missing_parts`.

    Raises:
        WidError: there is no such folder, or it is not whole.
    """
    if not folder.is_dir():
        raise WidError(
            f"There is no folder {folder}: resume_from_checkpoint must be the path of a checkpoint, or True."
        )
    if missing := missing_parts(folder, processes=processes, model_only=model_only):
        raise WidError(
            f"{_not_whole(folder, missing)} Name another one, or pass resume_from_checkpoint=True "
            "for the last whole one."
        )


def missing_parts(folder: Path, *, processes: int = 1, model_only: bool = False) -> list[str]:
    """Return in words what is missing or damaged in a checkpoint; nothing if it is whole.

    Every file must be whole, and every file that resuming needs must exist: of an adapter, or of a stock model.

    Args:
        folder: the checkpoint.
        processes: how many processes train. Each writes its random state, and the checkpoint does not say how many
            wrote it: if several did, at least this number is required. If one did, it is whole for any number.
        model_only: the run saves models without optimizer, schedule and random states (`save_only_model`).
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())  # some adapters are in subfolders
    names = {path.name for path in files}
    needed = [*_weights(folder), TRAINER_STATE_NAME]
    if not model_only:
        needed += [OPTIMIZER_NAME, SCHEDULER_NAME, *_random_states(names, processes)]
    absent = [f"{name} is missing" for name in needed if name not in names]
    return absent + [f"{path.relative_to(folder)} {flaw}" for path in files if (flaw := _flaw(path))]


def begin_checkpoint(folder: Path) -> None:
    """Remove files of an older checkpoint that would make a half-written new one look whole."""
    for path in (folder / TRAINER_STATE_NAME, *folder.glob("rng_state*.pth")):
        path.unlink(missing_ok=True)


def _by_step(run: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their step."""
    folders = [path for path in run.iterdir() if path.is_dir()] if run.is_dir() else []
    return {int(match[1]): path for path in folders if (match := NUMBERED.fullmatch(path.name))}


def _not_whole(folder: Path, missing: list[str]) -> str:
    why = "probably because its run was stopped while writing it"
    return f"The checkpoint {folder} is not whole, {why}: {', '.join(missing)}."


def _weights(folder: Path) -> list[str]:
    """Return the files of a stock model, in one or in several parts, or else those of an adapter."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        try:
            return [CONFIG_NAME, *sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
        except ValueError:
            return [CONFIG_NAME]  # the index itself is cut off
    if (folder / CONFIG_NAME).exists():
        return [CONFIG_NAME, SAFE_WEIGHTS_NAME]
    return [ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME]


def _random_states(names: set[str], processes: int) -> list[str]:
    ranks = [int(match[1]) for name in names if (match := RANDOM_STATE_OF_RANK.fullmatch(name))]
    if RANDOM_STATE in names or (processes == 1 and not ranks):
        return [RANDOM_STATE]
    return [f"rng_state_{rank}.pth" for rank in range(max([2, processes, *(rank + 1 for rank in ranks)]))]


def _flaw(path: Path) -> str | None:
    """Return what is wrong with a file, if its format says where it must end."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name == TRAINER_STATE_NAME:
                return _wrong_step(content, path.parent.name)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # reads the header and compares it with the size of the file
                pass
        elif path.suffix in {".pt", ".pth", ".bin"}:
            with ZipFile(path):  # what `torch.save` writes; the list of its parts is at the end
                pass
    except (ValueError, SafetensorError, BadZipFile):
        return "is cut off" if path.stat().st_size else "is empty"
    return None


def _wrong_step(state: object, folder: str) -> str | None:
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(step, int):
        return "states no global_step"
    match = NUMBERED.fullmatch(folder)
    return f"is of step {step}" if match and int(match[1]) != step else None
