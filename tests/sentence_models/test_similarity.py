"""Similarities of all pairs of texts."""

from __future__ import annotations

import pytest
import torch

from wid_hf.sentence_models.similarity import SIMILARITIES, of_pairs

VECTORS = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
OF_PAIRS = {
    "cosine": [4 / 5, -3 / 5, 0.0],
    "dot": [8.0, -3.0, 0.0],
    "euclidean": [-(13**0.5), -(32**0.5), -(5**0.5)],
    "manhattan": [-5.0, -8.0, -3.0],
}


@pytest.mark.parametrize("name", SIMILARITIES)
def test_each_similarity_follows_its_formula_for_each_pair_once(name: str) -> None:
    torch.testing.assert_close(of_pairs(SIMILARITIES[name](VECTORS)), torch.tensor(OF_PAIRS[name]))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_equal_texts_have_gradients(name: str) -> None:
    vectors = VECTORS[[0, 0, 1]].requires_grad_()
    of_pairs(SIMILARITIES[name](vectors)).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
