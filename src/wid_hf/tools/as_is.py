"""How good a fine-tuned model is as it is: figures on rows, on labels and against a teacher. Nothing trains.

Takes a model, rows and perhaps a teacher, by name or loaded; gives the figures that `compress` has of held-out rows.
Called by `wid-hf eval --as-is`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapter.fingerprint import weights_fingerprint
from ..adapter.merge import remember_map
from ..adapter.output_map import load_output_map
from ..errors import ConfigError, DataError, TeacherError, WidError
from ..inputs import Columns
from ..objectives import Objective
from ..objectives.registry import AUTO, may_be_headless, refuse_unknown_task
from ..rows import Prepared
from ..rows.division import drawn
from ..scores.eval_mode import on_accelerator
from .compression import find_task, fitting_length
from .recipe import CompressSettings
from .reports.as_is_report import AsIsReport
from .teachers import Teacher
from .training_data import load_prepared, said

COMPARED = 8  # rows of which model and teacher must make the same inputs


@dataclass(frozen=True)
class AsIsSettings:
    """Which rows a model is scored on, and how.

    Attributes:
        task: name of an objective; "auto" takes the one that fits the model.
        column: `ROLE=NAME`, or several of them, as in `CompressSettings`.
        split: of a dataset or a folder.
        eval_examples: rows that are scored, drawn at random but the same for all models; None for all.
        batch_size: rows at once.
        max_length: tokens per text, never more than the model has positions for.
        seed: of the tokens that are masked.

    Raises:
        ConfigError: a number that is too small, or an unknown task.
    """

    task: str = AUTO
    column: str | Sequence[str] = ()
    split: str = CompressSettings.validation_split
    eval_examples: int | None = None
    batch_size: int = CompressSettings.batch_size
    max_length: int = CompressSettings.max_length
    seed: int = CompressSettings.seed

    def __post_init__(self) -> None:
        refuse_unknown_task(self.task)
        for name, least in {"eval_examples": 1, "batch_size": 1, "max_length": 3}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} is too small. Legal: {least} or more.")


def evaluate_as_is(
    model: str | PreTrainedModel,
    data: str | Sequence[str] | Dataset,
    *,
    teacher: str | PreTrainedModel | None = None,
    settings: AsIsSettings | None = None,
    processing_class: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    command: str | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> AsIsReport:
    """Score a fine-tuned model, such as a student, on rows: by their labels, and by how near it is to a teacher.

    Args:
        model: folder, Hub id or a model.
        data: rows, or the name of files, a folder or a dataset.
        teacher: the model that it shall be like, named in the same ways.
        settings: which rows, and how.
        processing_class: the tokenizer, image processor or processor of sounds of models that are not named.
        revision: of the model on the Hub.
        trust_remote_code: passed on to transformers.
        command: the command line, for the report.
        tell: is called with what a user should know before the model is scored.

    Returns:
        The figures of the model, and of its teacher if there is one.

    Raises:
        WidError: one of its subclasses: the task is not for the class, there is no row that can be used, there is
            neither a label nor a teacher to score by, or model and teacher are not of a kind.
    """
    settings = settings or AsIsSettings()
    load = partial(_subject, task=settings.task, processing_class=processing_class, trust_remote_code=trust_remote_code)
    subjects = {"model": load(model, revision=revision)} | ({} if teacher is None else {"teacher": load(teacher)})
    objectives = {side: find_task(one.model, one.processor, settings.task) for side, one in subjects.items()}
    objective = objectives.get("teacher", objectives["model"])
    _refuse_other_kinds(objectives["model"], objective)
    tell(f"{subjects['model'].name}: scored as {objective.one} (task={objective.name}).")
    prepared = load_prepared(data, settings.split, objective, column=settings.column)
    tell(f"{said(data)}: {prepared.told()}")
    if teacher is None:
        _refuse_nothing_to_score(objective, prepared, said(data))
    rows = drawn(prepared.rows, settings.eval_examples)
    max_length = min(fitting_length(one, settings.max_length) for one in objectives.values())
    if teacher is not None:
        _refuse_other_inputs(objectives["model"], objective, rows.select(range(min(COMPARED, len(rows)))), max_length)
        _know_map(subjects["model"])
    with ExitStack() as stack:
        for one in subjects.values():
            stack.enter_context(on_accelerator(one.model))
        batches = objective.scored(objective.features(rows, max_length), settings.batch_size, settings.seed)
        wanted = None if teacher is None else objective.wanted(batches)
        scores = {side: objective.score(one.model, batches, wanted) for side, one in subjects.items()}
    return AsIsReport(
        model=subjects["model"].name,
        teacher=subjects["teacher"].name if teacher is not None else None,
        task=objective.name,
        unit=objective.inputs.unit,
        scored=len(rows),
        scores=scores,
        fingerprints={side: weights_fingerprint(one.model) for side, one in subjects.items()},
        rows={said(data): prepared.record()},
        settings=asdict(settings) | {"max_length": max_length},
        command=command,
    )


def _subject(
    given: str | PreTrainedModel,
    *,
    task: str,
    processing_class: Any,
    trust_remote_code: bool,
    revision: str | None = None,
) -> Teacher:
    """Return a model with what makes its inputs."""
    if not isinstance(given, str):
        return Teacher.of(given, processing_class)
    return Teacher(given, revision=revision, trust_remote_code=trust_remote_code, headless=may_be_headless(task))


def _refuse_nothing_to_score(objective: Objective, prepared: Prepared, source: str) -> None:
    """Raise DataError if the rows have nothing that the model alone can be right or wrong about."""
    target = objective.target
    if objective.has_own_loss or (target is not None and target.name in prepared.columns):
        return
    if target is None:
        why, column = f"{objective.one} has no figures of its own", ""
    else:
        why, column = f"{source} has no column for {target.name}", f", or the column with column='{target.name}=NAME'"
    raise DataError(
        f"There is nothing to score by: {why}, and no teacher is named. Name the model that it shall be like with "
        f"teacher={column}."
    )


def _refuse_other_kinds(mine: Objective, theirs: Objective) -> None:
    """Raise TeacherError if model and teacher are not for the same."""
    if type(mine) is not type(theirs):
        raise _unlike(f"the model is {mine.one}, and the teacher is {theirs.one}")
    if mine.takes_labels and _other_classes(mine, theirs):
        raise _unlike("the classes of the model are not those of the teacher, or are in another order")


def _refuse_other_inputs(mine: Objective, theirs: Objective, rows: Dataset, max_length: int) -> None:
    """Raise TeacherError if model and teacher do not read the same in `rows`."""
    (a, tokens), (b, others) = ((_main_input(one, rows[:], max_length), _tokens(one)) for one in (mine, theirs))
    equal = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
    if tokens != others or not equal:
        unit = mine.inputs.unit
        raise _unlike(f"the model makes other inputs of {unit} than the teacher: their tokenizers or processors differ")


def _unlike(why: str) -> TeacherError:
    return TeacherError(
        f"Model and teacher cannot be compared: {why}. Name the teacher that it was made of by teacher=."
    )


def _other_classes(mine: Objective, theirs: Objective) -> bool:
    """Return whether two models number classes in different ways, as far as their configs have names for them."""
    a, b = ([str(name) for _, name in sorted(one.teacher.config.id2label.items())] for one in (mine, theirs))
    unnamed = [f"LABEL_{number}" for number in range(len(a))]
    return a != b and (len(a) != len(b) or unnamed not in (a, b))


def _main_input(objective: Objective, rows: Columns, max_length: int) -> Any:
    return objective.inputs.encode(rows, max_length)[objective.inputs.argument]


def _tokens(objective: Objective) -> dict[str, int] | None:
    tokenizer = getattr(objective.inputs.processor, "tokenizer", objective.inputs.processor)
    return tokenizer.get_vocab() if isinstance(tokenizer, PreTrainedTokenizerBase) else None


def _know_map(student: Teacher) -> None:
    """Let a student whose outputs are turned know how they follow from its teacher's, if its folder says so."""
    with suppress(WidError):
        remember_map(student.model, load_output_map(student.name, student.revision))
