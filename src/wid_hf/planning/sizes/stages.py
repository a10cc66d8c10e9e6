"""Heads that are counted stage by stage (Swin, SegFormer), where each stage has a width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from .config_names import is_list, is_size, own_name, stated
from .meanings import Meaning, Way


class Stage(NamedTuple):
    """Heads of one stage, and the widths that decide how they change.

    If the widths of all stages are in proportion to one number, that number is used for each.
    """

    heads: int
    old: int
    new: int

    @property
    def fewer(self) -> int:
        """How many heads as wide as the teacher's fill the new width; 0 if it is not a multiple of theirs."""
        return 0 if self.heads * self.new % self.old else self.heads * self.new // self.old

    @property
    def most(self) -> int:
        """The largest number of heads, no wider than the teacher's, that divides the new width; 0 if there is none."""
        legal = (n for n in range(self.heads, 0, -1) if self.new % n == 0 and self.new * self.heads <= self.old * n)
        return next(legal, 0)


def stage_meanings(config: PretrainedConfig, requested: Mapping[str, Any]) -> Iterator[Meaning]:
    """Yield how heads that are counted stage by stage may change: fewer of them, or other numbers.

    Stages have a list of widths, or widths in proportion to one number (Swin).
    """
    counts = {name: list(n) for name, n in vars(config).items() if name.endswith("heads") and is_list(n)}
    for (name, size), (heads, each) in product(requested.items(), counts.items()):
        stages = _stages(config, name, size, each)
        if not stages:
            continue
        fewer, most = [stage.fewer for stage in stages], [stage.most for stage in stages]
        for way, found in ((Way.FEWER, fewer), (Way.OTHER_COUNT, most)):
            if all(found):
                yield Meaning({heads: found, **requested}, way, "head", (way,))


def _stages(config: PretrainedConfig, name: str, size: Any, heads: list[int]) -> list[Stage]:
    """Return the stages whose widths `name` states, none if it states something else."""
    old = stated(config, name)
    if is_list(size) and is_list(old) and len(size) == len(heads):
        return [Stage(*stage) for stage in zip(heads, old, size, strict=True)]
    if is_size(size) and is_size(old) and name in {own_name(config, "hidden_size"), "embed_dim"}:
        return [Stage(n, old, size) for n in heads]
    return []
