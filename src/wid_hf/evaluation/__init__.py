"""How good and how large a model is: scores of language models and sentences, sizes, latency; in `tasks`, tasks.

Takes models and batches; gives frozen dataclasses of plain numbers. Called by the trainer, the report
and the commands.
"""

from __future__ import annotations

from wid_hf.evaluation.masked_lm import MaskedLMScore, masked_batches, masked_lm_score
from wid_hf.evaluation.perplexity import PerplexityScore, perplexity_score
from wid_hf.evaluation.sentences import (
    SentenceScore,
    cosine_correlation,
    embed,
    mean_pool,
    retrieval_agreement,
    sentence_score,
)
from wid_hf.evaluation.sizes import ModelSize, latency, model_size

__all__ = [
    "MaskedLMScore",
    "ModelSize",
    "PerplexityScore",
    "SentenceScore",
    "cosine_correlation",
    "embed",
    "latency",
    "masked_batches",
    "masked_lm_score",
    "mean_pool",
    "model_size",
    "perplexity_score",
    "retrieval_agreement",
    "sentence_score",
]
