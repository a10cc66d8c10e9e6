"""What a user set on the teacher, or on the model that trains, stays set: through the shrink, and in the student."""

from __future__ import annotations

import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, every_case
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from toys import noisy
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, GenerationConfig, GPT2Config
from transformers import GPT2LMHeadModel as GPT2

from wid_hf import OutputError, TeacherError, WidConfig, WidError, WidSchedule, get_wid_model

IDS = {"input_ids": torch.arange(21).view(3, 7) + 2}
SCHEDULE = WidSchedule(
    mask_interval=1, mask_increments=2, decay_to_zero_steps=2, selection="norm"
)  # narrow after step 4
SIZES = {"hidden_size": 12, "intermediate_size": 24}


def tiny_gpt2() -> GPT2:
    config = GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    return GPT2(config).eval()


def identity(teacher: Any, **more: Any) -> PeftModel:
    return get_wid_model(teacher, WidConfig(hidden_size=12, init="identity", **more))


def progressive(teacher: Any) -> PeftModel:
    return get_wid_model(teacher, WidConfig(hidden_size=12, schedule=SCHEDULE))


def trained(model: PeftModel, steps: int = 5, inputs: dict[str, Tensor] = IDS) -> None:
    """Train through the whole schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    model.wid_begin(steps, optimizer)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(**inputs).logits.square().mean().backward()
        optimizer.step()
        model.wid_step(step)
    model.eval()


def logits(model: nn.Module, inputs: dict[str, Any] = IDS) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def rates(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


def checkpoints(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# Set on the teacher, before.


def test_dropout_and_checkpointing_of_the_teacher_are_those_of_the_student(tiny_bert: BertForMaskedLM) -> None:
    for at, module in enumerate(m for m in tiny_bert.modules() if isinstance(m, nn.Dropout)):
        module.p = 0.01 * at
    enable = getattr(tiny_bert, "activation_checkpointing_enable", None) or tiny_bert.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    wanted = rates(tiny_bert)
    for model in (identity(tiny_bert), progressive(tiny_bert)):
        student = model.base_model.model
        assert rates(student) == wanted and checkpoints(student)
    trained(model)
    assert rates(student) == wanted and checkpoints(student)
    merged = model.merge_and_unload()
    assert rates(merged) == wanted and checkpoints(merged)
    merged.train()(**IDS).logits.sum().backward()  # the checkpointing function came along


def test_a_method_replaced_on_one_module_of_the_teacher_runs_in_the_student(tiny_bert: BertForMaskedLM) -> None:
    def doubled(self: nn.Module, states: Tensor) -> Tensor:
        seen.append(self)
        return 2 * type(self).forward(self, states)

    seen: list[nn.Module] = []
    head = tiny_bert.cls
    head.forward = MethodType(doubled, head)
    model = identity(tiny_bert)
    seen.clear()
    patched = logits(model)
    assert seen == [model.base_model.model.cls]
    del head.forward, model.base_model.model.cls.forward
    assert torch.equal(patched, 2 * logits(model))


def test_a_forward_that_would_run_the_teachers_module_is_refused(tiny_bert: BertForMaskedLM) -> None:
    own = tiny_bert.cls.forward
    tiny_bert.cls.forward = lambda states: own(2 * states)
    with pytest.raises(TeacherError, match=r"forward of `cls` was replaced by a function.*types\.MethodType"):
        identity(tiny_bert)


def test_hooks_that_stay_on_the_teacher_are_told_of(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.bert.embeddings.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"Hooks on 1 modules.*`bert\.embeddings`.*base_model\.model"):
        identity(tiny_bert)
    plain = deepcopy(tiny_bert)
    plain.bert.embeddings._forward_hooks.clear()
    plain(**IDS, output_hidden_states=True)  # transformers leaves hooks of its own behind
    with warnings.catch_warnings(record=True) as told:
        identity(plain)
    assert not [each for each in told if "Hooks" in str(each.message)]


# Set on the model that trains, kept by the shrink.


def test_the_shrink_keeps_every_module_and_what_was_set_on_it(tiny_bert: BertForMaskedLM) -> None:
    model = progressive(tiny_bert)
    student = model.base_model.model
    modules = {name: module for name, module in student.named_modules() if "parametrizations" not in name}
    widths: list[int] = []
    noise = student.get_input_embeddings().register_forward_hook(lambda *given: widths.append(given[2].shape[-1]))
    student.bert.encoder.layer[0].output.dropout.p = 0.4
    student.set_attn_implementation("eager")
    student.config.pad_token_id, student.config.mine = 7, [1, 2]
    student.forward = MethodType(lambda self, **given: type(self).forward(self, **given), student)
    patch = student.forward
    trained(model)
    assert model.base_model.model is student
    assert {n: m for n, m in student.named_modules() if "parametrizations" not in n} == modules
    assert widths == [24, 24, 24, 24, 12]
    noise.remove()
    logits(model)
    assert len(widths) == 5
    assert student.forward == patch
    assert student.bert.encoder.layer[0].output.dropout.p == 0.4
    merged = model.merge_and_unload()
    for config in (student.config, merged.config):
        assert (config.hidden_size, config.pad_token_id, config.mine) == (12, 7, [1, 2])
        assert config._attn_implementation == "eager"
    assert "forward" not in vars(merged)
    assert merged.bert.encoder.layer[0].output.dropout.p == 0.4
    assert torch.equal(logits(merged), logits(model))


@every_case
def test_a_model_that_has_shrunk_is_in_all_numbers_as_one_made_narrow(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    config = WidConfig(**row.halved, head_strategy=strategy, schedule=SCHEDULE)
    model = get_wid_model(row.build(), config, example_inputs=row.inputs)
    noisy(model, 0.1)
    trained(model, inputs=row.inputs)
    shrunk, made = model.base_model.model, type(model.base_model.teacher)(model.base_model._planned[0].student.config)
    fresh = dict(made.named_modules())
    compared = 0
    for name, module in shrunk.named_modules():
        for attribute, value in vars(fresh[name]).items() if name in fresh else ():
            if type(value) in (int, float) or (isinstance(value, tuple) and all(type(one) is int for one in value)):
                assert vars(module)[attribute] == value, f"{name}.{attribute}"
                compared += 1
    assert compared > 20
    own = {k: v for k, v in shrunk.config.to_dict().items() if type(v) is int}
    assert own == {k: v for k, v in made.config.to_dict().items() if type(v) is int}
    merged = model.merge_and_unload()
    assert (logits(merged, row.inputs) - logits(model, row.inputs)).abs().max() == 0


# Set on the live model, and in the student.


@pytest.mark.parametrize("make", [identity, progressive])
def test_live_configs_reach_the_student(make: Any) -> None:
    model = make(tiny_gpt2())
    model.config.n_inner_note = "kept"
    model.generation_config.max_new_tokens = 77
    if make is progressive:
        trained(model)
    student = model.merge_and_unload()
    assert student.generation_config.max_new_tokens == 77 and student.config.n_inner_note == "kept"
    student.generation_config.max_new_tokens = 5
    assert model.generation_config.max_new_tokens == 77
    model.generation_config = GenerationConfig(max_new_tokens=11)  # as Seq2SeqTrainer does
    assert model.merge_and_unload().generation_config.max_new_tokens == 11


def test_end_tokens_set_by_hand_are_kept_beside_each_other() -> None:
    model = identity(tiny_gpt2())
    model.generation_config.eos_token_id = [5, 2]
    assert model.merge_and_unload().generation_config.eos_token_id == [5, 2]


def test_another_vocabulary_is_refused_and_the_same_is_not() -> None:
    model = identity(tiny_gpt2())
    assert model.resize_token_embeddings(60) is model.get_input_embeddings()
    for change in (
        lambda: model.resize_token_embeddings(70),
        lambda: model.resize_token_embeddings(60, pad_to_multiple_of=64),
        lambda: model.resize_token_embeddings(pad_to_multiple_of=64),
        lambda: model.set_input_embeddings(nn.Embedding(70, 12)),
        lambda: model.set_output_embeddings(nn.Linear(12, 70)),
    ):
        with pytest.raises(WidError, match=r"Change the teacher before get_wid_model"):
            change()
    assert model.merge_and_unload().config.vocab_size == 60


def tiny_classifier() -> BertForSequenceClassification:
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=48)).eval()


@pytest.mark.parametrize("where", ["student", "wrapper", "student's body"])
def test_a_layer_put_in_the_place_of_another_is_refused_before_it_trains_and_merges(where: str) -> None:
    model = identity(tiny_classifier())
    student = model.base_model.model
    if where == "student":
        student.classifier = nn.Linear(12, 5)
    elif where == "wrapper":
        model.classifier = nn.Linear(12, 5)
    else:
        student.bert.resize_token_embeddings(70)
    with pytest.raises(
        WidError, match=r"was (replaced or resized|set)[^:]*: the layers of a wid model are computed from"
    ):
        model.train()(**IDS)
    with pytest.raises(WidError, match=r"after merge_and_unload"):
        model.merge_and_unload()


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("num_hidden_layers", 2, "makes other weights"),
        ("num_hidden_layers", 0, "makes other weights"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False now"),
    ],
)
def test_a_config_that_makes_other_layers_or_ties_is_refused(entry: str, value: Any, says: str) -> None:
    model = identity(tiny_classifier())
    setattr(model.config, entry, value)
    with pytest.raises(WidError, match=says):
        model.merge_and_unload()


def test_a_teacher_resized_afterwards_is_refused_before_it_trains() -> None:
    model = identity(teacher := tiny_gpt2())
    teacher.resize_token_embeddings(70)
    with pytest.raises(WidError, match=r"of the teacher was replaced or resized after get_wid_model"):
        model.train()(**IDS)


def test_what_is_assigned_to_copies_and_through_pefts_own_door_is_seen() -> None:
    door = get_peft_model(tiny_gpt2(), WidConfig(hidden_size=12, init="identity"))
    for model in (door, deepcopy(door), deepcopy(identity(tiny_gpt2()))):
        model.generation_config = GenerationConfig(max_new_tokens=11)
        assert model.merge_and_unload().generation_config.max_new_tokens == 11
    door.lm_head = nn.Linear(12, 60)
    with pytest.raises(WidError, match=r"`lm_head` was set on the wid model"):
        door.merge_and_unload()


def test_a_config_assigned_to_the_model_shrinks_with_it(tiny_bert: BertForMaskedLM) -> None:
    model = progressive(tiny_bert)
    model.config = deepcopy(model.config)
    model.config.mine = 5
    trained(model)
    assert (model.merge_and_unload().config.hidden_size, model.merge_and_unload().config.mine) == (12, 5)


@pytest.mark.parametrize("how", ["int", "identity", "config"])
def test_dropout_is_off_however_it_was_switched_off(tiny_bert: BertForMaskedLM, how: str) -> None:
    for module in [m for m in tiny_bert.modules() if isinstance(m, nn.Dropout)] if how == "int" else []:
        module.p = 0
    if how == "identity":
        tiny_bert.bert.embeddings.dropout = nn.Identity()
    if how == "config":
        tiny_bert.config.hidden_dropout_prob = 0.0
    assert identity(tiny_bert).base_model.model.bert.embeddings.dropout.p == 0


def test_a_config_that_would_not_load_with_the_weights_is_refused() -> None:
    model = identity(tiny_classifier())
    model.config.num_labels = 7
    with pytest.raises(
        WidError, match=r"2 weights do not fit model\.config as it is now: classifier\.weight is \(2, 12\)"
    ):
        model.merge_and_unload()
    model.config.num_labels, model.config.hidden_size = 2, 13
    with pytest.raises(WidError, match=r"cannot be made of model\.config as it is now"):
        model.merge_and_unload()
    model.config.hidden_size = 12
    assert model.merge_and_unload().classifier.weight.shape == (2, 12)


# Saved where an adapter lies.

LOADED_BY_OTHERS = """
import sys, torch
sys.modules["wid_hf"] = None
from transformers import AutoModelForMaskedLM
print(AutoModelForMaskedLM.from_pretrained(sys.argv[1]).config.hidden_size)
"""


def test_a_student_saved_beside_its_adapter_loads_and_the_adapter_is_kept(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    model = identity(tiny_bert)
    noisy(model)
    student = model.merge_and_unload()
    for at in ("wid_adapter", "wid_adapter-2"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=f"adapter is in .*{at} now"):
            deepcopy(student).save_pretrained(tmp_path)
        assert sorted(path.name for path in (tmp_path / at).iterdir()) == [
            "adapter_config.json", "adapter_model.safetensors",
        ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY_OTHERS, tmp_path], check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == "12", done.stderr[-500:]
    again = PeftModel.from_pretrained(deepcopy(tiny_bert), tmp_path / "wid_adapter")
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_saved_beside_a_student_is_told_of(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = identity(tiny_bert)
    model.merge_and_unload().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"holds a model \(config\.json\) beside this adapter"):
        model.save_pretrained(tmp_path)


def test_a_student_is_not_saved_over_an_adapter_of_another_method(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    student = identity(tiny_bert).merge_and_unload()
    get_peft_model(deepcopy(tiny_bert), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=r"holds an adapter.*'LORA'.*another folder"):
        student.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
