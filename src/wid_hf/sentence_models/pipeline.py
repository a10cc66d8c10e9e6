"""What stands behind the transformer of a sentence-transformers model, as a function of its last hidden states.

Takes the modules that `read_pipeline` found; gives vectors of texts, and the pipeline of a student. Called by the
objective of sentence vectors, and when a student is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .modules import Dense, Normalize, Pooling, SentenceModule
from .settings import SentenceSettings


@dataclass(frozen=True, eq=False)
class SentencePipeline:
    """Pooling, then dense layers and normalisation in any order.

    Attributes:
        entries: of modules.json, from the transformer on.
        settings: how texts are read and vectors compared.
        pooling: None for models whose vectors are not made here, such as a `CrossEncoder`.
        rest: the modules behind it.
    """

    entries: Sequence[Mapping[str, Any]]
    settings: SentenceSettings
    pooling: Pooling | None = None
    rest: Sequence[Dense | Normalize] = ()

    def vectors(self, last_hidden_state: Tensor, attention_mask: Tensor, prompt_length: int = 0) -> Tensor:
        """Return the vectors of texts `(b, m)`, in float32.

        Args:
            last_hidden_state: `(b, s, h)`.
            attention_mask: `(b, s)`, 0 at padding.
            prompt_length: tokens of the prompt before each text, which do not count if the pooling says so.
        """
        assert self.pooling is not None, "the caller asks `pooling` before"
        if prompt_length and not self.pooling.include_prompt:
            attention_mask = without_first(attention_mask, prompt_length)
        vectors = self.pooling(last_hidden_state, attention_mask)
        for module in self.rest:
            vectors = module(vectors)
        return vectors

    @property
    def modules(self) -> list[SentenceModule]:
        """All modules behind the transformer, in the order of `entries`."""
        return [*filter(None, [self.pooling]), *self.rest]

    @property
    def turns(self) -> bool:
        """Whether vectors turn with the hidden states, so that a student's may be turned."""
        return self.pooling is None or self.pooling.is_linear

    @property
    def has_weights(self) -> bool:
        """Whether there is a dense layer, so that vectors of teacher and student have the same coordinates."""
        return any(isinstance(module, Dense) for module in self.rest)

    def mapped(self, vectors: Tensor, output_map: Tensor | None) -> Tensor:
        """Return vectors of the teacher `(b, m)` as a student has them, who may have fewer coordinates.

        Args:
            vectors: the result of `vectors`.
            output_map: `(h, k)` from the teacher's last hidden states to the student's; None if they are as wide.
        """
        if output_map is None or self.has_weights:
            return vectors
        vectors = (vectors.unflatten(1, (-1, len(output_map))) @ output_map.to(vectors)).flatten(1)
        for module in self.rest:  # length 1, if the teacher's have it
            vectors = module(vectors)
        return vectors

    def narrowed(self, width: int, output_map: Tensor | None) -> SentencePipeline:
        """Return the pipeline of a student; the vectors behind a dense layer stay in the teacher's space.

        Args:
            width: of the student's last hidden states.
            output_map: `(h, width)` from the teacher's last hidden states to the student's, as
                `WidModel.output_map` is; None if they are as wide as the teacher's, or nobody knows.

        Raises:
            WidError: the pipeline has a dense layer for another width, and there is no map.
        """
        if self.pooling is None:
            return self
        pooling, rest = self.pooling.narrowed(width), list(self.rest)
        for at, module in enumerate(rest):
            if isinstance(module, Dense):
                rest[at] = module.narrowed(width * len(pooling.modes), output_map)
                break  # those behind it stay in its space
        return replace(self, pooling=pooling, rest=tuple(rest))


def without_first(mask: Tensor, count: int) -> Tensor:
    """Return an attention mask `(b, s)` without the first `count` positions of each text, wherever padding stands."""
    return mask * (mask.cumsum(1) > count)
