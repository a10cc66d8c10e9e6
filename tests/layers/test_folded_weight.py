"""Folding: every weight of the student is `R @ W @ C` of the teacher's, in float32 or more, in the teacher's dtype."""

from __future__ import annotations

import pytest
import torch
from folded_bert import IDS, QUERY, maps
from torch import nn
from toys import noisy
from transformers import BertConfig, BertForMaskedLM

from wid_hf import WidConfig, get_wid_model


def test_a_folded_weight_is_rows_times_teacher_times_columns(wid: nn.Module) -> None:
    noisy(wid.model)
    for name, rows, columns in ((QUERY, 12, 12), ("bert.encoder.layer.1.output.dense", 12, 32)):
        both = maps(wid.model, name)
        teacher = wid.teacher.get_submodule(name).weight
        r, c = both["0"].matrix, both["1"].matrix.T
        assert (r.shape[0], c.shape[1]) == (rows, columns)
        folded = wid.model.get_submodule(name).weight
        assert torch.allclose(folded, r @ teacher @ c, atol=1e-6)
        assert not torch.allclose(folded, teacher[:rows, :columns], atol=1e-2)


def test_folding_is_exact_float32_under_autocast(wid: nn.Module) -> None:
    noisy(wid.model)
    plain = wid.model.get_submodule(QUERY).weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = wid.model.get_submodule(QUERY).weight
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@pytest.mark.parametrize(
    ("dtype", "matrix"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]
)
def test_compactors_are_float32_or_wider_and_weights_keep_the_teachers_dtype(
    dtype: torch.dtype, matrix: torch.dtype
) -> None:
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    wid = get_wid_model(BertForMaskedLM(config).to(dtype).eval(), WidConfig(hidden_size=12, init="identity")).base_model
    assert {p.dtype for name, p in wid.model.named_parameters() if name.endswith(".matrix")} == {matrix}
    assert wid.model.get_submodule(QUERY).weight.dtype == dtype
    assert wid.model(input_ids=IDS).logits.dtype == dtype
