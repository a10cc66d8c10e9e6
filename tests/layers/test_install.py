"""Which maps an installed student has, which of them weights share, and where they start."""

from __future__ import annotations

from math import sqrt

import torch
from folded_bert import IDS, QUERY, maps
from torch import Tensor, nn
from toys import noisy
from transformers import BertForMaskedLM

from wid_hf import WidConfig, get_wid_model
from wid_hf.layers import IndexSelect


def test_a_weight_and_its_bias_share_one_row_compactor(wid: nn.Module) -> None:
    assert maps(wid.model, QUERY)["0"] is maps(wid.model, QUERY, "bias")["0"]
    assert maps(wid.model, QUERY)["0"] is not maps(wid.model, QUERY)["1"]
    assert maps(wid.model, QUERY)["1"] is not maps(wid.model, QUERY.replace("query", "key"))["1"]


def test_summed_embedding_tables_share_one_column_compactor(wid: nn.Module) -> None:
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    columns = {id(maps(wid.model, f"bert.embeddings.{name}")["1"]) for name in names}
    assert len(columns) == 1
    assert all(set(maps(wid.model, f"bert.embeddings.{name}")) == {"1"} for name in names)


def test_normalisation_weights_follow_by_selection(wid: nn.Module) -> None:
    noisy(wid.model)
    norm, teacher = (m.bert.embeddings.LayerNorm for m in (wid.model, wid.teacher))
    for attribute in ("weight", "bias"):
        (select,) = maps(wid.model, "bert.embeddings.LayerNorm", attribute).values()
        assert isinstance(select, IndexSelect)
        assert torch.equal(getattr(norm, attribute), getattr(teacher, attribute)[:12])
    assert not list(maps(wid.model, "bert.embeddings.LayerNorm").parameters())


def test_teacher_tensors_are_originals_and_never_copied(wid: nn.Module) -> None:
    originals = {
        p.data_ptr() for name, p in wid.model.named_parameters() if name.endswith((".original", "bias", "weight"))
    }
    assert originals == {p.data_ptr() for p in wid.teacher.parameters()}
    assert wid.model.cls.predictions.bias.data_ptr() == wid.teacher.cls.predictions.bias.data_ptr()  # vocabulary


def test_the_start_selects_rows_and_columns_of_the_teacher(wid: nn.Module) -> None:
    student, teacher = wid.model.bert.encoder.layer[1], wid.teacher.bert.encoder.layer[1]
    assert torch.equal(student.intermediate.dense.weight, teacher.intermediate.dense.weight[:32, :12])
    assert torch.equal(student.intermediate.dense.bias, teacher.intermediate.dense.bias[:32])
    heads = teacher.attention.self.value.weight.view(4, 6, 24)[:, :3, :12].reshape(12, 12)
    assert torch.equal(student.attention.self.value.weight, heads)


def test_attention_keeps_the_teachers_scale_over_the_selected_rows(tiny_bert: BertForMaskedLM) -> None:
    with torch.no_grad():
        for seed, parameter in enumerate(tiny_bert.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    tiny_bert.set_attn_implementation("eager")
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity")).base_model
    assert wid.model.config._attn_implementation == "eager"
    seen: list[Tensor] = []
    layer = wid.model.bert.encoder.layer[0]
    handle = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    probabilities = wid.model(input_ids=IDS, output_attentions=True).attentions[0]
    handle.remove()

    (stream,) = seen  # (3, 7, 12): the student's own layer input
    own = tiny_bert.bert.encoder.layer[0].attention.self

    def kept(linear: nn.Linear) -> Tensor:
        """Project by the first 3 of 6 rows of each of 4 heads of the teacher: `(3, 4, 7, 3)`."""
        weight = linear.weight.view(4, 6, 24)[:, :3, :12].reshape(12, 12)
        bias = linear.bias.view(4, 6)[:, :3].reshape(12)
        return (stream @ weight.T + bias).view(3, 7, 4, 3).transpose(1, 2)

    logits = kept(own.query) @ kept(own.key).transpose(2, 3) / sqrt(6)
    assert torch.allclose(probabilities, logits.softmax(-1), atol=1e-6)
    assert not torch.allclose(probabilities, (logits * sqrt(6) / sqrt(3)).softmax(-1), atol=1e-3)
