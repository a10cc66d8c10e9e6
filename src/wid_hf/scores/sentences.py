"""How well a student's vectors of texts, images or sounds keep the geometry of its teacher's.

Takes encoders and batches, or two sets of vectors whose widths may differ; gives correlation of pairwise
cosines and agreement of nearest neighbours. Called by `compress` and the task `stsb-zero-shot`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arithmetic import in_float64
from ..errors import DataError, TeacherError
from ..progress_bar import progress_bar
from ..sentence_models.pooling import mean_pool
from ..sentence_models.similarity import cosines, of_pairs
from ..training.losses.counting import attended_positions
from .eval_mode import eval_mode

NO_INPUTS = frozenset({"labels", "special_tokens_mask"})
Similarity = Callable[[Tensor], Tensor]  # of vectors (n, m): (n, n), larger for what is more alike
FEWEST_TEXTS = 3  # two texts have one cosine, and one number has no correlation


@dataclass(frozen=True)
class SentenceScore:
    """Agreement of two encoders on `texts` texts; 1.0 is the most for both figures."""

    cosine_correlation: float
    top1_agreement: float
    texts: int


def embed(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], pool: Callable[[Tensor, Tensor], Tensor] = mean_pool
) -> Tensor:
    """Vectors `(n, m)`, float32 on the CPU, of all n texts, images or sounds in `batches`.

    `model` must return `last_hidden_state (b, s, h)`, else TeacherError; it is run in eval mode, which is undone.
    `pool` makes vectors `(b, m)` of last hidden states and attention masks `(b, s)`.
    """
    vectors = []
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Embedding"):
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name not in NO_INPUTS}
            states = getattr(model(**inputs), "last_hidden_state", None)
            if states is None or states.ndim != 3:
                raise TeacherError(
                    f"{type(model).__name__} returns no last_hidden_state of (rows, positions, width), which vectors "
                    "are made of. A transformer without a task head does: give its `base_model`."
                )
            vectors.append(pool(states, attended_positions(model, states, inputs).long()).cpu())
    return torch.cat(vectors)


def similarity_correlation(a: Tensor, b: Tensor, similarity: Similarity = cosines) -> float:
    """Pearson correlation between the similarities of all pairs of texts in two sets of vectors.

    `a` is `(n, h_a)`, `b` is `(n, h_b)` with n >= 3, else DataError. NaN where a set's similarities are all equal.
    """
    _check_same_texts(a, b)
    return torch.corrcoef(torch.stack([of_pairs(similarity(in_float64(vectors))) for vectors in (a, b)]))[0, 1].item()


def cosine_correlation(a: Tensor, b: Tensor) -> float:
    """Return `similarity_correlation` of cosines."""
    return similarity_correlation(a, b)


def retrieval_agreement(a: Tensor, b: Tensor, similarity: Similarity = cosines) -> float:
    """Share of texts whose most similar other text is the same in `a` `(n, h_a)` and `b` `(n, h_b)`.

    n must be 3 or more, else DataError: with two texts every pair of encoders agrees.
    """
    _check_same_texts(a, b)
    nearest = [similarity(in_float64(vectors)).fill_diagonal_(-torch.inf).argmax(1) for vectors in (a, b)]
    return in_float64(nearest[0] == nearest[1]).mean().item()


def sentence_score(teacher_vectors: Tensor, student_vectors: Tensor) -> SentenceScore:
    """Both figures for teacher vectors `(n, d)` and student vectors `(n, k)` of the same n texts."""
    return SentenceScore(
        cosine_correlation(teacher_vectors, student_vectors),
        retrieval_agreement(teacher_vectors, student_vectors),
        len(teacher_vectors),
    )


def _check_same_texts(a: Tensor, b: Tensor) -> None:
    if len(a) != len(b) or len(a) < FEWEST_TEXTS:
        raise DataError(
            f"vectors of {len(a)} and of {len(b)} texts cannot be compared. Legal: the same texts on both "
            f"sides, at least {FEWEST_TEXTS}. Embed the same batches with both models."
        )
