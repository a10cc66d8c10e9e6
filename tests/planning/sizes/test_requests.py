"""What a request means that leaves heads to wid-hf: which student comes out, what is told, and that it stays so."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, COMMON, every_family
from peft import PeftModel
from tiny import tiny_model
from toys import save_teacher, write_texts
from transformers import PretrainedConfig, PreTrainedModel

import wid_hf.planning.student_plan
from wid_hf import ConfigError, PlanError, TeacherError, WidConfig, WidError, get_wid_model, plan_student
from wid_hf.adapter.adapter_state import _sizes
from wid_hf.coupling import Trace
from wid_hf.hub.cards import adapter_card
from wid_hf.planning.sizes import Request
from wid_hf.tools.compress import CompressSettings, compress

IDS = {"input_ids": torch.arange(21).view(3, 7) + 5}


def request(config: PretrainedConfig, **sizes: Any) -> list[dict[str, Any]]:
    """Return the sizes of every meaning of a request, the best first."""
    return [meaning.sizes for meaning in Request(config, WidConfig(**sizes)).meanings]


def settled(teacher: PreTrainedModel, inputs: dict[str, Any] | None = None, **sizes: Any) -> PretrainedConfig:
    """Return the student's config, having made sure that nothing was moved."""
    planned = plan_student(teacher, WidConfig(**sizes), inputs=inputs)
    assert planned.settled.moved == ()
    return planned.config


@every_family
def test_auto_is_the_student_of_the_right_explicit_strategy(family: str) -> None:
    row = ARCHITECTURES[family]
    right = "head" if family in ("llama", "modernbert") else "dim"
    auto, explicit = (
        get_wid_model(row.build(), row.config(strategy), example_inputs=row.inputs) for strategy in ("auto", right)
    )
    assert auto.base_model.settled.strategy == right
    auto, explicit = auto.merge_and_unload(), explicit.merge_and_unload()
    assert auto.config.to_dict() == explicit.config.to_dict()
    for name, weight in explicit.state_dict().items():
        assert torch.equal(auto.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("name", "class_name", "heads"),
    [
        ("gte", "GteForMaskedLM", "fewer"),
        ("esmc", "EsmcForMaskedLM", "fewer"),
        ("gpt_neox", "GPTNeoXForCausalLM", "fewer"),
        ("granite", "GraniteForCausalLM", "fewer"),
        ("cohere", "CohereForCausalLM", "fewer"),
        ("falcon", "FalconForCausalLM", "fewer"),
        ("apertus", "ApertusForCausalLM", "fewer"),
        ("exaone4", "Exaone4ForCausalLM", "fewer"),
        ("gpt2", "GPT2LMHeadModel", "narrower"),
        ("opt", "OPTForCausalLM", "narrower"),
        ("bloom", "BloomForCausalLM", "narrower"),
        ("inkling2_text", "Inkling2ForCausalLM", "narrower"),
    ],
)
def test_half_the_hidden_size_alone_makes_a_student(name: str, class_name: str, heads: str) -> None:
    if not hasattr(hf, class_name):
        pytest.skip(f"this transformers has no {class_name}")
    teacher = tiny_model(name, class_name)
    old = teacher.config
    new = settled(teacher, hidden_size=old.hidden_size // 2)
    assert new.hidden_size == old.hidden_size // 2
    share = 2 if heads == "fewer" else 1
    assert new.num_attention_heads == old.num_attention_heads // share
    if (groups := getattr(old, "num_key_value_heads", None)) not in (None, 1):
        assert new.num_key_value_heads == groups // share


def llama(**sizes: Any) -> PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**COMMON, **sizes})).eval()


def granite(**sizes: Any) -> PreTrainedModel:
    """A model with rotary positions whose head width follows from its hidden size and number of heads."""
    return hf.GraniteForCausalLM(hf.GraniteConfig(**{**COMMON, **sizes})).eval()


@pytest.mark.parametrize(
    ("sizes", "hidden", "heads", "groups"),
    [
        ({"num_key_value_heads": 2}, 24, 2, 1),  # groups of as many
        ({"num_key_value_heads": 1}, 24, 2, 1),  # a single one is kept
        ({"num_key_value_heads": 4}, 36, 3, 3),  # one for each query head
        # 3/8 of 4 groups is no number: three groups of one, since no group may grow.
        ({"hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}, 36, 3, 3),
        ({"hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2}, 48, 4, 1),
    ],
)
def test_fewer_heads_keep_legal_groups(sizes: dict[str, int], hidden: int, heads: int, groups: int) -> None:
    student = settled(granite(**sizes), hidden_size=hidden)
    assert (student.hidden_size, student.num_attention_heads, student.num_key_value_heads) == (hidden, heads, groups)


def test_heads_that_are_stated_stay_where_neither_narrower_nor_fewer_ones_fit() -> None:
    """Of 4 heads on 2 groups no 3 can be kept, but the config can say that heads fill more than the hidden size."""
    student = settled(llama(num_key_value_heads=2), hidden_size=36)
    assert (student.hidden_size, student.num_attention_heads, student.num_key_value_heads) == (36, 4, 2)
    assert student.head_dim == 12


def test_another_number_of_heads_takes_the_size_that_was_asked_for() -> None:
    row = ARCHITECTURES["bert"]
    planned = plan_student(row.build(), WidConfig(hidden_size=30))
    assert (planned.config.hidden_size, planned.config.num_attention_heads) == (30, 3)
    assert "does not divide into 4 heads" in planned.settled.explanation
    assert planned.settled.moved == ()


@pytest.mark.parametrize(
    ("family", "asked", "taken", "heads"),
    [
        ("bert", 31, 30, 3),  # as near as 32, and smaller
        ("bert", 47, 44, 4),
        ("modernbert", 30, 24, 2),  # rotary positions leave heads of width 12 only
        ("modernbert", 31, 36, 3),
        ("modernbert", 5, 12, 1),
        ("modernbert", 47, 36, 3),
    ],
)
def test_the_nearest_hidden_size_is_taken_loudly(family: str, asked: int, taken: int, heads: int) -> None:
    row = ARCHITECTURES[family]
    with pytest.warns(UserWarning, match=f"NOT the size requested: hidden_size={taken} instead of {asked}"):
        planned = plan_student(row.build(), WidConfig(hidden_size=asked), inputs=row.inputs)
    student = planned.config
    assert (student.hidden_size, student.num_attention_heads) == (taken, heads)
    assert f"hidden_size={taken} instead of {asked}" in planned.plan.notes[0]


def test_nothing_is_said_where_the_size_asked_for_is_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plan_student(ARCHITECTURES["bert"].build(), WidConfig(hidden_size=24))


def test_each_part_of_a_composite_model_takes_its_own_way() -> None:
    """Fewer heads for the text's rotary positions, narrower ones for three heads of the images, that do not halve."""
    text = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 24}
    config = hf.Gemma3Config(
        text_config={**text, "vocab_size": 60, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 4},
        vision_config={**text, "num_attention_heads": 3, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=50,
        image_token_id=50,
        boi_token_index=51,
        eoi_token_index=52,
    )
    teacher = hf.Gemma3ForConditionalGeneration(config).eval()
    sizes = {"text_config": {"hidden_size": 24}, "vision_config": {"hidden_size": 24}}
    student = settled(teacher, overrides=sizes)
    text, vision = student.text_config, student.vision_config
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (2, 1, 12)
    assert (vision.hidden_size, vision.num_attention_heads) == (24, 3)


def test_heads_of_single_layers_drop_with_the_others() -> None:
    teacher = tiny_model("laguna", "LagunaForCausalLM")
    half = settled(teacher, hidden_size=teacher.config.hidden_size // 2)
    old = teacher.config.num_attention_heads_per_layer
    assert list(half.num_attention_heads_per_layer) == [count // 2 for count in old]


@pytest.mark.parametrize(("width", "heads"), [(12, [3, 6]), (16, [2, 4])])
def test_heads_of_stages_drop_where_the_width_does_not_divide(width: int, heads: list[int]) -> None:
    config = hf.SwinConfig(image_size=16, patch_size=2, embed_dim=24, depths=[1, 1], num_heads=[3, 6], window_size=2)
    student = settled(hf.SwinForImageClassification(config).eval(), overrides={"embed_dim": width})
    assert (student.embed_dim, list(student.num_heads)) == (width, heads)


def test_an_embedding_as_wide_as_the_new_hidden_size_shrinks_as_well() -> None:
    """ELECTRA has a projection only between different widths, which half the hidden size would make equal."""
    config = hf.ElectraConfig(embedding_size=24, **COMMON)
    student = settled(hf.ElectraForMaskedLM(config).eval(), hidden_size=24)
    assert (student.hidden_size, student.embedding_size) == (24, 12)


def test_an_attention_that_reads_two_streams_follows_them() -> None:
    teacher = tiny_model("zamba", "ZambaForCausalLM")
    assert teacher.config.attention_hidden_size == 2 * teacher.config.hidden_size
    student = settled(teacher, hidden_size=teacher.config.hidden_size // 2)
    assert student.attention_hidden_size == teacher.config.hidden_size


def test_lists_that_add_up_to_the_hidden_size_follow_it() -> None:
    teacher = tiny_model("reformer", "ReformerForMaskedLM")
    assert sum(teacher.config.axial_pos_embds_dim) == teacher.config.hidden_size
    student = settled(teacher, hidden_size=teacher.config.hidden_size // 2)
    assert sum(student.axial_pos_embds_dim) == student.hidden_size == teacher.config.hidden_size // 2


def test_a_number_of_heads_that_was_asked_for_is_kept_and_its_groups_follow() -> None:
    student = settled(granite(num_key_value_heads=4), hidden_size=24, num_attention_heads=2)
    assert (student.num_attention_heads, student.num_key_value_heads) == (2, 2)


def test_the_teacher_is_traced_once_however_much_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ARCHITECTURES["modernbert"]
    teacher = row.build()
    traced: list[object] = []
    made = Trace.__init__

    def counted(self: Trace, model: Any, *args: Any, **kwargs: Any) -> None:
        traced.append(model)
        made(self, model, *args, **kwargs)

    monkeypatch.setattr(Trace, "__init__", counted)
    with pytest.warns(UserWarning, match="hidden_size=24 instead of 30"):
        plan_student(teacher, WidConfig(hidden_size=30), inputs=row.inputs)
    assert len(traced) > 1
    assert sum(model is teacher for model in traced) == 1


def test_a_refusal_tells_all_that_was_tried() -> None:
    """Four heads of the teacher's 12 fill its own hidden size, and rotary positions leave no other width."""
    row = ARCHITECTURES["modernbert"]
    with pytest.raises(PlanError) as refusal:
        plan_student(row.build(), WidConfig(hidden_size=24, num_attention_heads=4), inputs=row.inputs)
    text = str(refusal.value)
    assert "With narrower heads:" in text and "With other hidden sizes (hidden_size=20, hidden_size=28" in text
    assert text.count("`") >= 2


def test_what_fails_for_another_reason_than_heads_is_tried_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    shapes = wid_hf.planning.student_plan._weight_shapes
    monkeypatch.setattr(
        wid_hf.planning.student_plan, "_weight_shapes", lambda *args: tried.append(args[1]) or shapes(*args)
    )
    with pytest.raises(PlanError, match="looked up by number"):
        plan_student(ARCHITECTURES["bert"].build(), WidConfig(hidden_size=24, overrides={"vocab_size": 50}))
    assert len(tried) <= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Merged by force")
@pytest.mark.parametrize("family", ["bert", "llama", "modernbert", "t5"])
@pytest.mark.parametrize("schedule", ["narrow", "progressive"])
def test_a_saved_adapter_leaves_nothing_open_and_loads_to_the_same_student(
    family: str, schedule: str, tmp_path: Path
) -> None:
    row = ARCHITECTURES[family]
    config = WidConfig(**row.halved, schedule=schedule, init="identity")
    model = get_wid_model(row.build(), config, example_inputs=row.inputs)
    assert config.head_strategy == "auto", "the caller's own request was changed"
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["head_strategy"] == model.base_model.settled.strategy
    assert saved["num_attention_heads"] == model.base_model.settled.sizes["num_attention_heads"]
    assert saved["settled"] == str(model.base_model.settled)
    again = PeftModel.from_pretrained(row.build(), tmp_path)
    assert str(again.base_model.settled) == saved["settled"]
    students = [one.merge_and_unload(force=True) for one in (model, again)]
    assert students[0].config.to_dict() == students[1].config.to_dict()
    for name, weight in students[0].state_dict().items():
        assert torch.equal(students[1].state_dict()[name], weight), name


def test_layers_are_the_same_sizes_by_number_and_by_name() -> None:
    by_number, by_name = (
        WidConfig(overrides={"per_layer_config": {kind(at): {"head_dim": 8} for at in (2, 10)}}) for kind in (int, str)
    )
    assert _sizes(by_number) == _sizes(by_name)


@every_family
def test_the_sizes_of_a_settled_request_mean_the_same_by_either_strategy(family: str) -> None:
    row = ARCHITECTURES[family]
    planned = plan_student(row.build(), WidConfig(**row.halved), inputs=row.inputs)
    for strategy in ("dim", "head"):
        config = planned.settled.config(WidConfig(**row.halved))
        config.head_strategy = strategy
        (sizes, *more) = Request(row.build().config, config).meanings
        assert not more
        assert sizes.sizes == planned.settled.sizes


def test_report_and_cards_say_what_heads_became_and_why(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", hf.BertForMaskedLM)
    config = WidConfig(hidden_size=15, init="identity")  # 15 does not divide into 4 heads of 6
    compress(
        str(teacher),
        str(write_texts(tmp_path / "t.txt")),
        tmp_path / "s",
        config,
        CompressSettings(steps=0, max_length=12, validation_texts=8),
    )
    report = json.loads((tmp_path / "s" / "wid_report.json").read_text())
    told = "4 heads of width 6 become 3 of width 5."
    assert (report["requested"], report["head_strategy"]) == ({"hidden_size": 15}, "head")
    assert report["settled"].startswith(told) and "does not divide into 4 heads" in report["settled"]
    assert report["settled"] in (tmp_path / "s" / "README.md").read_text()
    model = get_wid_model(hf.BertForMaskedLM.from_pretrained(teacher), config)
    assert report["settled"] in adapter_card(model, "me/adapter").text
    assert report["settled"] in str(model.plan)


class Checked(hf.BertConfig):
    """Checks itself with an error of its own, which is no ValueError."""

    model_type = "checked"

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hidden_size" and value == 12:
            raise LookupError("twelve is unlucky")
        super().__setattr__(name, value)


class Picky(hf.BertForMaskedLM):
    config_class = Checked

    def __init__(self, config: hf.BertConfig) -> None:
        if config.hidden_size == 16:
            raise KeyError("sixteen")
        super().__init__(config)


class TwoArguments(hf.BertForMaskedLM):
    def __init__(self, config: hf.BertConfig, extra: int) -> None:
        super().__init__(config)
        self.extra = extra


@pytest.mark.parametrize(("size", "told"), [(12, "twelve is unlucky"), (16, "sixteen")])
def test_whatever_a_config_or_a_class_raises_comes_as_a_refusal(size: int, told: str) -> None:
    teacher = Picky(Checked(**COMMON)).eval()
    with pytest.raises(WidError, match=told):
        plan_student(teacher, WidConfig(hidden_size=size, head_strategy="dim"))


def test_a_class_that_takes_more_than_a_config_is_refused_before_anything_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = TwoArguments(hf.BertConfig(**COMMON), 3).eval()
    monkeypatch.setattr(wid_hf.planning.student_plan, "trace_teacher", None)
    with pytest.raises(
        TeacherError, match=r"TwoArguments\(config\) cannot be made: its constructor also needs extra\."
    ):
        plan_student(teacher, WidConfig(hidden_size=24))


def test_a_student_whose_config_would_refuse_to_be_saved_is_not_planned(tmp_path: Path) -> None:
    """Some configs check their sizes only when they are saved, which would be after training."""
    teacher = hf.LlamaForCausalLM(hf.LlamaConfig(**{**COMMON, "hidden_size": 32, "head_dim": 8})).eval()
    with pytest.raises(WidError, match=r"not a multiple of|does not divide"):
        plan_student(teacher, WidConfig(hidden_size=10, head_strategy="dim"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planned = plan_student(teacher, WidConfig(hidden_size=10))
    planned.config.save_pretrained(tmp_path)
    assert planned.config.hidden_size % planned.config.num_attention_heads == 0


def test_inner_widths_alone_concern_no_heads() -> None:
    planned = plan_student(llama(num_key_value_heads=2), WidConfig(intermediate_size=48))
    assert str(planned.settled) == ""
    assert planned.config.num_attention_heads == 4


def test_a_hidden_size_that_heads_do_not_fill_stays_out_of_the_arithmetic() -> None:
    """50 does not divide into 4 heads, and need not where it stays."""
    config = hf.GPT2Config(n_embd=48, n_head=4, n_layer=1, vocab_size=60, n_positions=32, n_inner=96)
    config.n_embd = 50
    assert request(config, overrides={"n_inner": 48}) == [{"n_inner": 48}]


def test_sizes_that_the_config_leaves_open_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"its sizes are .*n_inner"):
        plan_student(ARCHITECTURES["gpt2"].build(), WidConfig(overrides={"inner": 3}))


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_an_adapter_that_was_saved_before_there_was_auto_loads_to_the_student_it_was(strategy: str) -> None:
    """The folder was written by commit e5730c6, the merged student beside it by the same run."""
    folder = Path(__file__).parents[2] / "adapter" / "saved_adapters"
    teacher, student = (hf.LlamaForCausalLM.from_pretrained(folder / at) for at in ("teacher", f"{strategy}-student"))
    merged = PeftModel.from_pretrained(teacher, folder / strategy).merge_and_unload()
    assert merged.config.num_attention_heads == (4 if strategy == "dim" else 2)
    assert merged.state_dict().keys() == student.state_dict().keys()
    for name, weight in student.state_dict().items():
        assert torch.equal(merged.state_dict()[name], weight), name
