"""Decoders: language models that read from left to right train on their own loss, on texts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..coupling.trace import quiet_forward
from ..inputs import Batch
from ..rows.roles import TEXT, Role
from ..scores import perplexity_score
from .divergences import agreement
from .objective import Figures, Objective

TRIED = 6  # tokens of the text that shows whether a model reads from left to right


class CausalLM(Objective):
    """Predict the next token. The figures are loss (nats), perplexity and agreement with the teacher's prediction."""

    name = "causal-lm"
    title = "decoders (causal language models)"
    one = "a decoder"
    has_own_loss = True

    @property
    def roles(self) -> tuple[Role, ...]:
        """A text."""
        return (TEXT,)

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' causal language models, and reads from left to right.

        `BertLMHeadModel` is such a class, and reads in both directions unless its config has `is_decoder=True`.
        """
        return type(teacher).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and reads_left_to_right(teacher)

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads; every token is a label but padding."""
        return DataCollatorForLanguageModeling(self.inputs.processor, mlm=False)

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the token that the teacher predicts at each position but padding `(tokens,)`."""
        return perplexity_score(self.teacher, batches).predictions

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return loss, perplexity, and the share of positions at which the predicted token is the teacher's."""
        score = perplexity_score(model, batches)
        own = {"loss": score.loss, "perplexity": score.perplexity}
        return own if wanted is None else own | {"agreement": agreement(score.predictions, wanted)}


@torch.no_grad()
def reads_left_to_right(model: PreTrainedModel) -> bool:
    """Return whether the scores of earlier tokens stay as they are when the last token is another one."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(TRIED, device=model.device)[None] % vocabulary
    other = ids.clone()
    other[0, -1] = (TRIED + 1) % vocabulary
    with quiet_forward(model):
        one, two = (model(input_ids=each).logits[0, : TRIED - 1] for each in (ids, other))
    return torch.allclose(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
