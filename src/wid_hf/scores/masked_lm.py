"""Masked-language-model loss and accuracy on positions that are masked once for all models.

Takes a tokenized dataset (`tokens.tokenize`), then a model with a masked-LM head; gives a MaskedLMScore.
Called by `compress` and the task `masked-lm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from ..errors import DataError
from ..inputs import batches as batches_of
from ..progress_bar import progress_bar
from ..training.labelled_positions import NO_LABEL, LabelledPositions
from .eval_mode import eval_mode


@dataclass(frozen=True)
class MaskedLMScore:
    """Mean `loss` (nats) and `accuracy` (share right, 0 to 1) over `tokens` masked positions.

    `predictions` has the most probable token at each of them, on the CPU.
    """

    loss: float
    accuracy: float
    tokens: int
    predictions: Tensor = field(repr=False, compare=False)


def masked_batches(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int, seed: int
) -> list[dict[str, Tensor]]:
    """Padded batches with 15 % of the tokens masked, to be scored by any number of models.

    Each holds input_ids, attention_mask and labels, all `(b, s)`; labels are -100 where nothing is predicted.
    The same seed and batch size mask the same positions; torch's global generator is not used.
    Raises DataError when the tokenizer has no mask token or no position was masked.
    """
    if tokenizer.mask_token is None:
        raise DataError(
            f"the {type(tokenizer).__name__} has no mask token, so nothing can be masked. "
            "A masked-LM score needs the tokenizer of a masked language model: load that one."
        )
    collator = DataCollatorForLanguageModeling(tokenizer, seed=seed)
    masked = list(batches_of(dataset, collator, batch_size))
    if not any((batch["labels"] != NO_LABEL).any() for batch in masked):
        raise DataError(
            f"none of the tokens of {len(dataset)} texts was masked (15 % are, at random). "
            "Legal: at least one. Give more or longer texts."
        )
    return masked


def masked_lm_score(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> MaskedLMScore:
    """Score `model` on `masked_batches`: `loss = sum over masked of -log p(token) / number masked`.

    The mean is over tokens, so it does not depend on how they are batched. The model is measured in eval
    mode, which is undone. Its head runs on masked positions only, if the model allows that.
    """
    loss, right, predictions, positions = 0.0, 0, [], LabelledPositions(model, shifts=False)
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Scoring"):
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            labels = batch["labels"].to(device)
            masked = labels != NO_LABEL
            if not masked.any():
                continue
            with positions.only({**inputs, "labels": labels}, together=True) as only_masked:
                logits = model(**inputs).logits
            logits = (logits[0] if only_masked else logits[masked]).float()  # (m, v)
            expected = labels[masked]  # (m,)
            loss += functional.cross_entropy(logits, expected, reduction="sum").item()
            predicted = logits.argmax(-1)
            right += int((predicted == expected).sum())
            predictions.append(predicted.cpu())
    found = torch.cat(predictions)
    return MaskedLMScore(loss / len(found), right / len(found), len(found), found)
