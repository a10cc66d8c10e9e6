"""One call from a model's name to its figures on tasks.

Takes names of a model and of tasks; gives a folder with `eval_report.json` and the record of every run. Called by
`wid-hf eval`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapter.fingerprint import weights_fingerprint
from ..errors import ConfigError, OutputError
from ..hub.model_size import model_size
from ..hub.own_files import why_not_ours
from ..hub.paths import expanded
from ..scores.figures import check_installed
from .evaluation.runs import Record, Runs
from .evaluation.tasks import DataPlaces, FineTuned, FineTuning, Scored, find_tasks, fine_tune
from .evaluation.tasks.task import Rows
from .reports.eval_report import FILE_NAME, EvalReport, summarize
from .reports.wid_report import hardware_name, package_versions
from .teachers import load_teacher, load_tokenizer, load_with_head, longest_text, working_tokenizer

RUNS = "runs"
FIGURE_PACKAGES = ("scikit-learn", "scipy")
HASHED_ROWS = 1000  # at once


@dataclass(frozen=True)
class EvalSettings:
    """On which data a model is evaluated, and how.

    Attributes:
        places: where the data is.
        fine_tuning: settings of tasks with training.
        max_length: tokens per example; None leaves it to each task. Never more than the model has positions for.
    """

    places: DataPlaces = field(default_factory=DataPlaces)
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    max_length: int | None = None


def evaluate(
    model: str,
    tasks: Sequence[str],
    output: str | Path,
    settings: EvalSettings | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    command: str | None = None,
) -> EvalReport:
    """Score the model `model` on `tasks`, fine-tuning it where a task has labels to train on.

    Everything is checked and all data is loaded before the first training. A finished run with the same weights, data
    and settings is loaded from `output` instead of repeated; `eval_report.json` is updated after each task and keeps
    the results of other calls for the same weights.

    Args:
        model: folder or Hub id of a stock model.
        tasks: names from `wid_hf.tools.evaluation.tasks.TASKS`.
        output: folder for `eval_report.json` and `runs/`.
        settings: data, learning rates, seeds and the rest.
        revision: of the model on the Hub.
        trust_remote_code: passed on to transformers.
        command: the command line, for the report.

    Returns:
        What `eval_report.json` holds.

    Raises:
        WidError: one of its subclasses.
    """
    settings, output, model = settings or EvalSettings(), Path(expanded(output)), expanded(model)
    chosen = find_tasks(tasks)
    _check_settings(settings)
    _check_output(output)
    check_installed()
    loaded = load_teacher(model, revision=revision, trust_remote_code=trust_remote_code, dtype="float32")
    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer = working_tokenizer(tokenizer, loaded)
    for task in chosen:
        task.check(loaded, tokenizer)
    report = _report(output, model, loaded, command)
    data = {}
    for task in chosen:
        rows, max_length = (
            task.load(settings.places),
            longest_text(loaded, tokenizer, settings.max_length or task.max_length),
        )
        data[task.name] = (rows, task.features(rows, tokenizer, max_length), max_length)
    _make(output)
    report.save(output)  # now, so that a second call knows the folder even if this one is killed in its first run
    load = partial(load_with_head, model, revision=revision, trust_remote_code=trust_remote_code)
    for task in chosen:
        rows, features, max_length = data[task.name]
        made_from = {
            "task": task.name,
            "fingerprint": report.fingerprint,
            "data": {split: [_digest(rows[split]), _digest(features[split])] for split in features},
            "examples": {split: len(dataset) for split, dataset in rows.items()},
            "max_length": max_length,
        }
        runs = Runs(output / RUNS / task.name)
        if isinstance(task, FineTuned):
            found = list(_fine_tunings(task, load, rows, features, tokenizer, settings, runs, made_from))
        else:
            found = [_scored(task, loaded, features, tokenizer, settings, runs, made_from)]
        report.tasks[task.name] = summarize(task, found)
        report.save(output)
    return report


def _fine_tunings(
    task: FineTuned,
    load: partial[PreTrainedModel],
    rows: Rows,
    features: Rows,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvalSettings,
    runs: Runs,
    made_from: Record,
) -> Iterator[Record]:
    how = settings.fine_tuning
    shared = {name: value for name, value in asdict(how).items() if name not in ("learning_rates", "seeds")}
    every = [(rate, seed) for rate in how.learning_rates for seed in how.seeds]
    for number, (rate, seed) in enumerate(every, start=1):

        def make(rate: float = rate, seed: int = seed, number: int = number) -> Record:
            sys.stderr.write(f"{task.title}: run {number} of {len(every)}, learning rate {rate:g}, seed {seed}\n")
            run = fine_tune(task, load, rows, features, tokenizer, how, learning_rate=rate, seed=seed)
            return {"learning_rate": rate, "seed": seed, **asdict(run), **_circumstances()}

        yield runs.get(made_from | {"fine_tuning": shared, "learning_rate": rate, "seed": seed}, make)


def _scored(
    task: Scored,
    model: PreTrainedModel,
    features: Rows,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvalSettings,
    runs: Runs,
    made_from: Record,
) -> Record:
    batch_size = settings.fine_tuning.batch_size

    def make() -> Record:
        began = time.monotonic()
        scores = task.score(model, features, tokenizer, batch_size)
        seconds = time.monotonic() - began
        return {
            "learning_rate": None,
            "seed": None,
            "scores": scores,
            "steps": 0,
            "seconds": seconds,
        } | _circumstances()

    return runs.get(made_from | {"batch_size": batch_size}, make)


def _circumstances() -> Record:
    versions = package_versions() | {name: version(name) for name in FIGURE_PACKAGES}
    return {"hardware": hardware_name(), "versions": versions}


def _report(output: Path, name: str, model: PreTrainedModel, command: str | None) -> EvalReport:
    """Return the report that is in `output`, or a new one."""
    fingerprint = weights_fingerprint(model)
    if not (output / FILE_NAME).exists():
        report = EvalReport(name, type(model).__name__, fingerprint, model_size(model))
    else:
        report = EvalReport.load(output)
        if report.fingerprint != fingerprint:
            raise OutputError(
                f"{output} holds results of other weights (of {report.model!r}). Name another folder with output=, or "
                f"move {output / FILE_NAME} away."
            )
    if command is not None and command not in report.command:
        report.command.append(command)
    return report


def _check_output(output: Path) -> None:
    """Refuse a folder with other files than results: results would be lost among them, or replace them.

    A student's folder that `compress` wrote is accepted for the student's results.
    """
    others = sorted(path.name for path in output.iterdir() if path.name != RUNS) if output.is_dir() else []
    if others and not (output / FILE_NAME).exists() and why_not_ours(output) is not None:
        raise OutputError(
            f"The output {output} holds {', '.join(others[:5])} and no {FILE_NAME}, so it is not a folder of results. "
            "Name another with output=."
        )


def _make(output: Path) -> None:
    """Make the folder now, so that a folder that cannot be written is refused before a training, not after it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        writable = os.access(output, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise OutputError(f"The output {output} is not a folder that can be written. Name another with output=.")


def _check_settings(settings: EvalSettings) -> None:
    how = settings.fine_tuning
    if not how.learning_rates or not how.seeds or min(how.learning_rates) <= 0:
        raise ConfigError(
            f"learning rates {list(how.learning_rates)} and seeds {list(how.seeds)} make no run. Legal: at least one "
            "of each, learning rates above 0."
        )


def _digest(tokens: Dataset) -> str:
    """Return a SHA-256 of all rows."""
    sha = hashlib.sha256()
    for batch in tokens.iter(HASHED_ROWS):
        sha.update(json.dumps(batch, sort_keys=True).encode())
    return sha.hexdigest()
