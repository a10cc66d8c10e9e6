"""How good a model is on batches: scores of language models and of sentence vectors.

Takes models and batches; gives frozen dataclasses of plain numbers. Called by objectives and tools.
"""

from __future__ import annotations

from .masked_lm import MaskedLMScore, masked_batches, masked_lm_score
from .perplexity import PerplexityScore, perplexity_score, target_score
from .sentences import (
    SentenceScore,
    cosine_correlation,
    embed,
    retrieval_agreement,
    sentence_score,
    similarity_correlation,
)

__all__ = [
    "MaskedLMScore",
    "PerplexityScore",
    "SentenceScore",
    "cosine_correlation",
    "embed",
    "masked_batches",
    "masked_lm_score",
    "perplexity_score",
    "retrieval_agreement",
    "sentence_score",
    "similarity_correlation",
    "target_score",
]
