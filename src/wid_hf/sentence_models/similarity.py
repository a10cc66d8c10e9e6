"""How alike texts are by their vectors: all pairs, by each function of sentence-transformers.

Pure functions of vectors `(n, m)`; each gives `(n, n)`, larger for what is more alike. Called by the loss and the
scores of sentence vectors, by the name in a model's settings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosines of all pairs of rows, `(n, n)`."""
    unit = functional.normalize(vectors, dim=1)
    return unit @ unit.T


def _dots(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


def _distances(vectors: Tensor) -> Tensor:
    return -torch.cdist(vectors, vectors)


def _city_block(vectors: Tensor) -> Tensor:
    return -torch.cdist(vectors, vectors, p=1)


SIMILARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": cosines,
    "dot": _dots,
    "euclidean": _distances,
    "manhattan": _city_block,
}


def of_pairs(similarities: Tensor) -> Tensor:
    """Return the entries `(pairs,)` of a matrix `(n, n)` above its diagonal: each pair of texts once."""
    n = len(similarities)
    return similarities[torch.triu_indices(n, n, offset=1, device=similarities.device).unbind()]
