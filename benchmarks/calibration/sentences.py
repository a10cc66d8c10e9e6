"""Sentence encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import pandas as pd
import torch
from subject import SCORE_BATCH, Batch, TextSubject, to_device
from torch import Tensor
from torch.nn import functional
from transformers import DataCollatorWithPadding

from wid_hf.adapter.merge import map_of
from wid_hf.adapter.turned import turn
from wid_hf.inputs import batches, tokenize
from wid_hf.rows import load_texts
from wid_hf.scores import cosine_correlation, embed
from wid_hf.scores.eval_mode import eval_mode
from wid_hf.training.imitation import Imitation
from wid_hf.training.losses.following import followed, following_loss

Mapped = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sentences(TextSubject):
    """A sentence encoder; its held-out texts are the pairs of an STS file, with people's `label`.

    `loss` is `following_loss` on the first 256 sentences of `validation`; it looks at what the student kept of the
    teacher's outputs, so it says little about students that kept something else; of a merged student nobody knows which
    coordinates these are, if it kept some. The other figures are from `held_out`:
    Spearman's rank correlation of cosines with labels, the mean cosine of a student's mean-pooled vector with its
    teacher's in the student's width, and the correlation of cosines with the teacher's, over the pairs of the file and
    over all pairs of its first sentences.
    """

    validation: Path = field(kw_only=True)

    figures: ClassVar[Mapping[str, str]] = {
        "loss": ".3f",
        "Spearman": ".2%",
        "cosine with teacher": ".3f",
        "correlation of cosines": ".3f",
        "over all pairs": ".3f",
    }
    objective: ClassVar[str | None] = "features"
    grid: ClassVar[tuple[tuple[float, float], ...]] = tuple(
        (compactors, 0.0) for compactors in (5e-5, 2e-4, 5e-4, 1e-3)
    )

    @property
    def imitation(self) -> Imitation:
        """Of hidden states and of the cosines between texts."""
        return followed

    @property
    def collator(self) -> Any:
        """Pads, and nothing else."""
        return DataCollatorWithPadding(self.tokenizer)

    def _batches(self, file: Path, column: str, count: int) -> list[Batch]:
        texts = load_texts(str(file), column=column)
        tokens = tokenize(texts.select(range(min(count, len(texts)))), self.tokenizer, self.max_length)
        return list(batches(tokens.select_columns(["input_ids", "attention_mask"]), self.collator, SCORE_BATCH))

    @cached_property
    def _pairs(self) -> tuple[list[Batch], list[Batch], pd.Series]:
        sides = [self._batches(self.held_out, column, self.scored_texts) for column in self.columns]
        labels = pd.read_json(self.held_out, lines=True)["label"][: self.scored_texts]
        return sides[0], sides[1], labels

    @cached_property
    def _wanted(self) -> tuple[Tensor, Tensor, list[tuple[Batch, Tensor]]]:
        """The teacher's vectors of both sentences of all pairs, and its hidden states for the loss."""
        teacher = self.teacher()
        with eval_mode(teacher):
            states = [
                (batch, teacher(**batch).last_hidden_state)
                for batch in self._batches(self.validation, self.columns[0], 256)
            ]
        return embed(teacher, self._pairs[0]), embed(teacher, self._pairs[1]), states

    def score(self, model: Any) -> dict[str, float]:
        """Return all figures; the teacher keeps every coordinate."""
        first, second, labels = self._pairs
        wanted, wanted_others, states = self._wanted
        mapped = model.base_model.map_outputs if hasattr(model, "peft_config") else of_stock(model)
        vectors, others = embed(model, first), embed(model, second)
        cosines = functional.cosine_similarity(vectors, others)
        wanted_cosines = functional.cosine_similarity(wanted, wanted_others)
        loss = cosine = float("nan")
        if mapped(wanted).shape == vectors.shape:
            loss = mean(self._losses(model, mapped, states))
            cosine = float(functional.cosine_similarity(vectors, mapped(wanted)).mean())
        return {
            "loss": loss,
            "Spearman": spearman(pd.Series(cosines.tolist()), labels),
            "cosine with teacher": cosine,
            "correlation of cosines": float(torch.corrcoef(torch.stack([cosines, wanted_cosines]))[0, 1]),
            "over all pairs": cosine_correlation(wanted, vectors),
        }

    def _losses(self, model: Any, mapped: Mapped, states: list[tuple[Batch, Tensor]]) -> list[float]:
        with eval_mode(model) as device:
            return [
                float(
                    following_loss(
                        model(**to_device(batch, device)).last_hidden_state.cpu(),
                        mapped(target),
                        target,
                        batch["attention_mask"],
                        cosine_weight=1.0,
                    )
                )
                for batch, target in states
            ]


def of_stock(model: Any) -> Mapped:
    """Return what makes a merged student's outputs of its teacher's; the teacher's stay as they are."""
    output_map = map_of(model)
    return (lambda outputs: outputs) if output_map is None else lambda outputs: turn(outputs, output_map)


def spearman(a: pd.Series, b: pd.Series) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, where ties share theirs."""
    return float(a.rank().corr(b.rank()))
