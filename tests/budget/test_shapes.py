"""Which sizes may shrink is found from the model, and shapes are counted without tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from encoder_decoders import bart
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from wid_hf import ConfigError, PlanError
from wid_hf.budget import Space
from wid_hf.budget.head_layouts import MANNERS, HeadLayouts
from wid_hf.budget.layer_order import LayerOrder
from wid_hf.budget.shapes import Mix, student_skeleton
from wid_hf.hub.model_size import model_size
from wid_hf.planning.student_plan import empty_student

EVEN = {"width": 1.0, "inner": 1.0, "heads": 1.0, "depth": 1.0}


@pytest.mark.parametrize(
    ("name", "inner", "manners"),
    [
        ("bert", {"intermediate_size": 96}, ("narrower", "fewer")),
        ("gpt2", {"n_inner": 192}, ("narrower", "fewer")),  # its config says None
        ("llama", {"intermediate_size": 96}, ("fewer",)),  # rotary positions fix the width of heads
        ("vit", {"intermediate_size": 96}, ("narrower", "fewer")),
    ],
)
def test_sizes_are_found_and_a_shape_is_counted_as_it_is_planned(
    name: str, inner: dict[str, int], manners: tuple[str, ...]
) -> None:
    teacher = ARCHITECTURES[name].build()
    space = Space.of(teacher, round_to=4)
    assert (dict(space.hidden), dict(space.inner)) == ({"hidden_size": 48}, inner)
    assert space.manners == manners
    for manner in space.manners:
        shape = space.shape(Mix(EVEN, manner), 0.6)
        planned = empty_student(teacher, space.plan(shape).config)
        assert model_size(space.skeleton(shape)) == model_size(planned)
        assert model_size(planned).total < model_size(teacher).total


def test_heads_stay_many_or_become_few(tiny_bert: BertForMaskedLM) -> None:
    space = Space.of(tiny_bert, round_to=2, layers=(2,))
    many, few = (space.shape(Mix(EVEN, manner), 0.5) for manner in ("narrower", "fewer"))
    assert many == {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 24, "num_hidden_layers": 2}
    assert few == {**many, "num_attention_heads": 2}


def test_a_width_that_does_not_divide_into_friendly_heads_goes_down_by_steps(tiny_bert: BertForMaskedLM) -> None:
    space = Space.of(tiny_bert, round_to=2)
    shape = space.shape(Mix(EVEN, "narrower"), 22.9 / 24)  # 22 and 20 divide into heads of 11 or 5, none of 2, 4 or 6
    assert shape["hidden_size"] == 18
    assert shape["num_attention_heads"] == 3
    larger = space.grown(shape, "hidden_size", "narrower")
    assert larger is not None
    assert (larger["hidden_size"], larger["num_attention_heads"]) == (24, 4)


@pytest.mark.parametrize(
    ("sizes", "step", "multiple"),
    [
        ({"hidden_size": 384, "num_attention_heads": 12}, 8, 8),  # heads of 32
        ({"hidden_size": 768, "num_attention_heads": 12}, 8, 8),
        ({"hidden_size": 64, "num_attention_heads": 4}, 8, 8),
        ({"hidden_size": 32, "num_attention_heads": 4}, 4, 4),
        ({"hidden_size": 32, "num_attention_heads": 2}, 8, 8),
        ({"hidden_size": 30, "num_attention_heads": 3}, 2, 4),  # heads of 10, of 4 or of 8
    ],
)
def test_heads_are_as_wide_as_the_teachers_or_multiples_that_kernels_like(
    sizes: dict[str, int], step: int, multiple: int
) -> None:
    layouts = HeadLayouts.of(BertConfig(**sizes))
    hidden, count = sizes["hidden_size"], sizes["num_attention_heads"]
    for manner in MANNERS:
        found = {n: layouts.sizes(n, 1.0, manner, layouts.grains[0]) for n in range(step, hidden + 1, step)}
        widths = {n: n // heads["num_attention_heads"] for n, heads in found.items() if heads is not None}
        assert len(widths) >= 3 and hidden in widths
        assert all(width in (hidden // count, *range(multiple, hidden // count, multiple)) for width in widths.values())


def test_half_of_a_width_has_as_many_narrow_heads_or_half_as_many_wide_ones() -> None:
    layouts = HeadLayouts.of(BertConfig(hidden_size=384, num_attention_heads=12))
    assert layouts.sizes(192, 1.0, "narrower", 8) == {"num_attention_heads": 12}
    assert layouts.sizes(192, 1.0, "fewer", 8) == {"num_attention_heads": 6}
    assert layouts.sizes(184, 1.0, "narrower", 8) is None  # 8 heads of 23


@pytest.mark.parametrize(("share", "width"), [(1.0, 64), (0.9, 56), (0.5, 32), (0.1, 4), (0.05, 2), (0.01, 2)])
def test_free_heads_become_narrower_by_multiples_of_eight_as_long_as_that_is_possible(share: float, width: int) -> None:
    layouts = HeadLayouts.of(LlamaConfig(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64))
    assert layouts.is_free
    found = (layouts.sizes(128, share, "narrower", grain) for grain in layouts.grains)
    assert next(heads for heads in found if heads is not None)["head_dim"] == width


def test_free_heads_shrink_by_groups() -> None:
    space = Space.of(ARCHITECTURES["llama"].build(), round_to=4)
    assert space.axes == ("width", "inner", "heads", "depth")
    shape = space.shape(Mix({"heads": 1.0}, "fewer"), 0.5)
    assert (shape["hidden_size"], shape["intermediate_size"]) == (48, 96)
    assert (shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]) == (2, 1, 12)


def test_sizes_are_multiples_of_the_step_or_the_teachers(tiny_bert: BertForMaskedLM) -> None:
    space = Space.of(tiny_bert, round_to=8)
    found = [space.shape(Mix(EVEN, "narrower"), scale / 20) for scale in range(1, 21)]
    assert {each["hidden_size"] for each in found} == {8, 16, 24}
    assert all(each["intermediate_size"] % 8 == 0 for each in found)


def test_layers_are_one_more_axis_and_are_counted(tiny_bert: BertForMaskedLM) -> None:
    space = Space.of(tiny_bert, round_to=4, layers=(1, 2))
    assert space.axes == ("width", "inner", "depth")
    shape = space.shape(Mix({"depth": 1.0}, "narrower"), 0.5)
    assert shape == {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
    layer = sum(weight.numel() for weight in tiny_bert.bert.encoder.layer[0].parameters())
    assert model_size(tiny_bert).total - model_size(space.skeleton(shape)).total == layer


def test_by_default_every_number_of_layers_is_allowed_that_the_config_counts() -> None:
    deep = ARCHITECTURES["bert"].build()
    assert Space.of(deep).layers == tuple(range(1, deep.config.num_hidden_layers + 1))
    assert Space.of(bart(0)).layers == (bart(0).config.num_hidden_layers,)


def test_lists_with_an_entry_for_each_layer_follow_the_number_of_layers() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    teacher = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_hidden_layers=3, **sizes)).eval()
    count = teacher.config.num_hidden_layers
    assert len(teacher.config.layer_types) == count
    space = Space.of(teacher, round_to=4)
    shape = {**space.shape(Mix({}, "fewer"), 1.0), "num_hidden_layers": count - 1}
    config = space.student_config(shape)
    assert (config.num_hidden_layers, len(config.layer_types)) == (count - 1, count - 1)
    assert model_size(space.skeleton(shape)) == model_size(empty_student(teacher, space.plan(shape).config))


def test_a_request_names_the_layers_that_an_order_leaves(tiny_bert: BertForMaskedLM) -> None:
    space = Space.of(tiny_bert, round_to=4)
    shape = {"hidden_size": 24, "num_hidden_layers": 1}
    assert space.config(shape).requested == shape
    order = LayerOrder(2, (0,), "greedy")
    assert space.config(shape, order).requested == {"hidden_size": 24, "layers": [1]}
    assert space.config({"hidden_size": 12, "num_hidden_layers": 2}, order).requested == {"hidden_size": 12}


def test_encoder_decoders_shrink_by_one_scale() -> None:
    teacher = bart(0)
    space = Space.of(teacher, round_to=4)
    assert space.one_scale
    assert space.axes == ("width",)
    shape = space.shape(Mix(EVEN, "narrower"), 0.5)
    assert {name: size for name, size in shape.items() if name != "num_hidden_layers"} == {
        "hidden_size": 8,  # of its 4 heads 12 would make odd ones
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
    }
    assert model_size(space.skeleton(shape)) == model_size(empty_student(teacher, space.plan(shape).config))


def test_a_skeleton_has_no_tensors_and_the_teachers_dtype(tiny_bert: BertForMaskedLM) -> None:
    half = tiny_bert.half()
    found = student_skeleton(half, half.config)
    assert all(weight.is_meta and weight.dtype == torch.float16 for weight in found.parameters())
    assert model_size(found) == model_size(half)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"round_to": 0}, "round_to=0 is not a positive integer"),
        ({"layers": (0, 2)}, r"layers=\[0, 2\]: the teacher has 2 layers, so 0 is none of 1 to 2"),
        ({"layers": (3,)}, r"3 is none of 1 to 2"),
    ],
)
def test_illegal_steps_and_layers_are_refused(tiny_bert: BertForMaskedLM, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Space.of(tiny_bert, **given)


def test_a_teacher_without_sizes_that_may_shrink_is_refused(
    tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(teacher: PreTrainedModel, config: Any) -> None:
        raise PlanError("- frozen")

    monkeypatch.setattr("wid_hf.budget.shapes.plan_student", refuse)
    with pytest.raises(PlanError, match="No size of this BertForMaskedLM may shrink"):
        Space.of(tiny_bert, layers=(2,))
    assert Space.of(tiny_bert).axes == ("depth",)  # fewer layers need no width that shrinks
