"""What a search found: every candidate with its scores, the winner, and where the time went.

Made by `halving`; gives rows of text and a dictionary for JSON. `plots.front` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..config import WidConfig
from .front import Candidate, Front
from .layer_order import LayerOrder
from .per_layer import ScoredProfile
from .shapes import Shape, words_of

HEADER = ("", "parameters", "divergence", "texts", "seconds", "sizes")


@dataclass(frozen=True)
class Scored:
    """A candidate that was tried.

    Attributes:
        candidate: its shape, and what it needs.
        scores: the divergence of its calibrated start at each rung that it reached; infinite if it has no number.
        texts: on how many texts each of these starts was calibrated.
        seconds: wall time that it took in all.
        note: why it was not tried to the end, or empty.
    """

    candidate: Candidate
    scores: tuple[float, ...] = ()
    texts: tuple[int, ...] = ()
    seconds: float = 0.0
    note: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        """The sort key that puts the best first: those that came further, then those that are nearer."""
        return (-self.texts[-1], self.scores[-1]) if self.texts else (0, float("inf"))


@dataclass(frozen=True)
class SearchResult:
    """The outcome of `search`.

    Attributes:
        front: the candidates, and what was asked for.
        scored: every candidate, the winner first.
        texts: on how many texts starts were calibrated at each rung.
        held_out: texts that were scored.
        measure: what a divergence is, in words.
        spent: seconds by what was done in them.
        seconds: that the search was allowed to take.
        order: in which layers go as candidates become shallower; None if none is.
        profiles: widths that differ from layer to layer and were tried in place of the winner's inner widths.
    """

    front: Front
    scored: tuple[Scored, ...]
    texts: tuple[int, ...]
    held_out: int
    measure: str
    spent: Mapping[str, float]
    seconds: float
    order: LayerOrder | None = None
    profiles: tuple[ScoredProfile, ...] = ()

    @property
    def by_layer(self) -> ScoredProfile | None:
        """The profile that is nearer to the teacher than the winner and all others; None if the winner is nearest."""
        best = min(self.profiles, key=lambda each: each.score, default=None)
        return best if best is not None and best.score < self.scored[0].scores[-1] else None

    @property
    def winner(self) -> Shape:
        """The shape whose calibrated start is nearest to the teacher."""
        return self.scored[0].candidate.shape

    @property
    def config(self) -> WidConfig:
        """The request for the winner, with the widths of each layer if a profile is nearer."""
        widths = self.by_layer.profile.widths if self.by_layer is not None else None
        return self.front.space.config(self.winner, self.order, widths)

    @property
    def reason(self) -> str:
        """Why the winner won, in words."""
        best = self.scored[0]
        tried = [each for each in self.scored if each.scores]
        won = (
            f"{words_of(best.candidate.shape)}: divergence {best.scores[-1]:.3g} ({self.measure}) on {self.held_out} "
            f"held-out texts after calibration on {best.texts[-1]}"
        )
        if len(tried) == 1:
            return f"{won}. It is the only candidate that could be tried in {self.seconds:.0f} s.{self._layers}"
        second = tried[1]
        last = f"{second.scores[-1]:.3g} on {second.texts[-1]}"
        return (
            f"{won}, the least of {len(tried)} shapes that were tried; the next has {last} "
            f"({words_of(second.candidate.shape)}).{self._layers}"
        )

    @property
    def _layers(self) -> str:
        """What came of widths that differ from layer to layer, in words; empty if none was tried."""
        if not self.profiles:
            return ""
        if self.by_layer is None:
            return f" None of {len(self.profiles)} profiles of widths over the layers is nearer."
        return (
            f" Widths that differ from layer to layer are nearer, {self.by_layer.score:.3g}: {self.by_layer.profile}."
        )

    @property
    def time_in_words(self) -> str:
        """Where the time went."""
        parts = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.spent.items())
        untried = sum(1 for each in self.scored if not each.scores)
        rest = f" {untried} candidates were not tried." if untried else ""
        before = f" The shapes took {self.front.seconds:.0f} s before that."
        return f"{sum(self.spent.values()):.0f} s of {self.seconds:.0f} s: {parts}.{rest}{before}"

    def rows(self) -> list[tuple[str, ...]]:
        """Return the candidates as text after a header, with latency if it was asked for."""
        timed = "latency_ms" in self.front.limits
        header = (*HEADER[:2], *(("ms",) if timed else ()), *HEADER[2:])
        return [header, *(self._row(each, timed) for each in self.scored)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for what is not finite."""
        return {
            "limits": dict(self.front.limits),
            "teacher": dict(self.front.teacher),
            "round_to": self.front.space.step,
            "winner": dict(self.winner),
            "layers": self.config.layers,
            "order": {"gone": list(self.order.gone), "by": self.order.by} if self.order is not None else None,
            "profiles": [
                {"name": each.profile.name, "widths": dict(each.profile.widths), "score": each.score}
                for each in self.profiles
            ],
            "reason": self.reason,
            "measure": self.measure,
            "texts": list(self.texts),
            "held_out": self.held_out,
            "spent": {"the shapes": self.front.seconds, **self.spent},
            "candidates": [
                {
                    "shape": dict(each.candidate.shape),
                    "needs": dict(each.candidate.needs),
                    "scores": [score if isfinite(score) else None for score in each.scores],
                    "texts": list(each.texts),
                    "seconds": each.seconds,
                    "note": each.note,
                }
                for each in self.scored
            ],
        }

    def _row(self, scored: Scored, timed: bool) -> tuple[str, ...]:
        needs, scores = scored.candidate.needs, scored.scores
        told = " > ".join(f"{score:.3g}" for score in scores) or scored.note or "not tried"
        return (
            "winner" if scored is self.scored[0] else "",
            f"{needs['params']:,.0f}",
            *((f"{needs['latency_ms']:.2f}",) if timed else ()),
            told,
            str(scored.texts[-1]) if scores else "",
            f"{scored.seconds:.0f}",
            words_of(scored.candidate.shape),
        )
