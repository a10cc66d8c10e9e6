"""Encoder-decoders that write down what they hear: next tokens of transcripts, and errors of words written freely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

from ..errors import TeacherError
from ..inputs import Batch, Inputs
from ..progress_bar import progress_bar
from ..rows.roles import TRANSCRIPT, Role
from ..scores.transcripts import as_said, word_error_rate
from ..training.labelled_positions import NO_LABEL
from .generated_targets import written
from .objective import Figures
from .seq2seq import Seq2Seq, takes_targets

ENGLISH = ("en", "english", "<|en|>")  # as a generation config may name it


class SpeechSeq2Seq(Seq2Seq):
    """Write down what is said: `Seq2Seq` that hears, and is judged by its words as well.

    Args:
        teacher: in evaluation mode.
        inputs: make its batches.

    Raises:
        TeacherError: there is no tokenizer, or the inputs of its decoder cannot be made from targets.
    """

    name = "speech-seq2seq"
    title = "encoder-decoders that write down speech"
    one = "an encoder-decoder that writes down speech"

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        if getattr(inputs.processor, "tokenizer", None) is None:
            raise TeacherError(
                f"What a {type(teacher).__name__} writes needs a tokenizer, and there is none beside it that can be "
                "loaded. Save the whole processor beside the model with processor.save_pretrained(folder)."
            )
        super().__init__(teacher, inputs)

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' models of this kind, with a decoder of its own."""
        named = type(teacher).__name__ in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values()
        return named and takes_targets(teacher)

    @property
    def target(self) -> Role:
        """What is said."""
        return TRANSCRIPT

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return the figures of `Seq2Seq` and the errors per word of what the model writes by itself.

        Right is the transcript or, without one, what the teacher writes. Case and punctuation do not count, nor how
        numbers are written where the tokenizer knows (Whisper's, for English: "three" is "3"). A text has at most twice
        as many tokens as the longest target of its batch, for some models repeat themselves without end.
        """
        mine, right = [], []
        for batch in progress_bar(batches, "Writing"):
            labels = batch["labels"]
            mine += written(model, batch, 2 * labels.shape[1])
            right += [row[row != NO_LABEL].tolist() for row in labels]
        found, said = ([self._as_said(text) for text in self._texts(tokens)] for tokens in (mine, right))
        return super().score(model, batches, wanted) | {"word_error_rate": word_error_rate(found, said)}

    def _texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]

    def _as_said(self, text: str) -> str:
        """Return `text` without what cannot be heard."""
        language = getattr(self.teacher.generation_config, "language", None) or "en"
        if getattr(self.tokenizer, "english_spelling_normalizer", None) is None or language not in ENGLISH:
            return as_said(text)
        return as_said(str(self.tokenizer.normalize(text)))
