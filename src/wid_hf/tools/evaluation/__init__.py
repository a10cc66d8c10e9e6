"""How good and how fast a model is: scores of language models and sentences, latency; in `tasks`, tasks.

Takes models and batches; gives frozen dataclasses of plain numbers. Called by `compress`, `evaluate` and reports.
"""

from __future__ import annotations

from .latency import latency
from .masked_lm import MaskedLMScore, masked_batches, masked_lm_score
from .perplexity import PerplexityScore, perplexity_score
from .sentences import (
    SentenceScore,
    cosine_correlation,
    embed,
    retrieval_agreement,
    sentence_score,
)

__all__ = [
    "MaskedLMScore",
    "PerplexityScore",
    "SentenceScore",
    "cosine_correlation",
    "embed",
    "latency",
    "masked_batches",
    "masked_lm_score",
    "perplexity_score",
    "retrieval_agreement",
    "sentence_score",
]
