"""Tables of which a training step folds the looked-up rows alone: the same gradients, and whole tables for outputs."""

from __future__ import annotations

import pytest
import torch
from folded_bert import encoder, gradients
from torch import Tensor
from training_runs import HALF
from transformers import BertForMaskedLM

from wid_hf import get_wid_model
from wid_hf.layers import FoldCache, FoldPolicy
from wid_hf.layers.table_rows import lookups


@pytest.mark.parametrize("padding", [0, 3, None])
@pytest.mark.parametrize("frozen", [True, False])
def test_folding_only_the_rows_of_a_batch_gives_the_same_gradients(padding: int | None, frozen: bool) -> None:
    wid = get_wid_model(encoder(padding), HALF)
    for name, weight in wid.named_parameters():
        weight.requires_grad_(name.endswith("matrix") or not frozen)
    ids = torch.tensor([[7, 3, 0, 7, 199], [3, 3, 12, 0, 5]])

    def backward() -> dict[str, Tensor]:
        wid(input_ids=ids).last_hidden_state.pow(3).sum().backward()
        return gradients(wid)

    wanted = backward()
    shapes: list[torch.Size] = []
    table = wid.base_model.model.embeddings.word_embeddings.parametrizations.weight[0]
    original = table.fold
    table.fold = lambda tensor: shapes.append(tensor.shape) or original(tensor)
    cache = FoldCache(wid.base_model.model)
    cache.keep(FoldPolicy.for_step(tokens=ids.numel()))
    cache.open()
    wid(input_ids=ids).last_hidden_state.pow(3).sum().backward()
    cache.release()
    found = gradients(wid)
    assert [len(shape) for shape in shapes] == [2]
    assert shapes[0][0] == ids.numel() + (0 if padding is None else padding + 1)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


def test_whole_tables_are_folded_for_a_batch_of_more_tokens_than_rows_and_for_outputs() -> None:
    wid = get_wid_model(encoder(), HALF)
    ids = torch.arange(15).view(1, 15).expand(20, 15)
    table = wid.base_model.model.embeddings.word_embeddings.parametrizations.weight[0]
    cache = FoldCache(wid.base_model.model)
    cache.keep(FoldPolicy.for_step(tokens=ids.numel()))
    assert table.slot is not None
    cache.drop()
    cache.keep(FoldPolicy.for_step(tokens=15))
    with torch.no_grad():
        wanted = wid.merge_and_unload()(input_ids=ids[:1]).last_hidden_state
        assert torch.equal(wid(input_ids=ids[:1]).last_hidden_state, wanted)
    cache.drop()


def test_a_table_that_a_decoder_shares_is_folded_as_a_whole(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, HALF)
    tables = [module.num_embeddings for module in lookups(wid.base_model.model).values()]
    assert tiny_bert.config.vocab_size not in tables
    assert tiny_bert.config.max_position_embeddings in tables
