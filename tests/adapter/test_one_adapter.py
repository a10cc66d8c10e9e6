"""What would change a wid model in place, or add to it, is refused."""

from __future__ import annotations

import pytest
from torch import nn
from wid_models import identity, tiny_gpt2

from wid_hf import (
    WidError,
)


def test_another_vocabulary_is_refused_and_the_same_is_not() -> None:
    model = identity(tiny_gpt2())
    assert model.resize_token_embeddings(60) is model.get_input_embeddings()
    for change in (
        lambda: model.resize_token_embeddings(70),
        lambda: model.resize_token_embeddings(60, pad_to_multiple_of=64),
        lambda: model.resize_token_embeddings(pad_to_multiple_of=64),
        lambda: model.set_input_embeddings(nn.Embedding(70, 12)),
        lambda: model.set_output_embeddings(nn.Linear(12, 70)),
    ):
        with pytest.raises(WidError, match=r"Change the teacher before get_wid_model"):
            change()
    assert model.merge_and_unload().config.vocab_size == 60
