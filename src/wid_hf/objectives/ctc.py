"""Recognisers of speech with a CTC head: a student learns the teacher's scores of every frame, and transcripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from ..adapter.tuner import WidModel
from ..errors import DataError, TeacherError
from ..inputs import Batch, Columns, Inputs, SoundInputs
from ..rows.roles import TRANSCRIPT, Role
from ..scores.transcripts import error_rate, word_error_rate
from ..training.labelled_positions import NO_LABEL
from ..training.losses.counting import attended_positions
from .divergences import softmax_divergence
from .frames import frames_of
from .logits import logits_of
from .objective import Figures, Objective

MANY = 12  # known characters in a message


class CTC(Objective):
    """Give each frame of a sound scores of characters, or of the blank between them; frames of padding do not count.

    The loss from the teacher is the mean over sounds of the divergence per frame. The model's own loss on transcripts
    is per character: the student's config says so (`ctc_loss_reduction`), for a sum over the sounds of a batch could
    not be mixed with a mean.
    """

    name = "ctc"
    title = "recognisers of speech (CTC)"
    one = "a recogniser of speech (CTC)"
    reduction = "rows"
    takes_labels = True
    inputs: SoundInputs

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__(teacher, inputs)
        teacher.config.ctc_loss_reduction = "mean"

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' CTC models."""
        return type(teacher).__name__ in MODEL_FOR_CTC_MAPPING_NAMES.values()

    @property
    def target(self) -> Role:
        """What is said."""
        return TRANSCRIPT

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of transcripts.

        Raises:
            TeacherError: there is none.
        """
        if self.inputs.tokenizer is None:
            raise TeacherError(
                f"Transcripts need a tokenizer, and there is none beside this {type(self.teacher).__name__} that can "
                "be loaded. Save one with tokenizer.save_pretrained(folder), or leave transcripts out: "
                f"--column {TRANSCRIPT.name}="
            )
        return self.inputs.tokenizer

    def why_unusable(self, row: Mapping[str, Any]) -> str | None:
        """Return a reason if a sound has fewer frames than its transcript needs, where frames can be counted."""
        frames = frames_of(self.teacher, self.inputs, row) if TRANSCRIPT.name in row else None
        if not frames:
            return super().why_unusable(row)
        (ids,) = _tokens(self.tokenizer, [row[TRANSCRIPT.name]])
        needed = len(ids) + sum(one == other for one, other in pairwise(ids))  # a blank between equal ones
        return None if needed <= frames else "the sound is too short for what is said"

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads sounds and transcripts."""
        return self._collate

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if "labels" not in rows[0]:
            return self.inputs.collator(rows)
        labels = [torch.tensor(row["labels"]) for row in rows]
        sounds = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        return {**self.inputs.collator(sounds), "labels": pad_sequence(labels, True, NO_LABEL)}

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return sounds and, if there are transcripts, their tokens.

        Raises:
            DataError: a sound cannot be read, or transcripts are not written as the model writes them.
            TeacherError: there are transcripts and no tokenizer.
        """
        if TRANSCRIPT.name not in (rows.column_names or ()):
            return self.inputs.features(rows, max_length)
        # Without `self`, whose model `datasets` would hash.
        tokenizer, classes = self.tokenizer, int(self.teacher.config.vocab_size)

        def labels(columns: Columns, _: Any) -> dict[str, list[Any]]:
            ids = _tokens(tokenizer, columns[TRANSCRIPT.name])
            _refuse_strange(ids, tokenizer, classes)
            return {"labels": ids}

        return self.inputs.features(rows, max_length, labels)

    def wanted(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the teacher's scores `(frames, classes)` of each sound."""
        return self._scores(self.teacher, batches)

    def score(self, model: Any, batches: Sequence[Batch], wanted: list[Tensor] | None) -> Figures:
        """Return error rates on transcripts, if there are some, the agreement with the teacher and the divergence.

        Transcriptions are greedy: the most probable class of each frame, without repetitions and blanks. Agreement is
        1 less the edits per token that make the student's the teacher's, at least 0; the divergence is in nats per
        frame, over all frames. Error rates are edits per word and per character.
        """
        found = self._scores(model, batches)
        mine = [*map(self._heard, found)]
        own = self._on_transcripts(mine, batches)
        if wanted is None:
            return own
        theirs = [*map(self._heard, wanted)]
        divergences = [softmax_divergence(*pair) for pair in zip(found, wanted, strict=True)]
        return own | {
            "agreement": max(0.0, 1 - error_rate(mine, theirs)),
            "divergence": float(torch.cat(divergences).mean()),
        }

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean over sounds of the mean divergence over their frames that are not padding."""
        attended = attended_positions(self.teacher, teacher.logits, inputs)
        divergence = softmax_divergence(student.logits, teacher.logits) * attended
        return (divergence.sum(1) / attended.sum(1).clamp(min=1)).mean()

    def _scores(self, model: Any, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the scores `(frames, classes)` of each sound without padding, float32 on the CPU."""
        return [
            scores[attended]
            for logits, batch in zip(logits_of(model, batches), batches, strict=True)
            for scores, attended in zip(logits, attended_positions(self.teacher, logits, batch), strict=True)
        ]

    def _heard(self, scores: Tensor) -> list[int]:
        """Return the classes that scores `(frames, classes)` say."""
        blank = self.teacher.config.pad_token_id
        return [number for number in scores.argmax(-1).unique_consecutive().tolist() if number != blank]

    def _on_transcripts(self, mine: list[list[int]], batches: Sequence[Batch]) -> Figures:
        right = [row[row != NO_LABEL].tolist() for batch in batches if "labels" in batch for row in batch["labels"]]
        if not right:
            return {}
        found, wanted = ([self.tokenizer.decode(ids, group_tokens=False) for ids in each] for each in (mine, right))
        return {
            "word_error_rate": word_error_rate(found, wanted),
            "character_error_rate": error_rate(found, wanted),
        }


def _tokens(tokenizer: PreTrainedTokenizerBase, transcripts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(transcripts, add_special_tokens=False)["input_ids"]
    return ids


def _refuse_strange(ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, classes: int) -> None:
    """Raise DataError for transcripts of mostly unknown characters, or of tokens that the head has no class for."""
    tokens = [token for row in ids for token in row]
    unknown = tokens.count(tokenizer.unk_token_id)
    if unknown > len(tokens) / 2:
        known = sorted(tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens})
        raise DataError(
            f"The tokenizer does not know {unknown:,} of {len(tokens):,} characters of these transcripts. It knows "
            f"{', '.join(known[:MANY])}, ... Write transcripts in these, in the same case."
        )
    if tokens and max(tokens) >= classes:
        raise DataError(
            f"The transcripts have token {max(tokens)}, and the model has {classes} classes. Use the tokenizer that "
            "belongs to the model."
        )
