"""Every meaning of a `WidConfig` for a teacher's config, the best first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import product
from typing import Any

from transformers import PretrainedConfig

from ...config import HeadStrategy, WidConfig
from ...errors import ConfigError, PlanError
from .changes import changes_in_words, moved_sizes
from .config_names import Sizes, is_part
from .following import expanded_heads, following_widths
from .heads import Heads, IndivisibleError
from .meanings import Meaning, Strategy, Way, together
from .problems import refusal, size_problems
from .stages import stage_meanings
from .student_config import complete_sizes, with_sizes

MOST = 48  # meanings of one request that are tried; composite models multiply those of their parts
COMBINED = 4096  # at most so many combinations of the meanings of parts are made and sorted


class Request:
    """A `WidConfig` together with the teacher's config, and all that it may mean.

    Attributes:
        meanings: the best first; at least one.
        closed: ways to change heads that are impossible for any model, with the reason.

    Args:
        teacher: the config of the teacher.
        config: the request.
        is_smaller: whether the teacher has fewer layers or tokens already, so that all sizes may be its own.

    Raises:
        ConfigError: lists every illegal name and size.
    """

    def __init__(self, teacher: PretrainedConfig, config: WidConfig, *, is_smaller: bool = False) -> None:
        self.teacher, self.config = teacher, config
        problems = size_problems(teacher, config.sizes, may_be_equal=is_smaller)
        if problems:
            raise ConfigError(refusal(teacher, problems))
        self.closed: dict[Way, str] = {}
        self.meanings = _meanings(teacher, config.sizes, config.head_strategy, self.closed)
        if not self.meanings:
            raise ConfigError(refusal(teacher, dict.fromkeys(self.closed.values())))

    def configs(self) -> Iterator[tuple[Meaning, PretrainedConfig | PlanError]]:
        """Yield the student's config for each meaning, without those that equal an earlier one.

        If the config's own class refuses the sizes, yield that refusal in its place.
        """
        seen: list[dict[str, Any]] = []
        for meaning in self.meanings:
            try:
                config = with_sizes(self.teacher, meaning.sizes)
                stated = config.to_dict()
            except Exception as cause:  # each class checks its entries and raises other errors
                yield meaning, PlanError(f"- the config itself refuses these sizes: {cause}")
                continue
            if stated not in seen:
                seen.append(stated)
                yield meaning, config

    def pinned(self, meaning: Meaning, student: PretrainedConfig) -> Sizes:
        """Return all sizes that were requested or could have followed, as `student` has them.

        A request with these sizes leaves nothing open: it means the same student in every later version.
        """
        return complete_sizes(self.teacher, student, meaning.sizes, [other.sizes for other in self.meanings])

    def moved(self, meaning: Meaning) -> list[str]:
        """Return the sizes of `meaning` that are not those requested, as `hidden_size=32 instead of 31`."""
        return moved_sizes(self.config.sizes, meaning.sizes)

    def other_sizes(self) -> list[str]:
        """Return the hidden sizes that are tried in place of those requested, the nearest first."""
        others = [self.moved(meaning) for meaning in self.meanings if meaning.way is Way.NEAREST_SIZE]
        return list(dict.fromkeys(text.partition(" instead")[0] for moved in others for text in moved))

    def changes(self, meaning: Meaning, student: PretrainedConfig) -> list[str]:
        """Return in words how heads change, and which other sizes follow from those requested."""
        return changes_in_words(self.teacher, student, self.config.sizes, meaning.sizes)


def _meanings(
    config: PretrainedConfig,
    requested: Mapping[str, Any],
    strategy: HeadStrategy,
    closed: dict[Way, str],
    prefix: str = "",
) -> list[Meaning]:
    """Return what `requested` may mean together with the sizes that follow from it, parts of `config` included."""
    parts = {name: sizes for name, sizes in requested.items() if is_part(name, sizes)}
    inside = [
        _meanings(getattr(config, name), sizes, strategy, closed, f"{prefix}{name}.") for name, sizes in parts.items()
    ]
    own = [
        meaning
        for heads in _meanings_of_heads(config, requested, strategy, closed, prefix)
        for meaning in _with_following_sizes(config, requested, heads, strategy)
    ]
    if parts:
        most = int(COMBINED ** (1 / (1 + len(parts))))
        combined = product(own[:most], *(one[:most] for one in inside))
        own = [together(one, parts, chosen) for one, *chosen in combined]
    return sorted(own, key=lambda meaning: meaning.preference)[:MOST]


def _with_following_sizes(
    config: PretrainedConfig, requested: Mapping[str, Any], meaning: Meaning, strategy: HeadStrategy
) -> Iterator[Meaning]:
    """Yield `meaning` with each set of other sizes that may follow; the first set is usually empty."""
    own = {name: meaning.sizes[name] for name in requested}
    for widths in following_widths(config, own):
        for heads in expanded_heads(config, own, meaning.strategy or strategy):
            yield Meaning({**widths, **heads, **meaning.sizes}, meaning.way, meaning.strategy, meaning.ways)


def _meanings_of_heads(
    config: PretrainedConfig, requested: Mapping[str, Any], strategy: HeadStrategy, closed: dict[Way, str], prefix: str
) -> list[Meaning]:
    """Return how the heads of one config may change, without its parts.

    Raises:
        ConfigError: an explicit strategy whose sizes do not divide; names the nearest that do.
    """
    heads = Heads.of(config, requested)
    if heads is None:
        return [Meaning(dict(requested)), *(stage_meanings(config, requested) if strategy == "auto" else [])]
    if strategy != "auto":
        return _by_strategy(heads, strategy, prefix)
    found = [*_at_the_size(heads, closed, prefix), *_at_nearest_sizes(heads)]
    sizes = [meaning.sizes for meaning in found]
    return [meaning for at, meaning in enumerate(found) if meaning.sizes not in sizes[:at]]


def _by_strategy(heads: Heads, strategy: Strategy, prefix: str) -> list[Meaning]:
    try:
        return [heads.meaning(one, Way.NARROWER, strategy) for one in heads.by(strategy)]
    except IndivisibleError as problem:
        raise ConfigError(refusal(heads.config, [f"{prefix}{problem}"])) from None


def _at_the_size(heads: Heads, closed: dict[Way, str], prefix: str) -> Iterator[Meaning]:
    """Yield all ways for the hidden size requested; what does not divide goes to `closed`."""
    for way in list(Way)[:-1]:
        try:
            yield from [heads.meaning(one, way) for one in heads.layouts(way)]
        except IndivisibleError as problem:
            closed.setdefault(way, f"{prefix}{problem}")


def _at_nearest_sizes(heads: Heads) -> Iterator[Meaning]:
    for size in heads.nearest_sizes():
        other = heads.at(size)
        for way in list(Way)[:-1]:
            with suppress(IndivisibleError):
                yield from [other.meaning(one, Way.NEAREST_SIZE) for one in other.layouts(way)]
