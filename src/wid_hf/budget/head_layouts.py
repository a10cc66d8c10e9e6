"""How many heads of what width a student may have.

Takes a teacher's config, which `planning.sizes` reads; gives sizes for a request. Called by `shapes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig

from ..planning.sizes.heads import Heads

Manner = Literal["narrower", "fewer"]
MANNERS: tuple[Manner, ...] = ("narrower", "fewer")
EVEN = 2  # rotary positions need heads of even width


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

    def sizes(self, hidden: int, share: float, manner: Manner) -> dict[str, int] | None:
        """Return the sizes of heads for a hidden size, None if there are none.

        Args:
            hidden: the student's hidden size.
            share: of the teacher's heads; only where they are free.
            manner: whether heads become narrower or fewer. If they are not free, there are as many as possible, or as
                few as possible; none is wider than the teacher's.
        """
        if self.heads is None:
            return {}
        return self._free(self.heads, share, manner) if self.is_free else self._bound(self.heads, hidden, manner)

    def _free(self, heads: Heads, share: float, manner: Manner) -> dict[str, int]:
        groups, width = heads.groups, heads.width
        each = heads.count // groups if groups not in (None, 1) else 1
        count = heads.count // each
        if manner == "fewer":
            count = max(1, int(count * share + 1e-9))
        else:
            width = max(EVEN, int(width * share + 1e-9) // EVEN * EVEN) if share < 1 else width
        found = {"num_attention_heads": count * each, "head_dim": width}
        return found | ({"num_key_value_heads": count} if groups not in (None, 1) else {})

    def _bound(self, heads: Heads, hidden: int, manner: Manner) -> dict[str, int] | None:
        each = heads.count // heads.groups if heads.groups not in (None, 1) else 1
        counts = [
            count
            for count in range(each, heads.count + 1, each)
            if hidden % count == 0 and hidden // count <= heads.width
        ]
        if not counts:
            return None
        count = max(counts) if manner == "narrower" else min(counts)
        groups = {"num_key_value_heads": count // each} if heads.groups not in (None, 1) else {}
        return {"num_attention_heads": count} | groups
