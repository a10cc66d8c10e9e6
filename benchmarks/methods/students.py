"""One student of one method, where it looks, and its figures on tasks.

Takes a contest, a width, a method, a budget and learning rates; gives records. Students are made by
`wid_hf.tools.compress` and scored by `wid_hf.tools.evaluate`, as their users would.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contests import Contest, Rates
from methods import METHODS
from store import ROOT, Record, Store, run_name
from transformers import DataCollatorWithPadding

from wid_hf import TrainingError
from wid_hf.inputs import batches, tokenize
from wid_hf.rows import load_texts
from wid_hf.tools.compress import CompressSettings
from wid_hf.tools.evaluate import EvalSettings, evaluate
from wid_hf.tools.evaluation.attention import compare_attention
from wid_hf.tools.evaluation.tasks import DataPlaces, FineTuning
from wid_hf.tools.teachers import load_teacher, load_tokenizer

STUDENTS = ROOT / ".cache" / "students"
LOOKED_AT = 16  # texts


@dataclass(frozen=True)
class Budget:
    """What every method gets: optimizer steps, and texts per step."""

    steps: int
    batch_size: int


@dataclass(frozen=True)
class Tuning:
    """How students are fine-tuned: learning rates tried, steps, rows per step, most rows to train on and to score."""

    learning_rates: tuple[float, ...]
    steps: int
    batch_size: int
    train_examples: int | None = None
    eval_examples: int | None = None


@dataclass(frozen=True)
class Run:
    """The training of one student."""

    contest: Contest
    width: str
    method: str
    rates: Rates
    budget: Budget
    seed: int

    @property
    def settings(self) -> Record:
        """What tells the run from others."""
        contest = self.contest
        return {
            "what": "methods",
            "teacher": contest.name,
            "width": self.width,
            "sizes": dict(contest.sizes[self.width]),
            "method": self.method,
            "rates": dict(self.rates),
            **asdict(self.budget),
            "seed": self.seed,
            "train": contest.train.name,
            "length": contest.max_length,
            "scored": contest.validation_texts,
            "calibration": contest.calibration_samples,
        }

    @property
    def student(self) -> Path:
        """Where the student is kept."""
        return STUDENTS / run_name(self.settings)


def trained(run: Run, store: Store) -> Record | None:
    """Return the record of a student, trained now if there is none; None out of time.

    The record of one that diverged says so in `diverged` and has no scores.
    """
    return store.get(run.settings, lambda: _train(run))


def tuned(run: Run, tuning: Tuning, store: Store) -> Record | None:
    """Return the record of the student's figures on tasks; one that is not kept any more is trained again."""

    def make() -> Record:
        if not run.student.exists() and "diverged" in (found := _train(run)):
            return found
        return {"tasks": _tasks(run.contest, run.student, tuning, run.seed)}

    return store.get(run.settings | _of_tasks(run.contest, tuning), make)


def teacher(contest: Contest, tuning: Tuning, seed: int, store: Store) -> Record | None:
    """Return the record of the teacher's figures on the contest's tasks."""
    settings = {"what": "methods", "teacher": contest.name, "method": "teacher", "seed": seed}
    return store.get(
        {**settings, **_of_tasks(contest, tuning)}, lambda: {"tasks": _tasks(contest, contest.folder, tuning, seed)}
    )


def _of_tasks(contest: Contest, tuning: Tuning) -> Record:
    return {"tasks": list(contest.tasks), "tuning": asdict(tuning)}


def _train(run: Run) -> dict[str, Any]:
    contest = run.contest
    given = dict(run.rates)
    student_rate = given.pop("learning_rate", None)
    settings = CompressSettings(
        **asdict(run.budget),
        max_length=contest.max_length,
        column=contest.column,
        validation=str(contest.validation) if contest.validation else None,
        validation_texts=contest.validation_texts,
        seed=run.seed,
        **given,
    )
    STUDENTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STUDENTS) as scratch:
        student = Path(scratch) / "student"
        try:
            report = METHODS[run.method].compress(
                str(contest.folder), str(contest.train), student, contest.config(run.width), settings, student_rate
            )
        except TrainingError as error:
            return {"diverged": str(error)}
        attention = _attention(contest, student)
        shutil.rmtree(run.student, ignore_errors=True)
        student.replace(run.student)
    return {
        "scores": report.scores,
        "parameters": report.sizes["student"].total,
        "tokens": report.tokens,
        "training_seconds": report.seconds,
        "losses": report.losses,
        "narrow_from": report.narrow_from,
        "attention": attention,
    }


def _tasks(contest: Contest, model: Path, tuning: Tuning, seed: int) -> dict[str, Any]:
    """Return for each task the figures of all its splits, at the best learning rate on its split `dev`."""
    settings = EvalSettings(
        DataPlaces(contest.data, train_examples=tuning.train_examples, eval_examples=tuning.eval_examples),
        FineTuning(
            learning_rates=tuning.learning_rates, seeds=(seed,), steps=tuning.steps, batch_size=tuning.batch_size
        ),
    )
    with tempfile.TemporaryDirectory() as scratch:
        report = evaluate(str(model), list(contest.tasks), scratch, settings)
    return {
        name: {"splits": result.mean, "learning_rate": result.best_learning_rate}
        for name, result in report.tasks.items()
    }


def _attention(contest: Contest, student: Path) -> dict[str, Any]:
    """Return how far the student looks from where its teacher does, on the first texts of `looked_at`."""
    tokenizer = load_tokenizer(str(contest.folder))
    texts = load_texts(str(contest.looked_at), column=contest.column).select(range(LOOKED_AT))
    tokens = tokenize(texts, tokenizer, contest.max_length).select_columns(["input_ids", "attention_mask"])
    models = [load_teacher(str(folder)) for folder in (contest.folder, student)]
    return compare_attention(*models, batches(tokens, DataCollatorWithPadding(tokenizer), 8)).to_dict()
