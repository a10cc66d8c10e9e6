"""The teachers that are measured, each with the data that its students start from, train on and are scored on.

Takes folders of teachers and texts; gives models, calibration batches, trainers and figures. No figure is from texts
that a student was calibrated or trained on.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import exp
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from store import ROOT
from torch import Tensor
from torch.nn import functional
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wid_hf.tools.data import batches, load_texts, tokenize
from wid_hf.tools.evaluation import cosine_correlation, embed, masked_batches, masked_lm_score
from wid_hf.tools.evaluation.eval_mode import eval_mode
from wid_hf.tools.teachers import load_teacher, load_tokenizer
from wid_hf.training.following_trainer import FollowingTrainer
from wid_hf.training.losses.following import following_loss
from wid_hf.training.trainer import WidTrainer

TEACHERS = Path(os.environ.get("WID_HF_TEACHERS", ROOT / ".cache" / "teachers"))
DATA = Path(os.environ.get("WID_HF_DATA", ROOT.parent / "shared" / "data"))
SCORE_BATCH = 32
CALIBRATION_BATCH = 32

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Subject(ABC):
    """A teacher with its data.

    Attributes:
        name: what tables call it.
        folder: the teacher with its tokenizer.
        sizes: the students asked for, by the name of their width.
        train: files of texts to calibrate and train on.
        columns: which columns of them hold texts.
        held_out: file to score on.
        calibration_texts: how many texts a calibration sees.
        scored_texts: how many held-out texts (or pairs) are scored.
        max_length: tokens per text.
    """

    name: str
    folder: Path
    sizes: Mapping[str, Mapping[str, Any]]
    train: Path
    columns: tuple[str, ...]
    held_out: Path
    calibration_texts: int
    scored_texts: int
    max_length: int

    figures: ClassVar[Mapping[str, str]]  # what `score` gives, with how a table writes it
    trainer: ClassVar[type[WidTrainer] | None] = None
    objective: ClassVar[str | None] = None  # of `wid-hf compress`, which knows learning rates for it
    grid: ClassVar[tuple[tuple[float, float], ...]] = ()  # the same, for the sweep

    def teacher(self) -> PreTrainedModel:
        """Return the teacher, loaded anew: training may change its weights."""
        return load_teacher(str(self.folder))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer."""
        return load_tokenizer(str(self.folder))

    @cached_property
    def train_set(self) -> Dataset:
        """Tokens of all training texts."""
        parts = [load_texts(str(self.train), column=column) for column in self.columns]
        return tokenize(concatenate_datasets(parts), self.tokenizer, self.max_length)

    @property
    @abstractmethod
    def collator(self) -> Any:
        """What puts texts together as training sees them."""

    def calibration(self, seed: int) -> list[Batch]:
        """Return batches of `calibration_texts` texts as training would see them."""
        texts = self.train_set.shuffle(seed=seed).select(range(min(self.calibration_texts, len(self.train_set))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = list(batches(texts, self.collator, CALIBRATION_BATCH))
        return [{name: t for name, t in batch.items() if name != "special_tokens_mask"} for batch in made]

    @abstractmethod
    def score(self, model: Any) -> dict[str, float]:
        """Return `figures` of a teacher or wid model on held-out texts."""


@dataclass(frozen=True)
class Masked(Subject):
    """A masked language model; its figures are the loss (nats) and accuracy on held-out texts."""

    figures: ClassVar[Mapping[str, str]] = {"loss": ".3f", "accuracy": ".1%"}
    trainer: ClassVar[type[WidTrainer] | None] = WidTrainer
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


@dataclass(frozen=True)
class Sentences(Subject):
    """A sentence encoder; its held-out texts are the pairs of an STS file, with people's `label`.

    `loss` is `following_loss` on the first 256 sentences of `validation`; it looks at what the student kept of the
    teacher's outputs, so it says little about students that kept something else. The other figures are from
    `held_out`: Spearman's rank correlation of cosines with labels, the mean cosine of a student's mean-pooled vector
    with its teacher's in the student's width, and how all pairs' cosines correlate with the teacher's.
    """

    validation: Path = field(kw_only=True)

    figures: ClassVar[Mapping[str, str]] = {
        "loss": ".3f",
        "Spearman": ".2%",
        "cosine with teacher": ".3f",
        "correlation of cosines": ".3f",
    }
    trainer: ClassVar[type[WidTrainer] | None] = FollowingTrainer
    objective: ClassVar[str | None] = "following"
    grid: ClassVar[tuple[tuple[float, float], ...]] = tuple(
        (compactors, 0.0) for compactors in (5e-5, 2e-4, 5e-4, 1e-3)
    )

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
    def _wanted(self) -> tuple[Tensor, list[tuple[Batch, Tensor]]]:
        """The teacher's vectors of the first sentences of all pairs, and its hidden states for the loss."""
        teacher = self.teacher()
        with eval_mode(teacher):
            states = [
                (batch, teacher(**batch).last_hidden_state)
                for batch in self._batches(self.validation, self.columns[0], 256)
            ]
        return embed(teacher, self._pairs[0]), states

    def score(self, model: Any) -> dict[str, float]:
        """Return all figures; the teacher keeps every coordinate."""
        first, second, labels = self._pairs
        wanted, states = self._wanted
        mapped = model.base_model.map_outputs if hasattr(model, "peft_config") else lambda outputs: outputs
        vectors, others = embed(model, first), embed(model, second)
        cosines = pd.Series(functional.cosine_similarity(vectors, others).tolist())
        with eval_mode(model) as device:
            losses = [
                float(
                    following_loss(
                        model(**_to(batch, device)).last_hidden_state.cpu(),
                        mapped(target),
                        target,
                        batch["attention_mask"],
                        cosine_weight=1.0,
                    )
                )
                for batch, target in states
            ]
        return {
            "loss": sum(losses) / len(losses),
            "Spearman": spearman(cosines, labels),
            "cosine with teacher": float(functional.cosine_similarity(vectors, mapped(wanted)).mean()),
            "correlation of cosines": cosine_correlation(wanted, vectors),
        }


@dataclass(frozen=True)
class Decoder(Subject):
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


def spearman(a: pd.Series, b: pd.Series) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, where ties share theirs."""
    return float(a.rank().corr(b.rank()))


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _widths(hidden: int, intermediate: int) -> dict[str, dict[str, int]]:
    return {
        name: {"hidden_size": hidden * share // 4, "intermediate_size": intermediate * share // 4}
        for name, share in (("3/4", 3), ("1/2", 2), ("1/4", 1))
    }


SUBJECTS: dict[str, Subject] = {
    "reaction-bert": Masked(
        "reaction-bert",
        TEACHERS / "reaction-bert",
        _widths(256, 512),
        DATA / "uspto50k" / "train.jsonl.gz",
        ("rxn",),
        DATA / "uspto50k" / "valid.jsonl.gz",
        calibration_texts=256,
        scored_texts=512,
        max_length=128,
    ),
    "minilm": Sentences(
        "minilm",
        TEACHERS / "minilm",
        _widths(384, 1536),
        DATA / "glue" / "stsb" / "train.jsonl",
        ("text_a", "text_b"),
        DATA / "glue" / "stsb" / "test.jsonl",
        calibration_texts=512,
        scored_texts=1379,
        max_length=64,
        validation=DATA / "glue" / "stsb" / "dev.jsonl",
    ),
}

# 3/4 of 9 heads, or of a head of 64 whose halves rotary positions tie to their places, is no whole number: either all
# heads stay or a third of them goes.
DECODER = Decoder(
    "smollm2",
    TEACHERS / "smollm2",
    {
        "3/4, all heads": {
            "hidden_size": 432,
            "intermediate_size": 1152,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
        },
        "2/3, 6 heads": {"hidden_size": 384, "intermediate_size": 1024, "head_strategy": "head"},
    },
    DATA / "wikinews" / "wikinews_en_clean.jsonl.gz",
    ("text",),
    DATA / "wikinews" / "wikinews_en_clean.jsonl.gz",
    calibration_texts=64,
    scored_texts=64,
    max_length=128,
)
