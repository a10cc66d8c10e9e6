from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from wid_hf.errors import DataError
from wid_hf.scores import perplexity_score


@pytest.fixture
def decoder() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def batch(*rows: list[int], left: bool = False) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    padding = [[0] * (width - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)]
    mask = [pad + [1] * len(row) if left else [1] * len(row) + pad for row, pad in zip(rows, padding, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_it_is_that_of_all_tokens_but_the_first_of_each_text(decoder: LlamaForCausalLM) -> None:
    texts = [[3, 4, 5, 6, 7], [8, 9, 10]]
    expected = 0.0
    for text in texts:
        with torch.no_grad():
            logits = decoder.eval()(torch.tensor([text])).logits[0, :-1]
        expected += functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="sum").item()
    found = perplexity_score(decoder, [batch(*texts)])
    assert found.tokens == 6
    assert found.loss == pytest.approx(expected / 6, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected / 6), rel=1e-5)


def test_it_does_not_depend_on_batching_or_the_side_of_padding_and_restores_the_mode(decoder: LlamaForCausalLM) -> None:
    decoder.train()
    texts = [[3, 4, 5, 6, 7], [8, 9, 10]]
    together = perplexity_score(decoder, [batch(*texts)]).loss
    assert perplexity_score(decoder, [batch(text) for text in texts]).loss == pytest.approx(together, rel=1e-5)
    # rotary positions are relative, so that padding on the left changes nothing
    assert perplexity_score(decoder, [batch(*texts, left=True)]).loss == pytest.approx(together, rel=1e-5)
    assert decoder.training


def test_texts_of_one_token_predict_nothing_and_are_refused(decoder: LlamaForCausalLM) -> None:
    with pytest.raises(DataError, match="no text has two tokens"):
        perplexity_score(decoder, [batch([3], [4])])
