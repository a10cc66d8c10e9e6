"""Perplexity of a decoder on texts, each on its own.

Takes a causal language model and batches of tokens; gives a PerplexityScore. Called by the task `perplexity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError
from ..progress_bar import progress_bar
from .eval_mode import eval_mode

MOST = 700.0  # nats; exp of more is not a finite float


@dataclass(frozen=True)
class PerplexityScore:
    """Mean `loss` (nats) over `tokens` tokens, and `perplexity = exp(loss)`.

    `predictions` has the most probable next token at every position but padding, on the CPU.
    """

    loss: float
    perplexity: float
    tokens: int
    predictions: Tensor = field(repr=False, compare=False)


def perplexity_score(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> PerplexityScore:
    """Score `model` on batches with input_ids and attention_mask, both `(b, s)`.

    Every token but the first of each text counts once, so the figure does not depend on how texts are batched.
    Raises DataError when no text has two tokens.
    """
    loss, tokens, predictions = 0.0, 0, []
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Scoring"):
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            mask = inputs["attention_mask"].bool()
            predicted = mask[:, 1:] & mask[:, :-1]  # padding may be on either side
            everywhere = model(**inputs, use_cache=False).logits
            predictions.append(everywhere.argmax(-1)[mask].cpu())
            logits = everywhere[:, :-1][predicted].float()  # (m, v)
            loss += functional.cross_entropy(logits, inputs["input_ids"][:, 1:][predicted], reduction="sum").item()
            tokens += len(logits)
    if not tokens:
        raise DataError("no text has two tokens or more, so nothing is predicted. Give longer texts.")
    return PerplexityScore(loss / tokens, exp(min(loss / tokens, MOST)), tokens, torch.cat(predictions))
