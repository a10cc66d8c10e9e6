"""`eval_report.json`: how well a model does on tasks, in numbers for other commands.

Takes the records of runs; gives a summary of each task, a JSON file and a table. Written by `evaluate`; nothing in it
is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ...errors import FormatError, OutputError, TrainingError
from ...extras import extra
from ...format_version import KEY, refuse_newer
from ...hub.model_size import ModelSize
from ...scores.figures import LOWER_IS_BETTER
from ..evaluation.runs import Record, write_json
from ..evaluation.tasks import Scores, Task

if TYPE_CHECKING:
    from rich.table import Table

FILE_NAME = "eval_report.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        task: its name.
        title: its name in tables.
        figures: its scores; the first decides.
        best_learning_rate: that with the best mean of the first figure on the split `dev` over all seeds; None
            without training.
        mean: of the runs at that learning rate, by split and figure.
        spread: their standard deviation, over n - 1; None for one run, which has none.
        seeds: how many runs that is.
        runs: all runs: learning rate, seed, figures, steps, seconds, hardware, versions.
    """

    task: str
    title: str
    figures: tuple[str, ...]
    best_learning_rate: float | None
    mean: dict[str, Scores]
    spread: dict[str, Scores] | None
    seeds: int
    runs: list[Record]


@dataclass(frozen=True)
class EvalReport:
    """One model on several tasks.

    Attributes:
        model: name or folder.
        model_class: of the checkpoint.
        fingerprint: SHA-256 of its weights.
        size: parameters in all, encoder parameters, bytes of weights.
        tasks: by name.
        command: the command lines that the results came from, in order.
    """

    model: str
    model_class: str
    fingerprint: str
    size: ModelSize
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> Path:
        """Write `eval_report.json` into `folder` and return its path."""
        path = folder / FILE_NAME
        write_json(path, asdict(self) | {KEY: FORMAT_VERSION})
        return path

    @classmethod
    def load(cls, folder: Path) -> EvalReport:
        """Return what `save` wrote into `folder`.

        Raises:
            OutputError: it is not a report.
            FormatError: a newer wid_hf wrote it.
        """
        path = folder / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            refuse_newer(values.pop(KEY, None), FORMAT_VERSION, str(path))
            tasks = {
                name: TaskResult(**{**result, "figures": tuple(result["figures"])})
                for name, result in values.pop("tasks").items()
            }
            return cls(**{**values, "size": ModelSize(**values["size"]), "tasks": tasks})
        except FormatError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path} is not a report of `wid-hf eval` ({error}). Move it away or name another folder."
            ) from error

    def table(self) -> Table:
        """Return one row for each task and split; shares are percentages, with the spread over seeds."""
        with extra("cli"):
            from rich.table import Table

        table = Table("task", "split", "figure", "mean", "spread", "seeds", "learning rate", title=self.model)
        for result in self.tasks.values():
            rate = "" if result.best_learning_rate is None else f"{result.best_learning_rate:g}"
            for split, scores in result.mean.items():
                for figure in result.figures:
                    spread = "" if result.spread is None else _text(figure, result.spread[split][figure])
                    table.add_row(
                        result.title,
                        split,
                        figure.replace("_", " "),
                        _text(figure, scores[figure]),
                        spread,
                        str(result.seeds) if result.best_learning_rate else "",
                        rate,
                    )
        return table


def summarize(task: Task, runs: Sequence[Record]) -> TaskResult:
    """Return the result of the runs of one task.

    Raises:
        TrainingError: every learning rate diverged with some seed.
    """
    by_rate: dict[float | None, list[Record]] = {}
    for run in runs:
        by_rate.setdefault(run["learning_rate"], []).append(run)
    whole = {rate: some for rate, some in by_rate.items() if all(run["scores"] is not None for run in some)}
    if not whole:
        raise TrainingError(
            f"{task.title}: training diverged at every learning rate ({', '.join(f'{rate:g}' for rate in by_rate)}). "
            "Give smaller ones."
        )
    first = task.figures[0]
    sign = -1 if first in LOWER_IS_BETTER else 1
    best = max(whole, key=lambda rate: sign * mean(_decisive(run)[first] for run in whole[rate]))
    scores = [run["scores"] for run in whole[best]]
    return TaskResult(
        task=task.name,
        title=task.title,
        figures=task.figures,
        best_learning_rate=best,
        mean=_over_runs(scores, mean),
        spread=_over_runs(scores, stdev) if len(scores) > 1 else None,
        seeds=len(scores),
        runs=list(runs),
    )


def _decisive(run: Mapping[str, Any]) -> Scores:
    scores: dict[str, Scores] = run["scores"]
    return scores["dev"] if "dev" in scores else next(iter(scores.values()))


def _over_runs(scores: Sequence[dict[str, Scores]], function: Any) -> dict[str, Scores]:
    return {
        split: {figure: function([each[split][figure] for each in scores]) for figure in figures}
        for split, figures in scores[0].items()
    }


def _text(figure: str, value: float) -> str:
    return f"{value:.4g}" if figure in LOWER_IS_BETTER else f"{100 * value:.2f}"
