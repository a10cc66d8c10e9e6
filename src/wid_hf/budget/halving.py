"""Which of the shapes that fill a target is best: successive halving by their calibrated starts, without training.

Takes a `Front` and a `Survey` of the teacher, or calibration data for one; gives a `SearchResult`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, log2

from ..adapter.get_wid_model import get_wid_model
from ..calibration.batches import Batch, prepared
from ..calibration.candidates import ENOUGH
from ..calibration.divergence import output_divergence
from ..calibration.division import parted, texts_in, tokens_in
from ..config import CalibrationConfig, WidConfig
from ..errors import ConfigError, DataError, PlanError
from ..planning.tracing import plain_attention
from ..progress_bar import progress_bar
from .front import Candidate, Front
from .per_layer import ScoredProfile, profiles
from .result import Scored, SearchResult
from .shapes import exact_sizes
from .survey import Clock, Survey, outputs_of

SECONDS = 900.0
LEAST_TEXTS = 8  # to calibrate on at the first rung
FINALISTS = 2  # candidates at the last rung
GUESS = 0  # place of the candidate that shrinks in one proportion; it is among the finalists in any case
LEAST_SECONDS = 1.0  # for the head of a finalist
FIRST_SHARE = 0.5  # of the time, for the first rung: all later ones have fewer candidates
PLANNING, CALIBRATING, SCORING = "planning", "calibrating", "scoring"


def search(
    front: Front,
    batches: Iterable[Batch],
    *,
    seconds: float = SECONDS,
    calibration: CalibrationConfig | None = None,
    clock: Clock = time.monotonic,
) -> SearchResult:
    """Find the candidate whose calibrated start follows the teacher best: `halved` on a survey of its own.

    Args:
        front: the candidates, from `propose`.
        batches: see `Survey.of`.
        seconds: that it may take, with the survey; see `halved`.
        calibration: how starts are made, by default as `CalibrationConfig()` says; no layer is refined.
        clock: gives seconds.

    Raises:
        ConfigError: `seconds` is no number above 0.
        DataError: fewer than two texts, or batches that cannot be used.
        PlanError: none of the candidates that were tried can be a student of this teacher; says why.
    """
    _check(seconds)
    survey = Survey.of([front], batches, seconds=seconds, calibration=calibration, clock=clock)
    return halved(front, survey, seconds=seconds, clock=clock)


def halved(front: Front, survey: Survey, *, seconds: float = SECONDS, clock: Clock = time.monotonic) -> SearchResult:
    """Find the candidate whose calibrated start follows the teacher best, by successive halving.

    Every start is scored on held-out texts by the objective's own divergence, as `calibrate` scores its trials: first
    all of them after calibration on few texts, then the better half after calibration on more, until two are left that
    see all. Only these are made as `calibrate` makes a start; before, streams are turned without a trial, and
    heads that only gradient steps can fit, of masked language models, stay at their closed form.

    Args:
        front: the candidates, from `propose`.
        survey: of the teacher; it may be that of other fronts as well.
        seconds: that it may take, with its share of the survey; the candidate that is tried when they are over is
            finished. The first rung may take half of them.
        clock: gives seconds.

    Raises:
        ConfigError: `seconds` is no number above 0.
        DataError: the texts are too few to calibrate on.
        PlanError: none of the candidates that were tried can be a student of this teacher; says why.
    """
    _check(seconds)
    return _Search(front, survey, seconds, clock).run()


def _check(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ConfigError(f"seconds={seconds!r} is not a number above 0. Leave it out for {SECONDS:.0f} s.")


class _Search:
    """One search: its clock and what it has found so far."""

    def __init__(self, front: Front, survey: Survey, seconds: float, clock: Clock) -> None:
        self._front, self._teacher, self._survey = front, front.space.teacher, survey
        self._given, self._held_out = survey.given, survey.held_out
        self._clock, self._began, self._seconds = clock, clock() - sum(survey.spent.values()), seconds
        self._spent = {**survey.spent, **dict.fromkeys((PLANNING, CALIBRATING, SCORING), 0.0)}
        self._measure, self._last = "", False

    def run(self) -> SearchResult:
        """Return what was found."""
        scored = [Scored(candidate) for candidate in self._front.candidates]
        texts = self._texts(len(scored))
        alive = [*range(len(scored))]
        rung = 0
        while alive:
            self._last = rung == len(texts) - 1
            deadline = self._began + self._seconds * self._share(rung, len(texts))
            try:
                reached = self._try_all(alive, scored, texts[rung], deadline)
            except DataError:  # too few texts, of which only those with tokens are counted before
                if self._last:
                    raise
                rung += 1
                continue
            alive = sorted(reached, key=lambda at: scored[at].rank)[: max(ceil(len(reached) / 2), FINALISTS)]
            if GUESS in reached and GUESS not in alive:  # few texts may judge it wrongly, and it is seldom bad
                alive[-1] = GUESS
            if self._last or len(alive) < FINALISTS or self._clock() > self._began + self._seconds:
                break
            rung = len(texts) - 1 if len(alive) == FINALISTS else rung + 1
        return self._result(scored, texts, self._profiles(min(scored, key=lambda each: each.rank), texts[-1]))

    def _profiles(self, best: Scored, texts: int) -> list[ScoredProfile]:
        """Try widths that differ from layer to layer, on what the winner has seen, as long as there is time."""
        found: list[ScoredProfile] = []
        shape, space = best.candidate.shape, self._front.space
        for profile in profiles(space, shape) if best.texts[-1:] == (texts,) else ():
            if self._clock() > self._began + self._seconds:
                break
            try:
                config = space.config(shape, self._survey.order, profile.widths)
                found.append(ScoredProfile(profile, self._score_of(config, parted(self._given, texts)[0])))
            except PlanError:  # uniform widths stay
                continue
        return found

    def _try_all(self, alive: Sequence[int], scored: list[Scored], texts: int, deadline: float) -> list[int]:
        """Give those that are alive one more score, as far as there is time; return those that got one."""
        some = parted(self._given, texts)[0] or self._given[:1]
        reached = []
        for place, at in enumerate(progress_bar(alive, f"Searching, {texts} texts")):
            # Two are compared on equal texts even if the rung's own time is over.
            end = deadline if place >= FINALISTS else self._began + self._seconds
            if place and self._clock() > end:
                break
            scored[at] = self._tried(scored[at], some, texts)
            if texts in scored[at].texts[-1:]:
                reached.append(at)
        return reached

    def _texts(self, candidates: int) -> tuple[int, ...]:
        """Return on how many texts starts are calibrated at each rung, twice as many each time."""
        rungs = max(1, ceil(log2(max(candidates, 1) / FINALISTS)) + 1)
        every = sum(map(texts_in, self._given))
        # Fits on fewer positions are of another kind, and of too few they are refused.
        widest = max(max(each.shape.values()) for each in self._front.candidates)
        tokens = tokens_in([prepared(self._teacher, batch) for batch in self._given])
        least = ceil(ENOUGH * widest * every / tokens) if tokens else LEAST_TEXTS
        counts = [min(max(every >> (rungs - 1 - rung), LEAST_TEXTS, least), every) for rung in range(rungs)]
        return tuple(dict.fromkeys(counts))

    def _share(self, rung: int, rungs: int) -> float:
        """Return the share of the time that may be over at the end of a rung."""
        return 1.0 if rungs == 1 else FIRST_SHARE + (1 - FIRST_SHARE) * rung / (rungs - 1)

    def _tried(self, scored: Scored, batches: Sequence[Batch], texts: int) -> Scored:
        """Return `scored` with one more score, or with the reason why there is none."""
        began = self._clock()
        try:
            score = self._score(scored.candidate, batches)
        except PlanError as refusal:
            note = f"refused: {str(refusal).splitlines()[-1]}"
            return replace(scored, seconds=scored.seconds + self._clock() - began, note=note)
        seconds = scored.seconds + self._clock() - began
        return replace(scored, scores=(*scored.scores, score), texts=(*scored.texts, texts), seconds=seconds)

    def _score(self, candidate: Candidate, batches: Sequence[Batch]) -> float:
        space, survey = self._front.space, self._survey
        if survey.fixed and space.is_shallow(candidate.shape):
            raise PlanError(survey.fixed)
        return self._score_of(space.config(candidate.shape, survey.order), batches)

    def _score_of(self, config: WidConfig, batches: Sequence[Batch]) -> float:
        survey = self._survey
        left = self._began + self._seconds - self._clock()
        config.calibration_config = replace(survey.calibration, refine_seconds=max(left / FINALISTS, LEAST_SECONDS))
        with self._spending(PLANNING), exact_sizes():
            tuner = get_wid_model(self._teacher, config).base_model
        with self._spending(CALIBRATING):
            tuner.calibrate(batches, quick=not self._last)
        with self._spending(SCORING), plain_attention(tuner.model):
            found = outputs_of(tuner.model, self._held_out)
            score, self._measure = output_divergence(survey.wanted, found, self._held_out)
        return score

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self._spent[what] += self._clock() - began

    def _result(self, scored: Sequence[Scored], texts: tuple[int, ...], tried: Sequence[ScoredProfile]) -> SearchResult:
        ordered = tuple(sorted(scored, key=lambda each: each.rank))
        if not ordered[0].scores:
            notes = "\n".join(dict.fromkeys(f"- {each.note}" for each in ordered if each.note))
            raise PlanError(f"None of the {len(ordered)} shapes that fill the target can be planned:\n{notes}")
        held_out = sum(map(texts_in, self._held_out))
        return SearchResult(
            self._front,
            ordered,
            texts,
            held_out,
            self._measure,
            self._spent,
            self._seconds,
            self._survey.order,
            tuple(tried),
        )
