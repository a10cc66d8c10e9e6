"""A narrow model under torch.compile: one graph without a break, as its stock student has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from architectures import ARCHITECTURES

from wid_hf import get_wid_model


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# What dynamo does itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("family", ["bert", "llama"])  # a tied table, which folds once per forward; rotary positions
def test_a_narrow_model_is_one_graph(family: str) -> None:
    row = ARCHITECTURES[family]
    ids = torch.arange(14).view(2, 7) + 5
    model = get_wid_model(row.build(), row.config("head")).train()
    expected = model.eval()(input_ids=ids).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert (compiled(input_ids=ids).logits - expected).abs().max() <= 1e-6 * expected.abs().max()
    model.train()
    compiled(input_ids=ids).logits.square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name.endswith(".matrix"))
