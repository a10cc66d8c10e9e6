"""`wid_report.json`: what a run did, in numbers for other commands.

Takes the figures of a run, gives a JSON file, a table and a picture of the calibration. Written by `compress`;
nothing in it is typed by hand.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...atomic_write import atomic_write
from ...calibration import Calibration
from ...extras import extra
from ...format_version import KEY
from ...hub.model_size import ModelSize, size_rows
from ...hub.own_files import CALIBRATION_PICTURE, FILE_NAME, LISTED, file_digests
from ...hub.report_file import FORMAT_VERSION
from ...plots.calibration import draw
from ...plots.widths import WIDTHS_PICTURE, draw_widths

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("wid-hf", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors")


def hardware_name() -> str:
    """Return the accelerator's name, or the processor with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Latency:
    """How long one forward takes.

    Attributes:
        seconds: median, for `teacher` and `student`.
        batch: rows, and tokens or other numbers per row, padding counted.
    """

    seconds: dict[str, float]
    batch: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        teacher: name or folder of the teacher.
        requested: the requested sizes.
        search: for which target they were found and how, with all candidates; None where they were given.
        head_strategy: `dim` or `head`: as requested, or as `auto` decided.
        method: how the student was made: `wid`, `wid-progressive`, `wid-kd`, or that of another recipe.
        start: how it started, such as `calibrated, pivots` or `random weights`.
        calibration: the reconstruction error of every weight input before and after; None for an identity start.
        objective: `masked-lm` or `following`.
        unit: what rows are called, such as `texts` or `images`.
        numbers: what the numbers of their inputs are called: `tokens`, or `values` of images and sounds.
        sizes: parameters in all, encoder parameters and bytes of weights, for `teacher` and `student`.
        scores: figures on held-out texts, for `teacher`, `start` (before training) and `student`; without
            training, start and student are one. A student that could not be scored has none.
        teacher_with_all_tokens: figures of the teacher as it is, where `scores` has those of a teacher that lacks the
            tokens which went; per token they are in its own tokens. None if all stay.
        steps: optimizer steps.
        tokens: tokens trained on, padding not counted; values of images and sounds.
        seconds: wall time of training.
        losses: training loss `[step, loss]` as logged.
        schedule: of a progressive training, the `WidSchedule` as a dictionary; None if it was narrow throughout.
        widths: kept indices `[step, number]` of each coupled dimension of a progressive training, as logged.
        outputs: what the student's outputs are: `whole`, as wide as the teacher's; `coordinates`, some of the
            teacher's; or `turned`, combinations of these, whose map is saved beside the student. None if its weights
            were random.
        settled: how heads and other sizes changed, and why; None if the request left nothing open.
        vocabulary: which tokens went, and how rows are divided into tokens since; None if all stay.
        title: the method's name in cards.
        weights: whether the student's weights were `folded` from the teacher's, `cut` out of them, or `random`.
        narrow_from: the step after which a progressive training was narrow.
        fingerprints: SHA-256 of the weights in float32, for `teacher` and `student`; `eval_report.json` holds the same.
        latency: of `teacher` and `student`; None if it was not measured.
        command: the command line; None for a call from Python.
        run: all options of the command by name, as `--config` takes them; None for a call from Python.
        stopped: why training ended before its last step, and after which; None if it did not.
        rows: for each source of rows the column of each role, how many were read, and why some were left out.
        settings: batch size, learning rates and the other settings of the run.
        seed: of data order, masking and held-out texts.
        hardware: device and number of threads.
        versions: of Python and the packages that matter.
    """

    teacher: str
    requested: dict[str, Any]
    head_strategy: str
    method: str
    start: str
    objective: str
    sizes: dict[str, ModelSize]
    settings: dict[str, Any]
    seed: int
    unit: str = "texts"
    numbers: str = "tokens"
    calibration: Calibration | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher_with_all_tokens: dict[str, float] | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    schedule: dict[str, Any] | None = None
    widths: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    narrow_from: int | None = None
    outputs: str | None = None
    settled: str | None = None
    vocabulary: str | None = None
    title: str = "WID"
    weights: str = "folded"
    fingerprints: dict[str, str] = field(default_factory=dict)
    latency: Latency | None = None
    command: str | None = None
    run: Mapping[str, Any] | None = None
    stopped: str | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    search: dict[str, Any] | None = None
    hardware: str = field(default_factory=hardware_name)
    versions: dict[str, str] = field(default_factory=package_versions)

    def save(self, folder: Path) -> Path:
        """Write `wid_report.json` into `folder`, with a list of the files that are there by now; return its path."""
        values = asdict(self) | {KEY: FORMAT_VERSION, LISTED: file_digests(folder)}
        if self.calibration is not None:
            values["calibration"] = self.calibration.to_dict()
        path = folder / FILE_NAME
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return path

    def draw(self, folder: Path) -> None:
        """Draw pictures into `folder`: of the calibration, and of widths over steps, if there are any.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        if self.calibration is not None and self.calibration.inputs:
            draw(self.calibration, folder / CALIBRATION_PICTURE)
        if self.widths:
            draw_widths(self.widths, self.narrow_from, folder / WIDTHS_PICTURE)

    def table(self) -> Table:
        """Return teacher, start and student side by side; no start if nothing was trained."""
        with extra("cli"):
            from rich.table import Table

        names = [name for name in self.scores if self.steps or name != "start"]
        trained = f"{self.steps} steps, {self.tokens:,} {self.numbers}, {self.seconds:.0f} s"
        table = Table("", *names, title=f"{self.teacher}: {trained if self.steps else f'{self.start}, not trained'}")
        for row in size_rows(self.sizes, names):
            table.add_row(*row)
        if self.latency is not None:
            seconds = self.latency.seconds
            batch = f"ms for {' x '.join(map(str, self.latency.batch))} {self.numbers}"
            table.add_row(batch, *(f"{1000 * seconds[name]:.1f}" if name in seconds else "" for name in names))
        for figure in next(iter(self.scores.values())):
            table.add_row(figure.replace("_", " "), *(f"{self.scores[name][figure]:.4f}" for name in names))
        for figure, value in (self.teacher_with_all_tokens or {}).items():
            table.add_row(f"{figure.replace('_', ' ')}, with all tokens", f"{value:.4f}")
        return table
