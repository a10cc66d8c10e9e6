"""Taggers of tokens that find words confused with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from confusions import confused
from datasets import Dataset
from subject import SCORE_BATCH, Batch, TextSubject, to_device
from torch import Tensor
from torch.nn import functional
from transformers import DataCollatorWithPadding

from wid_hf.adapter.tuner import WidModel
from wid_hf.inputs import batches, tokenize
from wid_hf.objectives.divergences import softmax_divergence
from wid_hf.rows import load_texts
from wid_hf.scores.eval_mode import eval_mode
from wid_hf.training.imitation import Imitation

KEEP = 0  # the label of a word that is right


@dataclass(frozen=True)
class Tagger(TextSubject):
    """A tagger of errors in text, compared with its teacher on texts of which half of the words in `OTHERS` are wrong.

    On sound text it would say the same of nearly every token. Held out are the first texts of the file, training
    follows on them. `agreement` is of the most probable label over all tokens but padding, `agreement on edits` over
    those whose label in the teacher is another than `KEEP`, and `KL` is nats per token from the teacher's distribution.
    """

    figures: ClassVar[Mapping[str, str]] = {"agreement": ".2%", "agreement on edits": ".1%", "KL": ".4f"}
    objective: ClassVar[str | None] = "token-classification"

    @property
    def imitation(self) -> Imitation:
        """Of every token's scores."""
        return _divergence

    @property
    def collator(self) -> Any:
        """Pads, and nothing else."""
        return DataCollatorWithPadding(self.tokenizer)

    @cached_property
    def _tokens(self) -> Dataset:
        texts = load_texts(str(self.train), column=self.columns[0])["text"][
            : self.scored_texts + self.calibration_texts
        ]
        wrong = Dataset.from_dict({"text": [confused(text, seed) for seed, text in enumerate(texts)]})
        return tokenize(wrong, self.tokenizer, self.max_length).select_columns(["input_ids", "attention_mask"])

    @property
    def train_set(self) -> Dataset:
        """Texts to calibrate and train on."""
        return self._tokens.select(range(self.scored_texts, len(self._tokens)))

    @cached_property
    def _scored(self) -> list[Batch]:
        return list(batches(self._tokens.select(range(self.scored_texts)), self.collator, SCORE_BATCH))

    @cached_property
    def _wanted(self) -> Tensor:
        return self._log_probabilities(self.teacher())

    def _log_probabilities(self, model: Any) -> Tensor:
        """Return what the model says of every token of the scored texts, (tokens, labels)."""
        with eval_mode(model) as device:
            found = [
                model(**to_device(batch, device)).logits.cpu()[batch["attention_mask"].bool()] for batch in self._scored
            ]
        return torch.cat(found).log_softmax(-1)

    def score(self, model: Any) -> dict[str, float]:
        """Return how far a model says the same as its teacher."""
        wanted, found = self._wanted, self._log_probabilities(model)
        same = wanted.argmax(-1) == found.argmax(-1)
        return {
            "agreement": float(same.float().mean()),
            "agreement on edits": float(same[wanted.argmax(-1) != KEEP].float().mean()),
            "KL": float(functional.kl_div(found, wanted, log_target=True, reduction="batchmean")),
        }


def _divergence(wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
    attended = inputs["attention_mask"].bool()
    return softmax_divergence(student.logits[attended], teacher.logits[attended]).mean()
