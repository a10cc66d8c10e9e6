"""Causal language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp
from typing import Any, ClassVar

from datasets import Dataset
from subject import TextSubject
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling

from wid_hf.inputs import batches
from wid_hf.rows import load_texts
from wid_hf.scores.eval_mode import eval_mode


@dataclass(frozen=True)
class Decoder(TextSubject):
    """A causal language model on the beginnings of texts, all `max_length` tokens long.

    Calibration sees other texts of the same file than the score. `loss` is in nats per token.
    """

    figures: ClassVar[Mapping[str, str]] = {"loss": ".3f", "perplexity": ",.1f"}

    @property
    def collator(self) -> Any:
        """Stacks texts of one length."""
        return DataCollatorForLanguageModeling(self.tokenizer, mlm=False)

    @cached_property
    def _beginnings(self) -> Dataset:
        """As many as are scored, then as many as are calibrated on."""
        count, found = self.scored_texts + self.calibration_texts, []
        for text in load_texts(str(self.train), column=self.columns[0])["text"]:
            row = self.tokenizer(text, truncation=True, max_length=self.max_length)
            if len(row["input_ids"]) == self.max_length:
                found.append(dict(row))
            if len(found) == count:
                return Dataset.from_list(found)
        raise ValueError(f"{self.train} holds {len(found)} texts of {self.max_length} tokens or more, not {count}.")

    @property
    def train_set(self) -> Dataset:
        """Beginnings to calibrate on."""
        return self._beginnings.select(range(self.scored_texts, len(self._beginnings)))

    def score(self, model: Any) -> dict[str, float]:
        """Return loss and perplexity over all tokens but the first of each text."""
        total, tokens = 0.0, 0
        with eval_mode(model) as device:
            for batch in batches(self._beginnings.select(range(self.scored_texts)), self.collator, 8):
                ids = batch["input_ids"].to(device)
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
                wanted = ids[:, 1:].flatten()
                total += functional.cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="sum").item()
                tokens += len(wanted)
        return {"loss": total / tokens, "perplexity": exp(total / tokens)}
