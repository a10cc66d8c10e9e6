"""From targets and the rows of a run to the sizes of its students.

Takes a teacher, a `SizeSearch` for each student and rows; gives a `WidConfig`, and a record of how its sizes were found
for reports. Called by `compress`, `compress --sizes` and `wid-hf plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import broadcast_object_list

from ..budget import Front, SearchResult, SizeSearch, Space, Target
from ..budget.front import filled
from ..budget.halving import halved
from ..budget.shapes import Shape, words_of
from ..budget.size_search import sizes_of
from ..budget.survey import Survey
from ..config import WidConfig
from ..errors import ConfigError
from ..hub.model_size import model_size
from ..planning.fewer_tokens import with_fewer_tokens
from ..planning.own_head import with_own_head
from ..training.calibrating import drawn_batches
from .compression import find_task, fitting_length
from .recipe import CompressSettings
from .smaller_vocabulary import smaller_vocabulary
from .teachers import Teacher
from .training_data import Source, load_training_data


@dataclass(frozen=True)
class FoundSizes:
    """Sizes that fill a target.

    Attributes:
        asked: what they were found for.
        sizes: fields of `WidConfig` by name, as plain values for JSON.
        shape: the same as the shape that won, or that was guessed.
        front: the shapes that fill the target.
        result: of the search; None if the sizes are a guess.
    """

    asked: SizeSearch
    sizes: dict[str, Any]
    shape: Shape
    front: Front
    result: SearchResult | None = None

    @property
    def config(self) -> WidConfig:
        """The request for the sizes."""
        return self.asked.config(self.sizes)

    @property
    def words(self) -> str:
        """How the sizes were found."""
        if self.result is None:
            return f"{self.front}\nWithout a search: {words_of(self.shape)}"
        return f"{self.front}\n{self.result.reason}\n{self.result.time_in_words}"

    @property
    def record(self) -> dict[str, Any]:
        """What was asked for and found, as plain values for JSON."""
        told = {"asked": self.asked.asked, "sizes": self.sizes}
        if self.result is not None:
            return told | self.result.to_dict()
        return told | {
            "limits": dict(self.front.limits),
            "teacher": dict(self.front.teacher),
            "round_to": self.front.space.step,
            "winner": dict(self.shape),
            "reason": f"{words_of(self.shape)}: a guess, without a search.",
        }


def find_sizes(
    teacher: Teacher,
    asked: SizeSearch,
    train: Source | None,
    settings: CompressSettings,
    held_out: Source | None = None,
) -> FoundSizes:
    """Find sizes that fill a target: those whose calibrated start follows the teacher best on rows of `train`.

    Args:
        teacher: the teacher.
        asked: the target, and how long the search may take.
        train: rows to calibrate on, or their name; None for a guess.
        settings: how rows are read and cut.
        held_out: rows that are kept out of the search; by default those that `settings` name, or a part of `train`.

    Raises:
        ConfigError: the target cannot be filled; see `propose`.
        DataError: the rows cannot be used.
        PlanError: no size of the teacher may shrink, or none of the shapes that were tried can be planned.
    """
    return find_many_sizes(teacher, [asked], train, settings, held_out)[0]


def find_many_sizes(
    teacher: Teacher,
    asked: Sequence[SizeSearch],
    train: Source | None,
    settings: CompressSettings,
    held_out: Source | None = None,
) -> list[FoundSizes]:
    """Find sizes for several targets of one teacher, which is surveyed once for all; see `find_sizes`.

    Args:
        teacher: the teacher.
        asked: one or more targets, and how long the search for each may take; all else in them is the same.
        train: see `find_sizes`.
        settings: see `find_sizes`.
        held_out: see `find_sizes`.
    """
    first = asked[0]
    teacher, targets = _as_students_have_it(teacher, first, [each.target for each in asked], train, settings)
    if not first.seconds or train is None:
        return [_guessed(each, front) for each, front in zip(asked, _fronts(teacher, first, targets), strict=True)]
    objective = find_task(teacher.model, teacher.processor, settings.task)
    settings = replace(settings, steps=0, max_length=fitting_length(objective, settings.max_length))
    any_size = first.config({"num_hidden_layers": 1})  # what an objective needs of a start has nothing to do with sizes
    calibration = objective.configured(any_size).calibration_config
    data = load_training_data(train, objective, settings, calibration.samples, held_out)  # before the work: it may fail
    fronts = _fronts(teacher, first, targets)
    batches = drawn_batches(data.train, objective.collator, calibration, settings.seed)
    seconds = sum(each.seconds for each in asked)
    survey = Survey.of(fronts, batches, seconds=seconds, calibration=calibration)
    results = [halved(front, survey, seconds=each.seconds) for each, front in zip(asked, fronts, strict=True)]
    return [
        FoundSizes(each, sizes_of(result.config), result.winner, result.front, result)
        for each, result in zip(asked, results, strict=True)
    ]


def _fronts(teacher: Teacher, asked: SizeSearch, targets: Sequence[Target]) -> list[Front]:
    """Return the shapes that fill each target."""
    space = Space.of(teacher.model, round_to=asked.round_to)
    return [filled(space, target) for target in targets]


def _guessed(asked: SizeSearch, front: Front) -> FoundSizes:
    guess = front.planned_guess().shape
    return FoundSizes(asked, sizes_of(front.space.config(guess)), guess, front)


def _as_students_have_it(
    teacher: Teacher, asked: SizeSearch, targets: Sequence[Target], train: Source | None, settings: CompressSettings
) -> tuple[Teacher, Sequence[Target]]:
    """Return the teacher with the tokens and the head that students will have, and targets in numbers.

    A student with a head of its own needs more than its sizes alone say; shares are of the teacher as it was given.

    Raises:
        ConfigError: the tokens are those of rows, and there are none; or it cannot have a head of its own.
    """
    wanted, tie = asked.others.get("vocabulary"), asked.others.get("tie_word_embeddings")
    if wanted is None and tie is None:
        return teacher, targets
    model, processor = teacher.model, teacher.processor
    if wanted is not None:
        if train is None:
            raise ConfigError(f"vocabulary={wanted!r} needs rows whose tokens are counted. Give some (--train).")
        objective = find_task(model, processor, settings.task)
        found = smaller_vocabulary(teacher, objective, wanted, train, settings)
        model, processor = with_fewer_tokens(model, found.kept), found.processor
    whole = model_size(teacher.model)
    return teacher.replaced(with_own_head(model, tie, None), processor), [target.counted(whole) for target in targets]


def settled(
    teacher: Teacher,
    asked: WidConfig | SizeSearch,
    train: Source,
    settings: CompressSettings,
    held_out: Source | None = None,
    *,
    leads: bool = True,
    known: dict[str, Any] | None = None,
) -> tuple[WidConfig, dict[str, Any] | None]:
    """Return a request with sizes, and the record of how they were found; None where they were given.

    Args:
        teacher: the teacher.
        asked: sizes, or a target.
        train: see `find_sizes`.
        settings: see `find_sizes`.
        held_out: see `find_sizes`.
        leads: whether this process searches; the others of a run get what it finds.
        known: the record of an earlier search for the same.

    Raises:
        WidError: see `find_sizes`.
    """
    if isinstance(asked, WidConfig):
        return asked, None
    if leads and known is None:
        known = find_sizes(teacher, asked, train, settings, held_out).record
    (record,) = broadcast_object_list([known])
    return asked.config(record["sizes"]), record
