"""Targets that a teacher writes itself, for rows that have none: what its student learns to write.

Takes an encoder-decoder and features of rows; gives them with the column `decoder_input_ids`, from the token that
decoding starts with to the last. Called by the objective `seq2seq`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from ..adapter.fingerprint import weights_fingerprint
from ..inputs import Columns
from ..scores.eval_mode import eval_mode, on_accelerator
from .logits import inputs_of

AT_ONCE = 32  # rows


def with_generated_targets(
    features: Dataset,
    teacher: PreTrainedModel,
    collator: Callable[[list[dict[str, Any]]], Any],
    max_length: int,
) -> Dataset:
    """Return `features` with what `teacher` writes for each row: greedily, by its generation config otherwise.

    `datasets` keeps them in its cache, if it keeps the features, so that the same call does not write them again.

    Args:
        features: of rows without targets.
        teacher: writes.
        collator: puts features of rows together.
        max_length: tokens of a target.
    """

    def write(columns: Columns) -> dict[str, list[list[int]]]:
        names = [name for name in columns if name != "special_tokens_mask"]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True)]
        return {"decoder_input_ids": written(teacher, collator(rows), max_length)}

    if not isinstance(features, Dataset):
        return features.map(write, batched=True, batch_size=AT_ONCE)
    # `datasets` would hash the teacher byte by byte as part of the function.
    made_from = [features._fingerprint, weights_fingerprint(teacher), teacher.generation_config.to_dict(), max_length]
    fingerprint = Hasher.hash(made_from)
    with on_accelerator(teacher):  # where it will be trained; before the trainer exists it is on the CPU
        return features.map(
            write, batched=True, batch_size=AT_ONCE, new_fingerprint=fingerprint, desc="Generating targets"
        )


def written(model: Any, batch: Mapping[str, Any], max_length: int) -> list[list[int]]:
    """Return the tokens that `model` writes for each row of a batch, from the one that decoding starts with.

    Args:
        model: an encoder-decoder, or a wid model of one.
        batch: its inputs; those of the decoder are not used.
        max_length: tokens after the first; the end of the text is one of them.
    """
    with eval_mode(model) as device, parametrize.cached():  # a wid model folds its weights once, not for each token
        read = {name: tensor for name, tensor in inputs_of(batch).items() if not name.startswith("decoder_")}
        given = {name: tensor.to(device) for name, tensor in read.items()}
        made = model.generate(
            **given,
            max_new_tokens=max_length,
            max_length=None,  # that of the generation config, for which each batch would be warned about
            num_beams=1,
            do_sample=False,
            return_dict_in_generate=True,
        ).sequences.tolist()
    last = model.generation_config.eos_token_id
    lasts = {*last} if isinstance(last, list) else {last}
    # Decoding may start with the token that ends a text.
    ends = [next((at for at, token in enumerate(row) if at and token in lasts), len(row)) for row in made]
    return [row[: end + 1] for row, end in zip(made, ends, strict=True)]
