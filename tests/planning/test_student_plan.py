"""Which students are refused, with which words, at what cost; and what a student inherits besides weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, COMMON
from tiny import tiny_model
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
)

import wid_hf.planning.student_plan
from wid_hf import ConfigError, PlanError, TeacherError, WidConfig, get_wid_model, plan_student
from wid_hf.coupling import Trace
from wid_hf.planning.empty_student import empty_student


def state(model: PreTrainedModel) -> tuple[Any, ...]:
    """Everything that a refusal must not change, comparable with ==."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    return weights, model.config.to_dict(), hooks, modes, sorted(vars(model)), [p.grad for p in model.parameters()]


def refused(family: str, error: type[Exception], **sizes: Any) -> str:
    """Ask for a student that must be refused; check that the teacher stays as it was; return the message."""
    row = ARCHITECTURES[family]
    teacher = row.build()
    before = state(teacher)
    with pytest.raises(error, match="student") as refusal:
        get_wid_model(teacher, WidConfig(**sizes), example_inputs=row.inputs)
    assert state(teacher) == before
    return str(refusal.value)


@pytest.fixture
def nothing_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("the student was allocated before it was refused")

    monkeypatch.setattr(wid_hf.planning.student_plan, "empty_student", fail)


no_allocation = pytest.mark.usefixtures("nothing_allocated")


@no_allocation
def test_an_unknown_name_is_refused_and_the_sizes_there_are_are_listed() -> None:
    message = refused("bert", ConfigError, hidden_size=24, overrides={"colour": 3})
    assert "BertConfig has no colour; its sizes are " in message
    assert all(name in message for name in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"))
    assert "pad_token_id" not in message


@no_allocation
@pytest.mark.parametrize("name", ["to_dict", "save_pretrained"])
def test_the_name_of_a_method_is_an_unknown_size(name: str) -> None:
    assert f"BertConfig has no {name}; its sizes are " in refused("bert", ConfigError, overrides={name: 3})


@no_allocation
def test_a_common_name_that_the_teacher_lacks_is_refused_with_the_teachers_own() -> None:
    message = refused("distilbert", ConfigError, hidden_size=24, intermediate_size=48)
    assert "DistilBertConfig has no intermediate_size; its sizes are " in message
    assert " hidden_dim," in message


def test_the_teachers_own_name_works_in_overrides() -> None:
    row = ARCHITECTURES["distilbert"]
    config = WidConfig(overrides={"hidden_dim": 48, "dim": 24})
    student = plan_student(row.build(), config, inputs=row.inputs).config
    assert (student.hidden_dim, student.dim, student.hidden_size) == (48, 24, 24)


@no_allocation
def test_wider_sizes_are_refused_all_at_once() -> None:
    message = refused("bert", ConfigError, hidden_size=96, intermediate_size=100)
    assert "- hidden_size=96 is wider than the teacher's 48; a student can only be narrower" in message
    assert "- intermediate_size=100 is wider than the teacher's 96; a student can only be narrower" in message


@no_allocation
def test_a_student_as_wide_as_its_teacher_is_refused() -> None:
    message = refused("bert", ConfigError, hidden_size=48, intermediate_size=96)
    assert "every size equals the teacher's; give at least one smaller size" in message


@no_allocation
@pytest.mark.parametrize(
    ("family", "strategy", "message"),
    [
        ("bert", "dim", "hidden_size=30 does not divide into 4 heads; nearest legal: 28, 32"),
        ("bert", "head", "hidden_size=30 keeps heads of width 12 only in steps of 12; nearest legal: 24, 36"),
        ("llama", "head", "hidden_size=30 keeps heads of width 12 only in steps of 24; nearest legal: 24"),
        ("gpt2", "dim", "hidden_size=30 does not divide into 4 heads; nearest legal: 28, 32"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(
    family: str, strategy: str, message: str
) -> None:
    assert message in refused(family, ConfigError, hidden_size=30, head_strategy=strategy)


@pytest.mark.parametrize(("strategy", "size"), [("dim", 28), ("dim", 32), ("head", 24), ("head", 36)])
def test_the_sizes_named_as_legal_are_legal(strategy: str, size: int) -> None:
    row = ARCHITECTURES["bert"]
    config = WidConfig(hidden_size=size, head_strategy=strategy)
    student = plan_student(row.build(), config, inputs=row.inputs).config
    heads = student.num_attention_heads
    assert (student.hidden_size, size // heads) == (size, size // 4 if strategy == "dim" else 12)


@no_allocation
@pytest.mark.parametrize(
    ("name", "size", "weight"), [("vocab_size", 50, "word"), ("max_position_embeddings", 20, "position")]
)
def test_rows_that_are_looked_up_are_refused_with_the_reason(name: str, size: int, weight: str) -> None:
    message = refused("bert", PlanError, hidden_size=24, overrides={name: size})
    assert f"BertForMaskedLM cannot become a student with hidden_size=24, {name}={size} and the head" in message
    assert f"`bert.embeddings.{weight}_embeddings.weight` axis 0: " in message
    assert f"cannot become {size}, because it is looked up by number (aten.embedding.default" in message


def test_a_number_of_layers_in_overrides_is_one_of_layers() -> None:
    planned = plan_student(ARCHITECTURES["bert"].build(), WidConfig(overrides={"num_hidden_layers": 1}))
    assert planned.config.num_hidden_layers == 1
    assert [stack.kept for stack in planned.stacks] == [(0,)]


def test_a_size_that_no_weight_depends_on_makes_no_student() -> None:
    message = refused("llama", PlanError, overrides={"max_position_embeddings": 20})
    assert "- no weight of the student would be smaller than the teacher's" in message


def test_narrower_heads_under_rotary_positions_are_refused_with_the_way_out() -> None:
    message = refused("modernbert", PlanError, hidden_size=24, intermediate_size=48, head_strategy="dim")
    assert "because it meets buffer `model.rotary_emb." in message
    assert 'the head strategy "head" drops whole heads' in message


def test_the_hint_is_for_rotary_positions_only() -> None:
    message = refused("bert", PlanError, hidden_size=24, overrides={"vocab_size": 50}, head_strategy="dim")
    assert "rotary" not in message


@no_allocation
@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("bert", {"text_config": {"hidden_size": 24}}, "BertConfig has no text_config; its sizes are"),
        ("bert", {"hidden_size": {"hidden_size": 24}}, "hidden_size is not a nested config of BertConfig"),
        ("bert", {"hidden_act": 3}, "hidden_act is not a size: the teacher's value is 'gelu'"),
        ("bert", {"is_decoder": 1}, "is_decoder is not a size: the teacher's value is False"),
    ],
)
def test_overrides_that_are_no_sizes_are_refused(family: str, overrides: dict, message: str) -> None:
    assert message in refused(family, ConfigError, overrides=overrides)


@no_allocation
def test_two_names_for_one_size_are_refused() -> None:
    message = refused("gpt2", ConfigError, hidden_size=24, overrides={"n_embd": 12})
    assert "hidden_size and n_embd are one size; give one of them" in message


class Stubborn(BertForMaskedLM):
    def __init__(self, config: BertConfig) -> None:
        if config.hidden_size < 24:
            raise ValueError("I am not made for that")
        super().__init__(config)


@no_allocation
def test_a_model_class_that_refuses_its_config_is_quoted(tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(PlanError, match="- Stubborn itself refuses this config: I am not made for that"):
        get_wid_model(Stubborn(tiny_bert.config).eval(), WidConfig(hidden_size=12))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"hidden_size": 24, "head_strategy": "width"}, "head_strategy='width' is not one of 'auto', 'dim', 'head'"),
        ({"hidden_size": 24, "selection": "last"}, "selection='last' is not one of 'first', 'variance', 'pivots'"),
        ({"hidden_size": 24, "init": "random"}, "init='random' is not one of 'calibrated', 'identity'"),
        ({"hidden_size": 24.0}, r"hidden_size=24\.0 is not a positive integer"),
        ({"hidden_size": 0}, "hidden_size=0 is not a positive integer"),
        ({"hidden_size": True}, "hidden_size=True is not a positive integer"),
        ({"hidden_size": 24, "overrides": [8]}, r"overrides=\[8\] is not a dictionary of sizes by name"),
        ({"overrides": {"hidden_sizes": [8, 0]}}, r"hidden_sizes=\[8, 0\]: 0 is not a positive integer"),
        ({"overrides": {"hidden_sizes": []}}, r"hidden_sizes=\[\] is not a positive integer"),
        ({"overrides": {"text_config": {"d_ff": "8"}}}, r"text_config\.d_ff='8' is not a positive integer"),
        (
            {"hidden_size": 24, "overrides": {"hidden_size": 12}},
            "hidden_size is 24 and, in overrides, 12; give it once",
        ),
        ({}, "no size is given; set hidden_size, intermediate_size, num_hidden_layers or another size to shrink"),
    ],
)
def test_a_config_refuses_words_and_sizes_it_does_not_know(words: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^WidConfig: {message}"):
        WidConfig(**words)


def test_a_config_lists_all_that_is_wrong_with_it() -> None:
    with pytest.raises(ConfigError, match=r"head_strategy='x' .*; init='y' .*; hidden_size=-1 .*; d_ff='z' "):
        WidConfig(hidden_size=-1, head_strategy="x", init="y", overrides={"d_ff": "z"})


def wrapped(teacher: PreTrainedModel) -> Any:
    return get_wid_model(teacher, WidConfig(hidden_size=12))


def on_meta(teacher: PreTrainedModel) -> Any:
    return teacher.to("meta")


def parametrized(teacher: PreTrainedModel) -> Any:
    torch.nn.utils.parametrizations.weight_norm(teacher.bert.pooler or teacher.cls.predictions.transform.dense)
    return teacher


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (on_meta, r"on the meta device and has no weights\. Load it with from_pretrained\(\.\.\.\)"),
        (wrapped, r"wrapped by PEFT already \(PeftModel\)\. Pass the plain model, or call merge_and_unload\(\)"),
        (lambda teacher: wrapped(teacher).base_model, r"wrapped by PEFT already \(WidModel\)"),
        (lambda teacher: wrapped(teacher).base_model.model, "wrapped by PEFT already|parametrized already"),
        (parametrized, r"parametrized already. Pass a model with plain weights"),
        (lambda teacher: torch.nn.Linear(2, 2), "The teacher is a Linear; pass a transformers PreTrainedModel"),
        (lambda teacher: "bert-base", "The teacher is a str; pass a transformers PreTrainedModel"),
    ],
)
def test_what_is_no_stock_model_with_weights_is_refused(
    tiny_bert: BertForMaskedLM, spoil: Callable[[PreTrainedModel], Any], message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        get_wid_model(spoil(tiny_bert), WidConfig(hidden_size=12))


def test_a_teacher_may_be_used_again_after_its_student_was_made(tiny_bert: BertForMaskedLM) -> None:
    before = state(tiny_bert)
    wrapped(tiny_bert)
    assert state(tiny_bert) == before
    assert wrapped(tiny_bert).config.hidden_size == 12


def test_the_students_config_has_the_new_sizes_and_keeps_the_rest() -> None:
    row = ARCHITECTURES["bert"]
    teacher = row.build()
    student = plan_student(teacher, row.config("head"), inputs=row.inputs).config
    old, new = teacher.config.to_dict(), student.to_dict()
    changed = {name: new[name] for name in new if new[name] != old.get(name)}
    assert changed == {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2}
    assert teacher.config.hidden_size == COMMON["hidden_size"]


def test_sizes_may_be_given_under_common_names_that_the_config_maps_to_its_own() -> None:
    row = ARCHITECTURES["gpt2"]
    planned = plan_student(row.build(), WidConfig(hidden_size=24, num_attention_heads=2), inputs=row.inputs)
    assert (planned.config.n_embd, planned.config.n_head) == (24, 2)
    assert planned.plan.shape("transformer.h.0.mlp.c_fc.weight") == (24, 96)


@pytest.fixture
def staged() -> ConvNextForImageClassification:
    config = ConvNextConfig(num_stages=2, hidden_sizes=(16, 24), depths=(1, 1), image_size=16, num_labels=3)
    return ConvNextForImageClassification(config).eval()


def test_a_list_of_sizes_narrows_every_stage(staged: ConvNextForImageClassification) -> None:
    planned = plan_student(staged, WidConfig(overrides={"hidden_sizes": [8, 24]}))
    assert list(planned.config.hidden_sizes) == [8, 24]
    assert planned.plan.shape("convnext.embeddings.patch_embeddings.weight")[0] == 8
    assert planned.plan.shape("classifier.weight") == (3, 24)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_sizes": [8]}, "hidden_sizes=[8] is not a list of 2 sizes, as the teacher's [16, 24] is"),
        ({"hidden_sizes": 8}, "hidden_sizes=8 is not a list of 2 sizes, as the teacher's [16, 24] is"),
        ({"hidden_sizes": [8, 32]}, "hidden_sizes[1]=32 is wider than the teacher's 24"),
        ({"hidden_sizes": [16, 24]}, "every size equals the teacher's"),
        ({"stage_names": [8, 8, 8]}, "stage_names is not a list of sizes"),
        ({"num_channels": [1]}, "num_channels=[1] is a list, the teacher's is 3; give one number"),
    ],
)
def test_lists_that_do_not_fit_the_teachers_are_refused(
    staged: ConvNextForImageClassification, overrides: dict, message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        plan_student(staged, WidConfig(overrides=overrides))
    assert message in str(refusal.value)


def test_llama_keeps_its_stated_head_width_and_drops_key_value_heads_with_query_heads() -> None:
    row = ARCHITECTURES["llama"]
    kept, dropped = (
        plan_student(row.build(), row.config(strategy), inputs=row.inputs).config for strategy in ("dim", "head")
    )
    assert (kept.num_attention_heads, kept.num_key_value_heads, kept.head_dim) == (4, 2, 12)
    assert (dropped.num_attention_heads, dropped.num_key_value_heads, dropped.head_dim) == (2, 1, 12)


def test_a_single_key_value_head_stays_when_query_heads_are_dropped() -> None:
    teacher = LlamaForCausalLM(LlamaConfig(**COMMON, num_key_value_heads=1)).eval()
    planned = plan_student(teacher, WidConfig(hidden_size=24, head_strategy="head"))
    assert (planned.config.num_attention_heads, planned.config.num_key_value_heads) == (2, 1)
    assert planned.plan.shape("model.layers.0.self_attn.k_proj.weight") == (teacher.config.head_dim, 24)


def test_generation_settings_and_label_names_come_along() -> None:
    row = ARCHITECTURES["gpt2"]
    teacher = row.build()
    teacher.generation_config.max_new_tokens = 17
    student = empty_student(teacher, plan_student(teacher, row.config("head"), inputs=row.inputs).config)
    assert student.generation_config.max_new_tokens == 17
    assert student.generation_config is not teacher.generation_config
    names = {0: "bad", 1: "good", 2: "unsure"}
    config = BertConfig(**COMMON, id2label=names, label2id={name: at for at, name in names.items()})
    planned = plan_student(BertForSequenceClassification(config).eval(), WidConfig(hidden_size=24))
    assert planned.config.id2label == names
    assert planned.plan.shape("classifier.weight") == (3, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_student_has_the_teachers_dtype(family: str, dtype: torch.dtype) -> None:
    row = ARCHITECTURES[family]
    teacher = row.build().to(dtype)
    student = get_wid_model(teacher, row.config("head"), example_inputs=row.inputs).merge_and_unload()
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert {name: b.dtype for name, b in student.named_buffers()} == {
        name: b.dtype for name, b in teacher.named_buffers()
    }
    assert student(**row.inputs).logits.dtype == dtype


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_in_the_teachers_mode_and_its_name_is_not_the_teachers(
    tiny_bert: BertForMaskedLM, training: bool
) -> None:
    tiny_bert.config.name_or_path = "someone/teacher"
    tiny_bert.train(training)
    student = empty_student(tiny_bert, plan_student(tiny_bert, WidConfig(hidden_size=12)).config)
    assert student.training is training
    assert student.config.name_or_path == ""
    assert tiny_bert.config.name_or_path == "someone/teacher"


def test_planning_leaves_the_random_state_alone(tiny_bert: BertForMaskedLM) -> None:
    before = torch.get_rng_state()
    plan_student(tiny_bert, WidConfig(hidden_size=12), proof=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_embedding_size_that_equals_the_hidden_size_follows_it() -> None:
    config = ElectraConfig(
        embedding_size=24,
        hidden_size=24,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=48,
        vocab_size=60,
        max_position_embeddings=32,
    )
    student = plan_student(ElectraForMaskedLM(config).eval(), WidConfig(hidden_size=12)).config
    assert (student.hidden_size, student.embedding_size) == (12, 12)


@pytest.mark.parametrize(("strategy", "heads", "width"), [("dim", 4, 8), ("head", 2, 16)])
def test_heads_that_fill_the_expanded_hidden_size_follow_it(strategy: str, heads: int, width: int) -> None:
    config = Mamba2Config(
        vocab_size=30,
        hidden_size=32,
        expand=2,
        num_heads=4,
        head_dim=16,
        n_groups=2,
        state_size=4,
        num_hidden_layers=2,
        chunk_size=4,
    )
    planned = plan_student(Mamba2ForCausalLM(config).eval(), WidConfig(hidden_size=16, head_strategy=strategy))
    student = planned.config
    assert (student.hidden_size, student.num_heads, student.head_dim) == (16, heads, width)
    (gates,) = {planned.plan.shape(name) for name in planned.plan.axes if name.endswith("0.mixer.norm.weight")}
    assert gates == (heads * width,)


def test_a_single_layer_shrinks_where_the_config_has_sizes_by_layer(tmp_path: Path) -> None:
    teacher = tiny_model("dots3_note_text", "Dots3NoteForCausalLM")
    assert [layer.kv_lora_rank for layer in teacher.config.per_layer_config] == [16, 16, 32]
    wanted = WidConfig(overrides={"per_layer_config": {"2": {"kv_lora_rank": 8}}}, init="identity")
    wid = get_wid_model(teacher, wanted)
    student = wid.merge_and_unload()
    assert [layer.kv_lora_rank for layer in student.config.per_layer_config] == [16, 16, 8]
    ids = {"input_ids": torch.arange(21).view(3, 7)}
    assert torch.equal(wid(**ids).logits, student(**ids).logits)
    student.save_pretrained(tmp_path)
    again = type(teacher).from_pretrained(tmp_path)
    assert [layer.kv_lora_rank for layer in again.config.per_layer_config] == [16, 16, 8]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({7: {"qk_nope_head_dim": 48}}, r"per_layer_config\[7\]: the layers are 0 to 2"),
        ({2: {"qk_nope_head_dim": 500}}, r"per_layer_config\[2\]\.qk_nope_head_dim=500 is wider than the teacher's 96"),
        ({2: {"width": 5}}, r"has no per_layer_config\[2\]\.width"),
    ],
)
def test_a_size_that_a_layer_cannot_have_is_refused(layers: dict[int, Any], message: str) -> None:
    teacher = tiny_model("dots3_note_text", "Dots3NoteForCausalLM")
    with pytest.raises(ConfigError, match=message):
        get_wid_model(teacher, WidConfig(overrides={"per_layer_config": layers}))


def test_sizes_for_single_layers_are_refused_where_all_are_alike(tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(ConfigError, match="all layers of this BertConfig have the same sizes; leave it out"):
        get_wid_model(tiny_bert, WidConfig(overrides={"per_layer_config": {0: {"intermediate_size": 24}}}))


class DerivedConfig(BertConfig):
    """Computes a size from another one whenever it is made."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.half_size = self.hidden_size // 2


def test_a_size_that_the_config_computes_is_what_loading_the_student_computes(tiny_bert: BertForMaskedLM) -> None:
    teacher = BertForMaskedLM(DerivedConfig(**tiny_bert.config.to_dict()))
    assert teacher.config.half_size == 12
    student = plan_student(teacher, WidConfig(hidden_size=12)).config
    assert student.half_size == 6


def test_a_plan_cannot_be_changed_and_keeps_no_tensor_that_passed_while_the_teacher_was_watched(
    tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Tensor]] = []
    observe = Trace.observe

    def watched(self: Trace, operation: Any, args: Any, kwargs: Any, out: Any) -> None:
        seen.extend(weakref.ref(tensor) for tensor in tree_leaves(out) if isinstance(tensor, Tensor))
        observe(self, operation, args, kwargs, out)

    monkeypatch.setattr(Trace, "observe", watched)
    planned = plan_student(tiny_bert, WidConfig(hidden_size=12))
    gc.collect()
    assert len(seen) > 100 and not [ref for ref in seen if ref() is not None]
    with pytest.raises(FrozenInstanceError):
        planned.config = tiny_bert.config
    made = empty_student(tiny_bert, planned.config)
    assert {name: planned.plan.shape(name) for name, _ in made.named_parameters()} == {
        name: tuple(parameter.shape) for name, parameter in made.named_parameters()
    }
