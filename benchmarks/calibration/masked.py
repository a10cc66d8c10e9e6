"""Masked language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from subject import SCORE_BATCH, Batch, TextSubject
from transformers import DataCollatorForLanguageModeling

from wid_hf.inputs import tokenize
from wid_hf.rows import load_texts
from wid_hf.scores import masked_batches, masked_lm_score


@dataclass(frozen=True)
class Masked(TextSubject):
    """A masked language model; its figures are the loss (nats) and accuracy on held-out texts."""

    figures: ClassVar[Mapping[str, str]] = {"loss": ".3f", "accuracy": ".1%"}
    objective: ClassVar[str | None] = "masked-lm"
    grid: ClassVar[tuple[tuple[float, float], ...]] = tuple(
        (compactors, teacher) for compactors in (1e-4, 3e-4, 1e-3) for teacher in (1e-5, 1e-4, 3e-4)
    )

    @property
    def collator(self) -> Any:
        """Masks 15 % of the tokens, as calibration and training see them."""
        return DataCollatorForLanguageModeling(self.tokenizer)

    @cached_property
    def _scored(self) -> list[Batch]:
        texts = load_texts(str(self.held_out), column=self.columns[0])
        texts = texts.select(range(min(self.scored_texts, len(texts))))
        return masked_batches(tokenize(texts, self.tokenizer, self.max_length), self.tokenizer, SCORE_BATCH, seed=0)

    def score(self, model: Any) -> dict[str, float]:
        """Return loss and accuracy on positions masked once for all models."""
        found = masked_lm_score(model, self._scored)
        return {"loss": found.loss, "accuracy": found.accuracy}
