"""What is calibrated: teachers with random weights, their students of half the width, and random texts.

Takes sizes, gives models and batches. Neither memory nor time depends on what weights say, so nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wid_hf import WidConfig

Kind = Literal["bert", "llama"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEAD = 64  # width of a head
IN_A_BATCH = 8  # texts


@dataclass(frozen=True)
class Case:
    """One calibration.

    Attributes:
        kind: BERT without a head, or a Llama whose table is not tied.
        width: the teacher's hidden size; feed-forward blocks are four times as wide, the student is half as wide.
        layers: of both.
        texts: to calibrate on.
        length: of a text in tokens.
        dtype: of the teacher's weights.
        heads: whether whole heads go, instead of half of every head.
        vocabulary: rows of the table.
    """

    kind: Kind
    width: int
    layers: int
    texts: int
    length: int
    dtype: Literal["fp32", "bf16"] = "fp32"
    heads: bool = False
    vocabulary: int = 1000

    def teacher(self) -> PreTrainedModel:
        """Return the teacher, the same one each time."""
        sizes: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // HEAD,
            "intermediate_size": 4 * self.width,
        }
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(DTYPES[self.dtype])
        try:
            return BertModel(BertConfig(**sizes)) if self.kind == "bert" else LlamaForCausalLM(LlamaConfig(**sizes))
        finally:
            torch.set_default_dtype(before)

    def student(self) -> WidConfig:
        """Return the student's config."""
        return WidConfig(
            hidden_size=self.width // 2,
            intermediate_size=2 * self.width,
            head_strategy="head" if self.heads else "dim",
        )

    def batches(self) -> list[dict[str, Tensor]]:
        """Return random texts, the last quarter of each batch's first one being padding."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for start in range(0, self.texts, IN_A_BATCH):
            shape = min(IN_A_BATCH, self.texts - start), self.length
            mask = torch.ones(shape, dtype=torch.long)
            mask[0, -(self.length // 4) :] = 0
            found.append(
                {"input_ids": torch.randint(self.vocabulary, shape, generator=generator), "attention_mask": mask}
            )
        return found
