"""What a decoder reads while it is scored on a target: the target, one token later.

Takes an encoder-decoder and targets; gives `decoder_input_ids`, as the model itself makes them of labels, and their
mask. Called by the objective `seq2seq`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..coupling.trace import quiet_forward
from ..errors import TeacherError
from ..planning.example_inputs import example_inputs
from ..training.labelled_positions import NO_LABEL

MASK = "decoder_attention_mask"


def decoder_inputs(model: PreTrainedModel, labels: Tensor) -> dict[str, Tensor]:
    """Return `labels (b, t)` moved on by one token, after the token that decoding starts with, and which count."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):  # mBART, for example, starts with a target's last token
        moved = model.prepare_decoder_input_ids_from_labels(labels=labels)
    else:
        start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
        moved = torch.cat([start, labels[:, :-1]], 1)
        moved = moved.masked_fill(moved == NO_LABEL, model.config.pad_token_id)
    return {"decoder_input_ids": moved, MASK: labels.ne(NO_LABEL).long()}


def refuse_other_decoders(model: PreTrainedModel) -> None:
    """Raise TeacherError if `decoder_inputs` are not those that `model` makes of labels itself, in a small trial."""
    name = type(model).__name__
    try:
        given = example_inputs(model)
        labels = given.pop("decoder_input_ids").clone()
        labels[0, -2:] = NO_LABEL  # as at padding
        counted = labels != NO_LABEL
        with quiet_forward(model):
            theirs = model(**given, labels=labels).logits[counted]
            mine = model(**given, **decoder_inputs(model, labels)).logits[counted]
    except Exception as error:  # a model may raise anything for a number that its config lacks
        raise TeacherError(
            f"{name} cannot make the inputs of its decoder from targets ({type(error).__name__}: {error}). Set "
            "decoder_start_token_id and pad_token_id in its config to the tokens that it was trained with, and save it."
        ) from error
    if not torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())):
        raise TeacherError(
            f"{name} makes the inputs of its decoder from targets in a way of its own, so it cannot be compared with a "
            "student on them. Use get_wid_model and WidTrainer with your own data collator for it."
        )
