"""Encoder-decoders that write texts: a student learns its teacher's next tokens on targets, and targets if given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from ..adapter.tuner import WidModel
from ..inputs import Batch, Columns, Inputs
from ..rows.roles import TARGET, Role
from ..scores import target_score
from ..training.labelled_positions import NO_LABEL
from ..training.losses.counting import mean_of
from .decoder_inputs import MASK, decoder_inputs, refuse_other_decoders
from .divergences import agreement, softmax_divergence
from .generated_targets import with_generated_targets
from .objective import Figures, Objective


class Seq2Seq(Objective):
    """Write a text about another: translate it, sum it up.

    Next tokens are compared with the teacher's along a target: the row's, or what the teacher writes where rows have
    none. What the teacher wrote is no label, so it has no loss of its own.

    Args:
        teacher: in evaluation mode.
        inputs: make its batches.

    Raises:
        TeacherError: the inputs of its decoder cannot be made from targets.
    """

    name = "seq2seq"
    title = "encoder-decoders that write texts"
    one = "an encoder-decoder that writes texts"
    has_one_stack = False
    takes_labels = True

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__(teacher, inputs)
        refuse_other_decoders(teacher)
        # A copy: a length would be saved in its file.
        self.tokenizer: PreTrainedTokenizerBase = copy.deepcopy(
            getattr(inputs.processor, "tokenizer", inputs.processor)
        )

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' sequence-to-sequence models, with a decoder of its own."""
        named = type(teacher).__name__ in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
        return named and takes_targets(teacher)

    @property
    def roles(self) -> tuple[Role, ...]:
        """What is read and, where a row has it, what is written: targets are not only for a loss on labels."""
        return (*self.inputs.roles[:1], self.target)

    @property
    def target(self) -> Role:
        """What is written."""
        return TARGET

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads inputs and targets, and makes the inputs of the decoder."""
        return self._collate

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return inputs with the tokens of targets, both cut after `max_length`.

        Targets of rows are in the column `labels`. Where rows have none, the teacher writes them, which takes a while,
        and they are in the column `decoder_input_ids`, from the token that decoding starts with.

        Raises:
            DataError: nothing can be read.
        """
        name = self.target.name
        if name not in (rows.column_names or ()):
            made = self.inputs.features(rows, max_length)
            return with_generated_targets(made, self.teacher, self.inputs.collator, max_length)
        tokenizer, start = self.tokenizer, getattr(self.teacher.config, "decoder_start_token_id", None)

        def labels(columns: Columns, _: Any) -> dict[str, list[list[int]]]:
            ids = tokenizer(text_target=columns[name], truncation=True, max_length=max_length)["input_ids"]
            return {"labels": [row[1:] if row[:1] == [start] else row for row in ids]}

        return self.inputs.features(rows, max_length, labels)

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the token that the teacher predicts for each token of a target `(tokens,)`."""
        return target_score(self.teacher, batches).predictions

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return loss and perplexity of targets, and the share of tokens at which the prediction is the teacher's."""
        score = target_score(model, batches)
        own = {"loss": score.loss, "perplexity": score.perplexity}
        return own if wanted is None else own | {"agreement": agreement(score.predictions, wanted)}

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean divergence over tokens of targets."""
        counted = inputs[MASK].bool()
        return mean_of(softmax_divergence(student.logits[counted], teacher.logits[counted]))

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "labels" if "labels" in rows[0] else "decoder_input_ids"
        batch = dict(self.inputs.collator([{k: v for k, v in row.items() if k != kind} for row in rows]))
        targets = pad_sequence([torch.tensor(row[kind]) for row in rows], True, NO_LABEL)
        if kind == "labels":
            return batch | {"labels": targets} | decoder_inputs(self.teacher, targets)
        read, labels = targets[:, :-1], targets[:, 1:]
        padded = read.masked_fill(read == NO_LABEL, self.teacher.config.pad_token_id)
        return batch | {"labels": labels, "decoder_input_ids": padded, MASK: labels.ne(NO_LABEL).long()}


def takes_targets(teacher: PreTrainedModel) -> bool:
    """Return whether it has an encoder and a decoder, and its forward takes tokens for the decoder and their mask."""
    taken = inspect.signature(teacher.forward).parameters
    return bool(teacher.config.is_encoder_decoder) and {"decoder_input_ids", MASK} <= taken.keys()
