"""Perplexity of a decoder on texts, each on its own, and of an encoder-decoder on targets.

Takes a model and batches of tokens; gives a PerplexityScore. Called by objectives and the task `perplexity`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError
from ..progress_bar import progress_bar
from ..training.labelled_positions import NO_LABEL
from .eval_mode import eval_mode

Predicted = tuple[Tensor, Tensor, Tensor]
MOST = 700.0  # nats; exp of more is not a finite float


@dataclass(frozen=True)
class PerplexityScore:
    """Mean `loss` (nats) over `tokens` tokens, and `perplexity = exp(loss)`.

    `predictions` has the most probable next token at every position but padding, of targets
    at every label, on the CPU.
    """

    loss: float
    perplexity: float
    tokens: int
    predictions: Tensor = field(repr=False, compare=False)


def perplexity_score(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> PerplexityScore:
    """Score a decoder on batches with input_ids and attention_mask, both `(b, s)`.

    Every token but the first of each text counts once, so the figure does not depend on how texts are batched.
    Raises DataError when no text has two tokens.
    """

    def of_batch(batch: dict[str, Tensor]) -> Predicted:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask = inputs["attention_mask"].bool()
        predicted = mask[:, 1:] & mask[:, :-1]  # padding may be on either side
        logits = model(**inputs, use_cache=False).logits
        return logits[:, :-1][predicted], inputs["input_ids"][:, 1:][predicted], logits.argmax(-1)[mask]

    return _summed(model, batches, of_batch)


def target_score(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> PerplexityScore:
    """Score an encoder-decoder on batches with the inputs of both and labels `(b, t)`, each of which counts once.

    Raises DataError when there is no label.
    """

    def of_batch(batch: dict[str, Tensor]) -> Predicted:
        labels = batch.pop("labels")
        counted = labels != NO_LABEL
        logits = model(**batch, use_cache=False).logits[counted]
        return logits, labels[counted], logits.argmax(-1)

    return _summed(model, batches, of_batch)


def _summed(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], of_batch: Callable[[dict[str, Tensor]], Predicted]
) -> PerplexityScore:
    """Return the score of all batches, each on the model's device.

    Args:
        model: is measured in eval mode, which is undone.
        batches: of tensors.
        of_batch: gives logits `(m, v)`, the tokens that they predict `(m,)`, and the predictions to be kept.
    """
    loss, tokens, predictions = 0.0, 0, []
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Scoring"):
            logits, right, predicted = of_batch({name: tensor.to(device) for name, tensor in batch.items()})
            predictions.append(predicted.cpu())
            loss += functional.cross_entropy(logits.float(), right, reduction="sum").item()
            tokens += len(right)
    if not tokens:
        raise DataError("no text has two tokens or more, so nothing is predicted. Give longer texts.")
    return PerplexityScore(loss / tokens, exp(min(loss / tokens, MOST)), tokens, torch.cat(predictions))
