"""Folding: every weight of the student is `R @ W @ C` of the teacher's, computed once, in float32."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from toys import noisy
from transformers import BertConfig, BertForMaskedLM

from wid_hf import WidConfig, get_wid_model
from wid_hf.layers import Compactor, FoldedWeight, IndexSelect

IDS = torch.arange(21).view(3, 7) + 2
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def wid(tiny_bert: BertForMaskedLM) -> nn.Module:
    """The student inside the wid model of a tiny BERT with distinct weights everywhere."""
    with torch.no_grad():
        for seed, parameter in enumerate(tiny_bert.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return get_wid_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=32, init="identity")).base_model


def maps(student: nn.Module, name: str, weight: str = "weight") -> nn.ModuleDict:
    return student.get_submodule(name).parametrizations[weight][0].maps


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


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_compactor_maps_any_axis_of_any_tensor(axis: int) -> None:
    tensor, matrix = torch.randn(4, 5, 6, 7), torch.randn(3, (4, 5, 6, 7)[axis])
    letters = "abcd"
    expected = torch.einsum(f"abcd,k{letters[axis]}->{letters.replace(letters[axis], 'k')}", tensor, matrix)
    assert torch.allclose(Compactor(matrix)(tensor, axis), expected, atol=1e-5)


def test_a_choice_keeps_indices_and_multiplies_by_their_factors() -> None:
    choice = IndexSelect(torch.tensor([3, 0]), torch.tensor([1.0, 0.5]))
    assert torch.equal(choice(torch.arange(8.0).view(4, 2), 0), torch.tensor([[6.0, 7.0], [0.0, 0.5]]))
    assert torch.equal(choice(torch.arange(8.0).view(2, 4), 1), torch.tensor([[3.0, 0.0], [7.0, 2.0]]))


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
        (choice,) = maps(wid.model, "bert.embeddings.LayerNorm", attribute).values()
        assert isinstance(choice, IndexSelect)
        assert torch.equal(getattr(norm, attribute), getattr(teacher, attribute)[:12])
    assert not list(maps(wid.model, "bert.embeddings.LayerNorm").parameters())


def test_tied_weights_stay_one_original_and_fold_once_per_forward(
    wid: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    word, decoder = wid.model.bert.embeddings.word_embeddings, wid.model.cls.predictions.decoder
    assert word.parametrizations.weight.original is decoder.parametrizations.weight.original
    assert word.parametrizations.weight[0] is decoder.parametrizations.weight[0]
    (column,) = maps(wid.model, "bert.embeddings.word_embeddings").values()
    tables: list[tuple[int, ...]] = []
    original = FoldedWeight.fold

    def counted(self: FoldedWeight, tensor: Tensor) -> Tensor:
        if column in self.maps.values():
            tables.append(tuple(tensor.shape))
        return original(self, tensor)

    monkeypatch.setattr(FoldedWeight, "fold", counted)
    for _ in range(2):
        tables.clear()
        wid.model(input_ids=IDS)
        assert sorted(tables) == [(2, 24), (32, 24), (60, 24)]  # each table once, the decoder's use included
    with torch.no_grad():
        column.matrix.zero_()
    assert word.weight.abs().max() == 0  # outside a forward nothing old is remembered


def test_a_forward_that_fails_forgets_its_folds(wid: nn.Module) -> None:
    with pytest.raises(IndexError, match="index out of range"):
        wid.model(input_ids=torch.full((1, 3), 10_000))
    assert all(m._memo is None for m in wid.model.modules() if isinstance(m, FoldedWeight))


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
