"""What a decoder reads is what its model makes of labels, or the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoder_decoders import BART, TOKENS, bart, m2m, t5
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration

from wid_hf.errors import TeacherError
from wid_hf.objectives.decoder_inputs import decoder_inputs, refuse_other_decoders

LABELS = torch.tensor([[5, 6, 7, 3], [8, 3, -100, -100]])


@pytest.mark.parametrize(("made", "start"), [(t5, 0), (bart, 3), (m2m, 3)])
def test_it_is_the_target_one_token_later(made: Any, start: int) -> None:
    model = made(0)
    refuse_other_decoders(model)
    found = decoder_inputs(model, LABELS)
    assert found["decoder_input_ids"].tolist() == [[start, 5, 6, 7], [start, 8, 3, 0]]
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("lacks", ["decoder_start_token_id", "pad_token_id"])
@pytest.mark.parametrize("made", [t5, bart, m2m])
def test_a_config_that_does_not_name_the_tokens_is_refused(made: Any, lacks: str) -> None:
    model = made(0)
    setattr(model.config, lacks, None)
    with pytest.raises(TeacherError, match=r"cannot make the inputs of its decoder .* Set decoder_start_token_id and"):
        refuse_other_decoders(model)


def test_a_model_that_makes_others_is_refused() -> None:
    class Backwards(BartForConditionalGeneration):
        def forward(self, decoder_input_ids: Any = None, labels: Tensor | None = None, **more: Any) -> Any:
            read = decoder_input_ids if labels is None else labels.flip(1).clamp(min=0)
            return super().forward(decoder_input_ids=read, **more)

    with pytest.raises(TeacherError, match=r"Backwards makes the inputs of its decoder .* in a way of its own"):
        refuse_other_decoders(Backwards(BartConfig(**BART, **TOKENS)).eval())
