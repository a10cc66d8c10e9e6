"""What is measured: a BERT teacher with random weights, its student, and the batches of an optimizer step.

Takes sizes, gives models and batches. Speed does not depend on what weights say, so nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from wid_hf import WidConfig
from wid_hf.progressive.schedule import WidSchedule

Batch = dict[str, Tensor]
MASKED = 0.15
NO_LABEL = -100

# Chooses after the first step and lets rows fade from then on: the wide model stays wide, with all its extra work.
WIDE = WidSchedule(mask_interval=1, mask_increments=1, decay_to_zero_steps=1_000_000)


@dataclass(frozen=True)
class Sizes:
    """A masked language model of BERT's class and a student of it; inner widths are four times these.

    Attributes:
        layers: of both.
        width: the student's hidden size.
        teacher_width: the teacher's.
        heads: of both.
        vocabulary: rows of the embedding table and of the decoder that is tied to it.
    """

    layers: int
    width: int
    teacher_width: int = 768
    heads: int = 12
    vocabulary: int = 30522

    def teacher(self, device: torch.device) -> BertForMaskedLM:
        """Return the teacher, the same one each time, in training mode."""
        config = BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.teacher_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.teacher_width,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return BertForMaskedLM(config).to(device).train()

    def student(self, **settings: Any) -> WidConfig:
        """Return the student's config."""
        return WidConfig(hidden_size=self.width, intermediate_size=4 * self.width, **settings)

    def batch(self, rows: int, length: int, device: torch.device, seed: int = 0) -> Batch:
        """Return random tokens `(rows, length)`, no padding, of which 15 % have a label."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.vocabulary, (rows, length), generator=generator)
        labels = ids.where(torch.rand(ids.shape, generator=generator) < MASKED, NO_LABEL)
        return {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
            "labels": labels.to(device),
        }


@dataclass(frozen=True)
class Case:
    """One optimizer step, which all variants take.

    Attributes:
        sizes: of teacher and student.
        rows: of a micro-batch.
        length: of a row in tokens.
        micro_batches: of an optimizer step.
        dtype: `"fp32"`, or `"bf16"` for autocast to it, as `TrainingArguments(bf16=True)` does.
        teacher: whether the teacher's weights are trained beside the compactors.
        logits: whether the head runs on all positions, as a stock forward does, or on those with a label, as
            `WidTrainer` lets it.
        compiled: run the model through `torch.compile`.
        compile_mode: that of `torch.compile`.
    """

    sizes: Sizes
    rows: int
    length: int
    micro_batches: int = 1
    dtype: Literal["fp32", "bf16"] = "fp32"
    teacher: Literal["frozen", "trained"] = "trained"
    logits: Literal["full", "labelled"] = "full"
    compiled: bool = False
    compile_mode: Literal["default", "reduce-overhead"] = "default"

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.rows * self.length * self.micro_batches

    def batches(self, device: torch.device) -> list[Batch]:
        """Return the micro-batches of an optimizer step."""
        return [self.sizes.batch(self.rows, self.length, device, seed) for seed in range(self.micro_batches)]
