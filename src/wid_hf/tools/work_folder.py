"""`<output>-work`: what a run needs to go on after it was stopped or killed.

Takes the folder's path and all that decides what comes out of the run; keeps its start, with the figures that were
found there, and checkpoints of its training. A later run that is the same goes on from them. Nothing there is deleted
but what is written here. Called by `compress`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic_write import atomic_write
from ..budget import SizeSearch
from ..errors import OutputError, WidError, WidWarning
from ..format_version import KEY, refuse_newer
from ..plots.widths import WIDTHS_PICTURE
from ..training.checkpoints import NUMBERED, last_whole_checkpoint
from ..training.last_good import FILES as LAST_GOOD_FILES
from .staging import take_lock

RUN, LOCK = "wid_run.json", "lock"
START, REFINEMENT, LOGS = "start", "refinement", "runs"  # folders: an adapter, layers that are done, of TensorBoard
FORMAT_VERSION = 1
SHOWN = 5  # differences in a message


class WorkFolder:
    """The folder beside an output in which a run keeps its start and its checkpoints until the student is whole.

    Args:
        path: of the folder.
        resume: go on with what an earlier run left there.
        overwrite: delete what an earlier run left there, and begin again.

    Raises:
        OutputError: there is something, and it may be neither used nor deleted.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = path
        self._resume, self._overwrite = resume, overwrite
        self._run: dict[str, Any] = {}
        self._refuse_others()
        if resume and not path.is_dir():
            warnings.warn(f"There is no folder {path} to resume from: this run begins anew.", WidWarning, stacklevel=3)

    @contextmanager
    def opened(self, decides: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for one run; afterwards it stays only if that run can be resumed.

        Args:
            decides: all that decides what comes out of the run, as plain values for JSON.

        Raises:
            OutputError: another process works there, an earlier run was another one, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise OutputError(
                f"The work folder {self.path} cannot be written: {error}. Name another output."
            ) from error
        try:
            if not take_lock(held):
                raise OutputError(f"Another process works in {self.path}. Wait for it, or name another output.")
            self._take_over(json.loads(json.dumps(decides)))
            try:
                yield
            finally:
                if not self._is_of_use and self.path.is_dir():
                    self.remove()
        finally:
            os.close(held)

    @property
    def start(self) -> dict[str, Any] | None:
        """What `keep_start` was told; None if the run has no start yet."""
        return self._run.get("start")

    def keep_start(self, model: PeftModel, found: Mapping[str, Any]) -> None:
        """Save a model at its start, and what was found there, as plain values for JSON.

        Raises:
            OutputError: it cannot be written: the disk is full.
        """
        try:
            model.save_pretrained(self.path / START)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"The start cannot be written to {self.path / START}: {error}.") from error
        self._write(self._run | {"start": found})

    def search(self, asked: SizeSearch) -> dict[str, Any] | None:
        """Return how an earlier run found its sizes, with which this one goes on; None if there is none.

        Raises:
            OutputError: they were found for something else.
        """
        if not (self._resume and (self.path / RUN).is_file()):
            return None
        found: dict[str, Any] | None = self._read().get("search")
        now = json.loads(json.dumps(asked.asked))
        if found is not None and (differences := [*_differences(found["asked"], now)]):
            raise OutputError(
                f"{self.path} holds a run whose sizes were found for something else: {'; '.join(differences)}. Repeat "
                "that, pass overwrite=True instead of resume=True, or name another output."
            )
        return found

    def keep_search(self, found: Mapping[str, Any]) -> None:
        """Remember how the sizes of this run were found, as plain values for JSON."""
        self._write(self._run | {"search": found})

    def checkpoint(self, processes: int = 1) -> Path | None:
        """Return the last whole checkpoint, None without one; a warning names those that are torn.

        Args:
            processes: how many train.
        """
        if not any(NUMBERED.fullmatch(path.name) for path in self.path.iterdir()):
            return None
        try:
            return last_whole_checkpoint(self.path, processes=processes)
        except WidError:
            return None

    def seconds_until(self, checkpoint: Path | None) -> float:
        """Return the wall time of training that led to a checkpoint."""
        return float(self._run.get("seconds", {}).get(checkpoint.name, 0.0)) if checkpoint is not None else 0.0

    def note_seconds(self, checkpoint: str, seconds: float) -> None:
        """Remember the wall time of training that led to the checkpoint of this name."""
        self._write(self._run | {"seconds": self._run.get("seconds", {}) | {checkpoint: seconds}})

    def remove(self) -> None:
        """Delete what a run wrote here, and the folder unless something else is there."""
        self._run = {}
        self._clear()
        if others := sorted(entry.name for entry in self.path.iterdir()):
            warnings.warn(
                f"{self.path} stays: wid-hf did not write {', '.join(others)} there.", WidWarning, stacklevel=3
            )
        else:
            self.path.rmdir()

    @property
    def _is_of_use(self) -> bool:
        """Whether a later run could go on here."""
        search = self._run.get("search")
        took_time = search is not None and bool(search["asked"]["seconds"])
        return self.start is not None or took_time or any((self.path / REFINEMENT).glob("*"))

    def _refuse_others(self) -> None:
        """Refuse a file, a folder of somebody else, or that of an earlier run which may not be touched."""
        holds_run = (self.path / RUN).is_file()
        if self.path.exists() and not (holds_run or (self.path.is_dir() and all(map(_is_ours, self.path.iterdir())))):
            raise OutputError(
                f"Checkpoints would be written to {self.path}, which wid-hf did not write. Move it away, or name "
                "another output."
            )
        if holds_run and not (self._resume or self._overwrite):
            raise OutputError(
                f"{self.path} holds a run that was stopped. Pass resume=True to continue it, overwrite=True to begin "
                "again, or name another output."
            )

    def _take_over(self, decides: dict[str, Any]) -> None:
        """Go on with the run that is here, or begin a new one."""
        if not (self._resume and (self.path / RUN).exists()):
            self._clear(keep=LOCK)
            self._write({KEY: FORMAT_VERSION, "decides": decides})
            return
        earlier = self._read()
        if differences := [*_differences(earlier.get("decides"), decides)]:
            more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise OutputError(
                f"{self.path} holds another run, so it cannot be resumed: {'; '.join(differences[:SHOWN])}{more}. "
                "Repeat its settings, pass overwrite=True instead of resume=True, or name another output."
            )
        self._run = earlier

    def _clear(self, keep: str | None = None) -> None:
        for entry in [*self.path.iterdir()]:
            if _is_ours(entry) and entry.name != keep:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self.path / RUN} cannot be read ({error}). Pass overwrite=True instead of resume=True."
            ) from error
        refuse_newer(found.get(KEY), FORMAT_VERSION, str(self.path / RUN))
        return found

    def _write(self, run: dict[str, Any]) -> None:
        with atomic_write(self.path / RUN) as unfinished:
            unfinished.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        self._run = run


def load_start(model: PeftModel, folder: Path) -> None:
    """Make a fresh model the one that `WorkFolder.keep_start` saved in `folder`."""
    model.load_adapter(str(folder), model.active_adapter, is_trainable=True)


class NoteSeconds(TrainerCallback):
    """Notes how long the way to each checkpoint took.

    Args:
        work: the folder.
        before: seconds of training before this process began.
    """

    def __init__(self, work: WorkFolder, before: float) -> None:
        self.work = work
        self._began = time.monotonic() - before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time."""
        self.work.note_seconds(f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", time.monotonic() - self._began)


def _is_ours(entry: Path) -> bool:
    """Return whether an entry of a work folder was written by a run."""
    if entry.is_symlink():
        return False
    if entry.is_dir():
        return entry.name in (START, REFINEMENT, LOGS) or NUMBERED.fullmatch(entry.name) is not None
    if LAST_GOOD_FILES.fullmatch(entry.name):  # of a training that was killed
        return True
    return entry.name in (RUN, LOCK, WIDTHS_PICTURE) or entry.name.startswith(f".{RUN}-")  # of a write that was killed


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Yield in words what differs between two nested dictionaries."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), key if not name else f"{name}.{key}")
    elif there != here:
        yield f"{name}: {there} there, {here} here"
