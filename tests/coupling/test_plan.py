"""Plans: which axes are coupled, what size each gets, and which contradictions are refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from architectures import ARCHITECTURES, every_case, planned
from torch import Tensor, nn
from transformers import BertForMaskedLM

from wid_hf import Plan, PlanError
from wid_hf.coupling import Coupling, make_plan, trace
from wid_hf.coupling.dims import find


def group(plan: Plan, member: str) -> Coupling:
    (found,) = [coupling for coupling in plan.couplings if member in coupling.members]
    return found


@every_case
def test_couplings_list_every_axis_of_every_weight_exactly_once(family: str, strategy: str) -> None:
    plan = planned(family, strategy)
    listed = Counter(member for coupling in plan.couplings for member in coupling.members)
    axes = [f"{w}[{axis}]" for w, dims in plan.axes.items() for axis, dim in enumerate(dims) if dim.size > 1]
    assert listed == Counter(axes)


@every_case
def test_every_frozen_row_has_a_reason_and_what_shrinks_is_smaller(family: str, strategy: str) -> None:
    plan = planned(family, strategy)
    frozen = [coupling.frozen for coupling in plan.couplings if coupling.frozen is not None]
    assert frozen
    assert all(reason.text and reason.operation.startswith("aten.") for reason in frozen)
    modules = dict(ARCHITECTURES[family].build().named_modules())  # the root is named ""
    assert {reason.module for reason in frozen} <= set(modules)
    assert all(coupling.student_size <= coupling.teacher_size for coupling in plan.couplings)
    assert any(coupling.student_size * 2 == coupling.teacher_size for coupling in plan.couplings)


@every_case
def test_a_printed_plan_shows_every_structure_and_both_sizes(family: str, strategy: str) -> None:
    plan = planned(family, strategy)
    words = str(plan).split()
    for coupling in plan.couplings:
        if coupling.student_size != coupling.teacher_size:
            assert {str(coupling.teacher_size), str(coupling.student_size)} <= set(words)
    for factor in plan.scales.values():
        assert f"starts scaled by {factor:.4g}" in str(plan)


def test_bert_has_one_residual_group_with_all_readers_and_writers() -> None:
    residual = group(planned("bert", "dim"), "bert.embeddings.word_embeddings.weight[1]")
    assert (residual.teacher_size, residual.student_size, residual.frozen) == (48, 24, None)
    layers = {
        f"bert.encoder.layer.{n}.{member}"
        for n in (0, 1)
        for member in (
            "attention.self.query.weight[1]",
            "attention.self.key.weight[1]",
            "attention.self.value.weight[1]",
            "attention.output.dense.weight[0]",
            "attention.output.dense.bias[0]",
            "attention.output.LayerNorm.weight[0]",
            "attention.output.LayerNorm.bias[0]",
            "intermediate.dense.weight[1]",
            "output.dense.weight[0]",
            "output.dense.bias[0]",
            "output.LayerNorm.weight[0]",
            "output.LayerNorm.bias[0]",
        )
    }
    ends = {
        "bert.embeddings.word_embeddings.weight[1]",
        "bert.embeddings.position_embeddings.weight[1]",
        "bert.embeddings.token_type_embeddings.weight[1]",
        "bert.embeddings.LayerNorm.weight[0]",
        "bert.embeddings.LayerNorm.bias[0]",
        "cls.predictions.transform.dense.weight[1]",
        "cls.predictions.transform.dense.weight[0]",
        "cls.predictions.transform.dense.bias[0]",
        "cls.predictions.transform.LayerNorm.weight[0]",
        "cls.predictions.transform.LayerNorm.bias[0]",
    }
    assert set(residual.members) == layers | ends


@pytest.mark.parametrize(("strategy", "student"), [("dim", "4 x 6"), ("head", "2 x 12")])
def test_bert_couples_queries_with_keys_and_values_with_the_output_separately(strategy: str, student: str) -> None:
    plan, layer = planned("bert", strategy), "bert.encoder.layer.0.attention"
    queries = group(plan, f"{layer}.self.query.weight[0]")
    values = group(plan, f"{layer}.self.value.weight[0]")
    assert set(queries.members) == {
        f"{layer}.self.{name}[0]" for name in ("query.weight", "query.bias", "key.weight", "key.bias")
    }
    assert set(values.members) == {
        f"{layer}.self.value.weight[0]",
        f"{layer}.self.value.bias[0]",
        f"{layer}.output.dense.weight[1]",
    }
    assert (queries.structure, queries.student_structure) == ("4 x 12", student)
    assert (values.structure, values.student_structure) == ("4 x 12", student)


def test_bert_feed_forward_widths_are_one_group_per_layer() -> None:
    plan = planned("bert", "dim")
    for layer in ("bert.encoder.layer.0", "bert.encoder.layer.1"):
        inner = group(plan, f"{layer}.intermediate.dense.weight[0]")
        assert set(inner.members) == {
            f"{layer}.intermediate.dense.weight[0]",
            f"{layer}.intermediate.dense.bias[0]",
            f"{layer}.output.dense.weight[1]",
        }
        assert (inner.teacher_size, inner.student_size) == (96, 48)


def test_bert_vocabulary_and_positions_are_frozen_because_they_are_looked_up() -> None:
    plan = planned("bert", "dim")
    vocabulary = group(plan, "bert.embeddings.word_embeddings.weight[0]")
    assert vocabulary.members == ("bert.embeddings.word_embeddings.weight[0]", "cls.predictions.bias[0]")
    positions = group(plan, "bert.embeddings.position_embeddings.weight[0]")
    for frozen, table in ((vocabulary.frozen, "word_embeddings"), (positions.frozen, "position_embeddings")):
        assert (frozen.operation, frozen.module) == ("aten.embedding.default", f"bert.embeddings.{table}")
    assert positions.student_size == positions.teacher_size == 40


def test_bert_embedding_tables_are_known_to_be_summed() -> None:
    prefix = "bert.embeddings."
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    assert planned("bert", "dim").tables == (frozenset(f"{prefix}{name}.weight" for name in names),)


def test_gpt2_fused_projection_is_a_concatenation_of_three_products() -> None:
    plan = planned("gpt2", "head")
    fused = group(plan, "transformer.h.0.attn.c_attn.weight[1]")
    assert fused.members == ("transformer.h.0.attn.c_attn.weight[1]", "transformer.h.0.attn.c_attn.bias[0]")
    assert fused.structure == "(4 x 12) + (4 x 12) + (4 x 12)"
    assert (fused.teacher_size, fused.student_size) == (144, 72)
    assert group(plan, "transformer.h.0.mlp.c_fc.weight[1]").student_size == 96  # n_inner follows n_embd


def test_llama_query_heads_are_key_value_heads_times_groups() -> None:
    plan, layer = planned("llama", "head"), "model.layers.0.self_attn"
    assert group(plan, f"{layer}.q_proj.weight[0]").structure == "2 x 2 x (6 + 6)"
    assert group(plan, f"{layer}.k_proj.weight[0]").structure == "2 x (6 + 6)"
    assert plan.shape(f"{layer}.q_proj.weight") == (24, 24)
    assert plan.shape(f"{layer}.k_proj.weight") == (12, 24)
    assert group(plan, f"{layer}.o_proj.weight[1]").student_structure == "1 x 2 x 12"
    frozen = group(plan, f"{layer}.q_proj.weight[0]").frozen
    assert (frozen.operation, frozen.module) == ("aten.mul.Tensor", "model.layers.0.self_attn")
    assert "`model.rotary_emb.inv_freq`" in frozen.text


def test_llama_heads_keep_their_width_when_only_widths_may_shrink() -> None:
    plan = planned("llama", "dim")
    assert plan.shape("model.layers.0.self_attn.q_proj.weight") == (48, 24)
    assert plan.shape("model.layers.0.mlp.gate_proj.weight") == (48, 24)


def test_head_widths_lie_under_their_heads_and_residual_indices_under_nothing() -> None:
    plan = planned("bert", "dim")
    heads, width = map(find, plan.axes["bert.encoder.layer.0.attention.self.query.weight"][0].factors)
    assert plan.under[width] is heads
    assert heads not in plan.under
    assert find(plan.axes["bert.embeddings.LayerNorm.weight"][0]) not in plan.under


def shapes_of(model: torch.nn.Module, **changed: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(weight.shape) for name, weight in trace(model, INPUTS).weights.items()}
    return shapes | {name.replace("__", "."): shape for name, shape in changed.items()}


INPUTS = {"input_ids": torch.arange(21).view(3, 7)}
QUERY, KEY = (f"bert.encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key"))


def test_a_conflict_names_both_places_and_both_sizes(tiny_bert: BertForMaskedLM) -> None:
    shapes = shapes_of(tiny_bert)
    norm, word = "bert.embeddings.LayerNorm.weight", "bert.embeddings.word_embeddings.weight"
    shapes |= {word: (60, 12), norm: (16,)}
    message = rf"conflicting sizes: `{word}` axis 1 requires 12, `{norm}` axis 0 requires 16, .* dimension of 24"
    with pytest.raises(PlanError, match=message):
        make_plan(trace(tiny_bert, INPUTS), shapes)


def test_a_dimension_that_would_widen_is_refused(tiny_bert: BertForMaskedLM) -> None:
    shapes = shapes_of(tiny_bert) | {"bert.encoder.layer.0.intermediate.dense.weight": (50, 24)}
    with pytest.raises(PlanError, match=r"intermediate\.dense\.weight` axis 0: 50 is wider than the teacher's 48"):
        make_plan(trace(tiny_bert, INPUTS), shapes)


def test_weights_that_only_one_of_the_two_has_are_named(tiny_bert: BertForMaskedLM) -> None:
    shapes = shapes_of(tiny_bert)
    shapes["extra.weight"] = shapes.pop(QUERY)
    with pytest.raises(PlanError) as refusal:
        make_plan(trace(tiny_bert, INPUTS), shapes)
    assert f"`{QUERY}` of the teacher has no counterpart in the student" in str(refusal.value)
    assert "the student has weights that the teacher lacks: 'extra.weight'" in str(refusal.value)


def test_a_weight_with_another_number_of_axes_is_refused(tiny_bert: BertForMaskedLM) -> None:
    shapes = shapes_of(tiny_bert) | {KEY: (24, 6, 4)}
    with pytest.raises(PlanError, match=rf"`{KEY}` has 2 axes in the teacher, 3 in the student"):
        make_plan(trace(tiny_bert, INPUTS), shapes)


class HalfFrozen(nn.Module):
    """A width of which one half meets a constant, so that only the other half may shrink."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.up(x).split(8, dim=-1)
        return first * torch.arange(8), second


def test_a_size_that_frozen_parts_forbid_names_the_operation_that_froze_them() -> None:
    seen = trace(HalfFrozen(16), {"x": torch.randn(3, 6)})
    words = r"`up.weight` axis 0: 8 cannot be .* across 8 \+ 8: 8 of its entries .* positions \(aten\.arange\.default\)"
    with pytest.raises(PlanError, match=words):
        make_plan(seen, {"up.weight": (8, 6), "up.bias": (8,)})


def test_long_lists_of_contradictions_are_cut_short(tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(PlanError, match="- and 36 more like these") as refusal:
        make_plan(trace(tiny_bert, INPUTS), dict.fromkeys(list(shapes_of(tiny_bert))[:-30], (1, 2, 3)))
    assert str(refusal.value).count("\n") == 6


class SizedPath(nn.Module):
    """Heads whose module begins differently where they are wide, and once more stores in another order."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.up, self.heads, self.width = nn.Linear(6, heads * width), heads, width

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = h.relu().exp() if self.width > 4 else h.relu().sin().exp()
        h = h.contiguous() if self.width > 4 else h.clone()
        return h.reshape(3, self.heads, self.width).sum(1)


@pytest.mark.parametrize(("heads", "width"), [(4, 4), (4, 2)])
def test_what_both_forwards_did_alike_after_they_differed_tells_heads_from_widths(heads: int, width: int) -> None:
    inputs = {"x": torch.randn(3, 6)}
    student = SizedPath(heads, width)
    shapes = {name: tuple(weight.shape) for name, weight in student.named_parameters()}
    plan = make_plan(trace(SizedPath(4, 8), inputs), shapes, trace(student, inputs))
    assert [plan.size(factor) for factor in find(plan.axes["up.weight"][0]).factors] == [heads, width]
