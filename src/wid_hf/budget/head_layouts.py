"""How many heads of what width a student may have.

Takes a teacher's config, which `planning.sizes` reads; gives sizes for a request. Called by `shapes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig

from ..planning.sizes.heads import Heads

Manner = Literal["narrower", "fewer"]
MANNERS: tuple[Manner, ...] = ("narrower", "fewer")
GRAINS = (8, 4, 2, 1)  # what widths of heads are multiples of: kernels work in eights, rotary positions in pairs
PAIR = 2  # the least width of a head, if its width is not the hidden size's to decide


@dataclass(frozen=True)
class HeadLayouts:
    """The heads that students of one config may have.

    Attributes:
        heads: of the teacher, None where its config does not count them by one number.
    """

    heads: Heads | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> HeadLayouts:
        """Return those of a teacher's config."""
        return cls(Heads.of(config, {}))

    @property
    def is_free(self) -> bool:
        """Whether the config states the width of a head, so that heads do not follow from the hidden size."""
        return self.heads is not None and self.heads.stated is not None

    @property
    def grains(self) -> tuple[int, ...]:
        """What widths of heads other than the teacher's may be multiples of, the best first.

        Each leaves two widths or more up to the teacher's: multiples of 8 for heads that are 16 or wider.
        """
        width = self.heads.width if self.heads is not None else 1
        return tuple(grain for grain in GRAINS if 2 * grain <= width) or GRAINS[-1:]

    def sizes(self, hidden: int, share: float, manner: Manner, grain: int) -> dict[str, int] | None:
        """Return the sizes of heads for a hidden size, None if there are none.

        Args:
            hidden: the student's hidden size.
            share: of the teacher's heads; only where they are free.
            manner: whether heads become narrower or fewer. If they are not free, there are as many as possible, or as
                few as possible; none is wider than the teacher's.
            grain: what the width of a head is a multiple of, if it is not the teacher's; one of `grains`.
        """
        if self.heads is None:
            return {}
        if self.is_free:
            return self._free(self.heads, share, manner, grain)
        return self._bound(self.heads, hidden, manner, grain)

    def in_words(self, shapes: Iterable[Mapping[str, int]]) -> str:
        """Return how wide the heads of some shapes are; empty where the config does not count them."""
        if self.heads is None:
            return ""
        own = self.heads.width
        widths = {self._width(self.heads, shape) for shape in shapes} - {own}
        if not widths:
            return f"All heads are as wide as the teacher's, {own}."
        grain = next(grain for grain in GRAINS if not any(width % grain for width in widths))
        found = ", ".join(map(str, sorted(widths)))
        return f"Heads are as wide as the teacher's, {own}, or multiples of {grain} ({found})."

    def _width(self, heads: Heads, shape: Mapping[str, int]) -> int:
        if self.is_free:
            return shape.get("head_dim", heads.width)
        return shape.get("hidden_size", heads.hidden) // shape.get("num_attention_heads", heads.count)

    def _free(self, heads: Heads, share: float, manner: Manner, grain: int) -> dict[str, int] | None:
        groups, width = heads.groups, heads.width
        each = heads.count // groups if groups not in (None, 1) else 1
        count = heads.count // each
        if manner == "fewer":
            count = max(1, int(count * share + 1e-9))
        elif share < 1:
            width = int(width * share + 1e-9) // grain * grain
            if not width and grain > PAIR:
                return None
        found = {"num_attention_heads": count * each, "head_dim": width or PAIR}
        return found | ({"num_key_value_heads": count} if groups not in (None, 1) else {})

    def _bound(self, heads: Heads, hidden: int, manner: Manner, grain: int) -> dict[str, int] | None:
        each = heads.count // heads.groups if heads.groups not in (None, 1) else 1
        counts = [
            count
            for count in range(each, heads.count + 1, each)
            if hidden % count == 0 and (width := hidden // count) <= heads.width
            if width == heads.width or width % grain == 0
        ]
        if not counts:
            return None
        count = max(counts) if manner == "narrower" else min(counts)
        groups = {"num_key_value_heads": count // each} if heads.groups not in (None, 1) else {}
        return {"num_attention_heads": count} | groups
