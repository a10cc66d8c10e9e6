"""Landmarks of a forward and spaces of its tensors: facts about operations, for families that differ in them."""

from __future__ import annotations

from functools import cache

import pytest
from turning_models import TURNING

from wid_hf import plan_student
from wid_hf.coupling import Plan


@cache
def plan_of(family: str) -> Plan:
    row = TURNING[family]
    return plan_student(row.build(), row.config(row.strategies[0]), inputs=row.inputs).plan


def sums(family: str) -> list[tuple[str, ...]]:
    """The last parts of the names of the weights in each sum."""
    plan = plan_of(family)
    return [
        tuple(plan.weight_inputs[at].weight.removesuffix(".weight") for at, _ in each.terms)
        for each in plan.landmarks.sums
    ]


def space(family: str, weight: str, axis: int, contracted: bool) -> int:
    return plan_of(family).landmarks.spaces[weight, axis, contracted]


@pytest.mark.parametrize(
    ("family", "count", "offset", "biased"),
    [
        ("bert", 6, 0.0, True),
        ("bert-model", 5, 0.0, True),
        ("gpt2", 5, 0.0, True),
        ("gpt-neox", 5, 0.0, True),
        ("vit", 5, 0.0, True),
        ("llama", 5, 0.0, False),
        ("gemma2", 9, 1.0, False),
        ("bart", 12, 0.0, True),
        ("whisper", 12, 0.0, True),
        ("albert", 6, 0.0, True),  # two of them in each layer, with the same vectors
    ],
)
def test_every_norm_is_a_scaling_with_its_offset_and_bias(family: str, count: int, offset: float, biased: bool) -> None:
    found = plan_of(family).landmarks.scalings
    assert len(found) == count
    for each in found:
        assert each.offset == offset
        assert each.bias == (each.vector.removesuffix("weight") + "bias" if biased else None)
        assert each.before != each.after


@pytest.mark.parametrize(
    ("family", "layer", "expected"),
    [
        ("bert", "bert.encoder.layer", [("attention.output.dense",), ("output.dense",)]),
        ("gpt2", "transformer.h", [("attn.c_proj",), ("mlp.c_proj",)]),
        ("llama", "model.layers", [("self_attn.o_proj",), ("mlp.down_proj",)]),
        ("vit", "vit.layers", [("attention.o_proj",), ("mlp.fc2",)]),
        ("gpt-neox", "gpt_neox.layers", [("mlp.dense_4h_to_h", "attention.dense")]),
        ("gemma2", "model.layers", []),  # a norm stands between a branch and the sum
    ],
)
def test_sums_have_the_weights_whose_outputs_are_added(
    family: str, layer: str, expected: list[tuple[str, ...]]
) -> None:
    wanted = [tuple(f"{layer}.{number}.{name}" for name in names) for number in (0, 1) for names in expected]
    assert sums(family) == wanted
    assert all(factor == 1 for each in plan_of(family).landmarks.sums for _, factor in each.terms)


def test_a_residual_that_a_matrix_made_is_no_branch() -> None:
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert sums("albert") == [(f"{layer}.attention.dense",), (f"{layer}.ffn_output",)] * 2


def test_landmarks_are_ordered_as_in_the_forward() -> None:
    plan = plan_of("gpt2")
    places = sorted(plan.landmarks.places.values(), key=lambda each: each.order)
    assert [each.order for each in places] == list(range(len(places)))
    told = {
        "input": lambda at: plan.weight_inputs[at].weight,
        "scaled": lambda at: plan.landmarks.scalings[at].vector,
        "sum": lambda at: "+",
    }
    names = [told[each.kind](each.number).removeprefix("transformer.").removesuffix(".weight") for each in places]
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "+", "ln_2", "mlp.c_fc", "mlp.c_proj", "+"]
    layers = [name if name == "+" else f"h.{number}.{name}" for number in (0, 1) for name in block]
    assert names == [*layers, "ln_f", "wte"]
    for kind in ("input", "scaled", "sum"):
        assert [each.number for each in plan.landmarks.of(kind)] == list(range(len(plan.landmarks.of(kind))))


def test_a_table_that_scores_is_in_another_space_than_its_rows() -> None:
    """Only the last norm's vector stands between the two."""
    table, last = "transformer.wte.weight", plan_of("gpt2").landmarks.scalings[-1]
    assert last.vector == "transformer.ln_f.weight"
    assert space("gpt2", table, 1, contracted=False) == last.before
    assert space("gpt2", table, 1, contracted=True) == last.after


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_masked_lms_head_is_in_another_space_than_the_stream(family: str) -> None:
    landmarks = plan_of(family).landmarks
    table = f"{family}.embeddings.word_embeddings.weight"
    head = next(each for each in landmarks.scalings if each.vector.startswith(("cls", "predictions")))
    scored = space(family, table, 1, contracted=True)
    assert scored == head.after
    stream = {space for each in landmarks.scalings if each is not head for space in (each.before, each.after)}
    assert space(family, table, 1, contracted=False) in stream
    assert not {head.before, head.after} & stream


def test_tables_that_are_added_are_in_one_space_and_pre_norm_sums_stay_in_it() -> None:
    landmarks = plan_of("gpt2").landmarks
    stream = space("gpt2", "transformer.wte.weight", 1, contracted=False)
    assert space("gpt2", "transformer.wpe.weight", 1, contracted=False) == stream
    assert {each.before for each in landmarks.scalings} == {each.space for each in landmarks.sums} == {stream}
    assert len({each.after for each in landmarks.scalings}) == 5


def test_post_norm_sums_are_in_the_space_of_the_norm_before() -> None:
    scalings, added = (getattr(plan_of("bert-model").landmarks, name) for name in ("scalings", "sums"))
    assert [each.space for each in added] == [each.after for each in scalings[:-1]]
    assert [each.before for each in scalings[1:]] == [each.after for each in scalings[:-1]]


def test_what_callers_see_is_in_the_space_after_the_last_norm() -> None:
    landmarks = plan_of("bert-model").landmarks
    assert landmarks.outputs[0][-1] == landmarks.scalings[-1].after
    assert plan_of("bert").landmarks.outputs[0][-1] not in {each.after for each in plan_of("bert").landmarks.scalings}


def test_the_inside_of_blocks_is_in_spaces_of_its_own() -> None:
    inner = space("bert", "bert.encoder.layer.0.intermediate.dense.weight", 0, contracted=False)
    assert inner != space("bert", "bert.encoder.layer.1.intermediate.dense.weight", 0, contracted=False)
    landmarks = plan_of("bert").landmarks
    assert inner not in {each for scaling in landmarks.scalings for each in (scaling.before, scaling.after)}


def test_stacks_that_share_a_table_share_its_space() -> None:
    landmarks = plan_of("bart").landmarks
    first, other = (
        next(each for each in landmarks.scalings if each.vector == f"model.{side}.layernorm_embedding.weight")
        for side in ("encoder", "decoder")
    )
    assert first.before == other.before == space("bart", "model.shared.weight", 1, contracted=False)
    assert first.after != other.after
