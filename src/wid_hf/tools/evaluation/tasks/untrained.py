"""Tasks without training: sentence similarity, masked tokens, next tokens.

Each takes a model and gives the figures that the modules of `evaluation` compute.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from torch.nn import functional
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ....errors import DataError, TeacherError
from ....inputs import batches, tokenize
from ....rows import load_texts
from ....scores import embed, masked_batches, masked_lm_score, perplexity_score
from ....scores.figures import FIGURES
from .source import Source
from .task import DataPlaces, Rows, Scored, Scores

MASKING_SEED = 0  # all models predict the same tokens
INPUTS = ["input_ids", "attention_mask"]


@dataclass(frozen=True)
class Similarity(Scored):
    """Pairs of sentences with a score, against cosines of mean-pooled vectors.

    Attributes:
        source: rows with `text_a`, `text_b` and `label`.
    """

    source: Source

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a model that is not an encoder."""
        if model.config.is_encoder_decoder or model.can_generate():
            raise TeacherError(
                f"{self.title} is for encoders, and {type(model).__name__} is a decoder or has one. "
                "Leave this task out."
            )

    def load(self, places: DataPlaces) -> Rows:
        """Return the splits that are scored."""
        rows = self.source.load(places.folder)
        return places.limited({split: dataset for split, dataset in rows.items() if split != "train"})

    def features(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Return one row for each sentence, all first ones and then all second ones, with the label of its pair."""
        made = {}
        for split, dataset in rows.items():
            texts = Dataset.from_dict({"text": [*dataset["text_a"], *dataset["text_b"]]})
            tokens = tokenize(texts, tokenizer, max_length).select_columns(INPUTS)
            made[split] = tokens.add_column("label", [float(label) for label in dataset["label"]] * 2)
        return made

    def score(
        self, model: PreTrainedModel, features: Rows, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> dict[str, Scores]:
        """Return the correlations of cosines with labels."""
        scores = {}
        for split, tokens in features.items():
            rows = tokens.select_columns(INPUTS)
            vectors = embed(model.base_model, list(batches(rows, DataCollatorWithPadding(tokenizer), batch_size)))
            first, second = vectors.chunk(2)
            cosines = functional.cosine_similarity(first, second).numpy()
            right = np.asarray(tokens["label"])[: len(cosines)]
            scores[split] = {name: FIGURES[name](cosines, right) for name in self.figures}
        return scores


@dataclass(frozen=True)
class OnTexts(Scored):
    """A language model's own objective on texts that the user names."""

    def load(self, places: DataPlaces) -> Rows:
        """Return the texts as the one split `texts`; blank ones are dropped."""
        if places.texts is None:
            raise DataError(f"{self.title} comes without texts. Name a file or dataset with texts=.")
        return places.limited({"texts": load_texts(places.texts, column=places.column, split="validation")})

    def features(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Return the tokens of the texts."""
        return {split: tokenize(texts, tokenizer, max_length) for split, texts in rows.items()}

    def score(
        self, model: PreTrainedModel, features: Rows, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> dict[str, Scores]:
        """Return the figures of each split."""
        return {split: self.score_tokens(model, tokens, tokenizer, batch_size) for split, tokens in features.items()}

    @abstractmethod
    def score_tokens(
        self, model: PreTrainedModel, tokens: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Scores:
        """Return the figures on tokenized texts."""


@dataclass(frozen=True)
class MaskedTokens(OnTexts):
    """Loss (nats) and accuracy on 15 % of the tokens, masked the same for all models."""

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a model without a masked-LM head."""
        if type(model).__name__ not in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
            raise TeacherError(
                f"{self.title} is for masked language models, and {type(model).__name__} has no such head. "
                "Leave this task out; decoders have the task perplexity."
            )

    def score_tokens(
        self, model: PreTrainedModel, tokens: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Scores:
        """Return loss and accuracy."""
        found = masked_lm_score(model, masked_batches(tokens, tokenizer, batch_size, MASKING_SEED))
        return {"loss": found.loss, "accuracy": found.accuracy}


@dataclass(frozen=True)
class NextTokens(OnTexts):
    """Loss (nats) and perplexity of a decoder on all tokens but the first of each text."""

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a model without a causal head."""
        if type(model).__name__ not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            raise TeacherError(
                f"{self.title} is for decoders, and {type(model).__name__} has no causal language-model head. "
                "Leave this task out; masked language models have the task masked-lm."
            )

    def score_tokens(
        self, model: PreTrainedModel, tokens: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Scores:
        """Return loss and perplexity."""
        rows = tokens.select_columns(INPUTS)
        found = perplexity_score(model, list(batches(rows, DataCollatorWithPadding(tokenizer), batch_size)))
        return {"loss": found.loss, "perplexity": found.perplexity}
