"""Attention of two models compared: zero for the same, one bit for disjoint, heads found again whatever their order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import word_tokenizer
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from wid_hf import DataError, WidConfig, WidError, get_wid_model
from wid_hf.tools.evaluation.attention import _divergences, compare_attention
from wid_hf.tools.reports.html_report.attention_plots import draw_divergence, draw_maps

SIZES = {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 32}


def bert(hidden: int = 24, heads: int = 4, seed: int = 0, **other: int) -> BertForMaskedLM:
    torch.manual_seed(seed)
    model = BertForMaskedLM(BertConfig(hidden_size=hidden, num_attention_heads=heads, **{**SIZES, **other}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)  # attention that is not flat
    return model


def batches(length: int = 9) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (2, 3, length), generator=generator)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, 5:] = 0
    return [{"input_ids": each, "attention_mask": mask, "labels": each} for each in ids]


def test_a_model_looks_where_it_looks() -> None:
    model = bert()
    found = compare_attention(model, model, batches())
    assert found.matched == [[0, 1, 2, 3]] * 2
    assert found.positions == 2 * (9 + 5 + 9)
    assert found.mean < 1e-12


def test_divergence_is_that_of_jensen_and_shannon() -> None:
    one = torch.tensor([0.5, 0.5, 0.0, 0.0]).view(1, 1, 1, 4)
    asked = torch.ones(1, 1, dtype=torch.bool)
    for other, bits in (([0.0, 0.0, 0.3, 0.7], 1.0), ([0.5, 0.5, 0.0, 0.0], 0.0), ([1.0, 0.0, 0.0, 0.0], 0.3112781)):
        assert _divergences(one, torch.tensor(other).view(1, 1, 1, 4), asked).item() == pytest.approx(bits, abs=1e-6)


def test_heads_in_another_order_are_found_again() -> None:
    teacher, student = bert(), bert()
    order = [2, 0, 3, 1]
    with torch.no_grad():
        for layer in student.bert.encoder.layer:
            own = layer.attention.self
            for linear in (own.query, own.key, own.value):
                linear.weight.copy_(linear.weight.view(4, 6, 24)[order].reshape(24, 24))
                linear.bias.copy_(linear.bias.view(4, 6)[order].flatten())
            out = layer.attention.output.dense.weight
            out.copy_(out.view(24, 4, 6)[:, order].reshape(24, 24))
    found = compare_attention(teacher, student, batches())
    assert found.matched == [order] * 2
    assert found.mean < 1e-9


def test_padding_neither_asks_nor_counts() -> None:
    teacher, student = bert(), bert(seed=1)
    data = batches()
    found = compare_attention(teacher, student, data)
    for batch in data:
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])
    again = compare_attention(teacher, student, data)
    assert again.mean == pytest.approx(found.mean, rel=1e-5)
    assert 0.01 < found.mean < 1


def test_a_student_that_inherits_looks_more_like_its_teacher_than_a_random_one() -> None:
    teacher = bert()
    wid = get_wid_model(teacher, WidConfig(hidden_size=20, intermediate_size=48), calibration_data=batches(30))
    inherited = compare_attention(teacher, wid.merge_and_unload(), batches())
    random = compare_attention(teacher, bert(20, seed=5), batches())
    assert inherited.mean < random.mean / 2


def test_fewer_heads_are_each_compared_with_one_of_the_teachers() -> None:
    teacher = bert()
    student = get_wid_model(
        teacher, WidConfig(hidden_size=12, head_strategy="head", init="identity")
    ).merge_and_unload()
    found = compare_attention(teacher, student, batches())
    assert all(len(set(layer)) == 2 for layer in found.matched)


def test_what_cannot_be_compared_is_refused() -> None:
    model = bert()
    with pytest.raises(WidError, match="2 layers of 4 heads, the student 1 of 4"):
        compare_attention(model, bert(num_hidden_layers=1), batches())
    with pytest.raises(DataError, match="no batch"):
        compare_attention(model, model, [])


def test_the_way_attention_is_computed_is_put_back() -> None:
    teacher, student = bert(), bert(seed=1)
    before = teacher.config._attn_implementation
    student.train()
    compare_attention(teacher, student, batches())
    assert teacher.config._attn_implementation == student.config._attn_implementation == before
    assert student.training


def test_an_encoder_with_a_decoder_is_compared_by_its_encoder() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    data = [{**batch, "decoder_input_ids": batch["input_ids"][:, :4]} for batch in batches()]
    found = compare_attention(model, model, data)
    assert len(found.divergence) == 3


def test_pictures_show_every_student(tmp_path: Path) -> None:
    teacher, student = bert(), bert(seed=1)
    found = {
        "ours": compare_attention(teacher, teacher, batches()),
        "other": compare_attention(teacher, student, batches()),
    }
    draw_divergence(found, tmp_path / "divergence.png")
    models = {"other": (student, found["other"])}
    draw_maps(teacher, models, word_tokenizer(), "one two three", [(0, 1), (1, 2)], tmp_path / "maps.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["divergence.png", "maps.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
