"""Sentence encoders: a student learns the vectors that its teacher's whole pipeline gives, and how alike they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapter.merge import map_of
from ..adapter.tuner import WidModel
from ..config import WidConfig
from ..inputs import Batch, Columns, Inputs, TextInputs
from ..rows.roles import TEXT, Role
from ..scores import embed, retrieval_agreement, similarity_correlation
from ..scores.sentences import FEWEST_TEXTS, Similarity
from ..sentence_models import pipeline_of
from ..sentence_models.settings import SentenceSettings
from ..sentence_models.similarity import SIMILARITIES, of_pairs
from ..training.losses.counting import full
from .objective import Figures, Objective

SIMILARITY_WEIGHT = 1.0  # of the similarities beside the vectors, in the loss
LEAST_SPREAD = 1e-6  # of similarities, as a share of their energy: a batch may be one text many times


class SentenceVectors(Objective):
    """Give each text a vector, by the pooling and what stands behind it in a folder of sentence-transformers.

    Texts are read as the model reads them: behind its default prompt, in lower case and cut if it says so. Losses and
    figures are of the pipeline's vectors, compared by the model's own similarity.
    """

    name = "sentence-vectors"
    title = "sentence encoders (models of sentence-transformers)"
    one = "a sentence encoder"
    has_logits = False
    reduction = "rows"

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        pipeline = pipeline_of(teacher)
        assert pipeline is not None, "`fits` found one"
        super().__init__(teacher, PromptedTexts(inputs.processor, pipeline.settings))
        self.pipeline = pipeline
        self._prompt_length = pipeline.settings.prompt_length(inputs.processor)

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the teacher has no head, and a pooling stands behind it in its folder.

        Raises:
            TeacherError: what stands behind it cannot be read.
        """
        if teacher.base_model is not teacher or teacher.can_generate():
            return False
        pipeline = pipeline_of(teacher)
        return pipeline is not None and pipeline.pooling is not None

    @property
    def roles(self) -> tuple[Role, ...]:
        """A text."""
        return (TEXT,)

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config`; where a maximum is pooled, outputs stay coordinates, for it does not turn with them."""
        if self.pipeline.turns:
            return config
        return replace(config, calibration_config=replace(config.calibration_config, output="coordinates"))

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the teacher's vectors `(texts, m)`."""
        return embed(self.teacher, batches, self._pool(None))

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return how alike vectors are to the teacher's, and how alike texts are by them.

        The figures are the mean cosine with the teacher's vectors, in the student's coordinates where it has fewer;
        the correlation of similarities of all pairs of texts with the teacher's; and how often the most similar other
        text is the same. Of a student with fewer coordinates that nobody knows, the first is missing.
        """
        if wanted is None:
            return {}
        output_map, similarity = _map_of(model), self.pipeline.settings.similarity
        vectors = embed(model, batches, self._pool(output_map))
        theirs = self.pipeline.mapped(wanted, output_map)
        same_coordinates = vectors.shape == theirs.shape
        return {
            **({"vector_cosine": _mean_cosine(vectors, theirs)} if same_coordinates else {}),
            f"{similarity}_correlation": similarity_correlation(wanted, vectors, SIMILARITIES[similarity]),
            "top1_agreement": retrieval_agreement(wanted, vectors, SIMILARITIES[similarity]),
        }

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return `vectors_loss` of one batch."""
        states, mask = student.last_hidden_state, inputs["attention_mask"]
        with torch.autocast(mask.device.type, enabled=False):
            if wid.is_wide:
                states = wid.map_outputs(states)
            output_map = wid.output_map
            theirs = self._pool(None)(teacher.last_hidden_state, mask)
            return vectors_loss(
                self._pool(output_map)(states, mask),
                self.pipeline.mapped(theirs, output_map),
                theirs,
                SIMILARITIES[self.pipeline.settings.similarity],
            )

    def _pool(self, output_map: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what makes vectors of states and masks, of the teacher or of a student with this map."""

        def vectors(states: Tensor, mask: Tensor) -> Tensor:
            pipeline = self.pipeline.narrowed(states.shape[-1], output_map)
            return pipeline.vectors(states, mask, self._prompt_length)

        return vectors


class PromptedTexts(TextInputs):
    """Texts as a model of sentence-transformers reads them.

    Args:
        processor: a working tokenizer.
        settings: of the model.
    """

    def __init__(self, processor: PreTrainedTokenizerBase, settings: SentenceSettings) -> None:
        super().__init__(processor)
        self._settings = settings

    def encode(self, columns: Columns, max_length: int) -> Mapping[str, Any]:
        """Return what the tokenizer makes of texts behind the prompt, no longer than the model reads."""
        read = {**columns, TEXT.name: [self._settings.as_read(text) for text in columns[TEXT.name]]}
        return super().encode(read, min(max_length, self._settings.max_length or max_length))


def vectors_loss(student: Tensor, wanted: Tensor, teacher: Tensor, similarity: Similarity) -> Tensor:
    """Return `|s - t_m|^2 / |t_m|^2 + w * mean((sim_s - sim_t)^2) / var(sim_t)`, each a share of what could be missed.

    For vectors of length 1, the first term is twice one minus their mean cosine. The second is over all pairs of texts
    in the batch, if there are three texts or more.

    Args:
        student: vectors `(b, m)`.
        wanted: the teacher's as the student has them, `(b, m)`.
        teacher: the teacher's vectors, which may have more coordinates.
        similarity: of vectors.
    """
    student, wanted, teacher = full(student), full(wanted), full(teacher)
    missed = (student - wanted).square().sum() / wanted.square().sum()
    if len(teacher) < FEWEST_TEXTS:
        return missed
    mine, theirs = of_pairs(similarity(student)), of_pairs(similarity(teacher))
    spread = theirs.var(correction=0).clamp(min=LEAST_SPREAD * theirs.square().mean())
    return missed + SIMILARITY_WEIGHT * (mine - theirs).square().mean() / spread


def _mean_cosine(vectors: Tensor, theirs: Tensor) -> float:
    return float(functional.cosine_similarity(vectors, theirs).mean())


def _map_of(model: Any) -> Tensor | None:
    """Return the map from the teacher's outputs to those of a wid model or a merged student, None if there is none."""
    wid = getattr(model, "base_model", None)
    if isinstance(wid, WidModel):
        return None if wid.is_wide else wid.output_map
    return map_of(model)
