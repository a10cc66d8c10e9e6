"""A model is traced in whatever form it takes; what it raises is told, with what was tried and how to pass inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from wid_hf import ConfigError, PlanError, TeacherError, WidConfig, get_wid_model, plan_student
from wid_hf.coupling import verify
from wid_hf.planning.tracing import trace_teacher
from wid_hf.stored_inputs import packed, unpacked

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 50, "hidden_size": 24, "max_position_embeddings": 40}
VISION = {**SMALL, "hidden_size": 16, "image_size": 16, "patch_size": 8}
BOTH = {"text_config": TEXT, "vision_config": VISION}


def bert(kind: str = "BertForMaskedLM", **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return getattr(hf, kind)(BertConfig(**TEXT, **more)).eval()


def decoder(kind: str) -> PreTrainedModel:
    if kind.startswith("GPT2"):
        config: Any = hf.GPT2Config(vocab_size=50, n_embd=24, n_layer=1, n_head=2, n_positions=40, bos_token_id=1)
    else:
        config = hf.LlamaConfig(**TEXT)
    config.pad_token_id = None
    return getattr(hf, kind)(config).eval()


HALF_BOTH = {"text_config": {"hidden_size": 12}, "vision_config": {"hidden_size": 8}}
FORMS = {
    "multiple choice": (lambda: bert("BertForMultipleChoice"), {"hidden_size": 12}),
    "gpt2 classifier without pad": (lambda: decoder("GPT2ForSequenceClassification"), {"hidden_size": 12}),
    "llama classifier without pad": (lambda: decoder("LlamaForSequenceClassification"), {"intermediate_size": 16}),
    "chunks of positions": (lambda: bert(chunk_size_feed_forward=4), {"hidden_size": 12, "intermediate_size": 16}),
    "clip": (lambda: hf.CLIPModel(hf.CLIPConfig(**BOTH, projection_dim=20)).eval(), HALF_BOTH),
    "siglip": (
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config={**VISION, "hidden_size": 24})).eval(),
        {"vision_config": {"intermediate_size": 16}},
    ),
    "blip": (
        lambda: hf.BlipModel(hf.BlipConfig(**BOTH, projection_dim=20)).eval(),
        {"vision_config": {"intermediate_size": 16}},
    ),
    "dual encoder": (
        lambda: hf.VisionTextDualEncoderModel(
            hf.VisionTextDualEncoderConfig.from_vision_text_configs(
                hf.ViTConfig(**VISION), BertConfig(**TEXT), projection_dim=20
            )
        ).eval(),
        {"text_config": {"intermediate_size": 16}},
    ),
    "image and text in one": (
        lambda: hf.ViltModel(hf.ViltConfig(**{**TEXT, "image_size": 16, "patch_size": 8})).eval(),
        {"intermediate_size": 16},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_model_plans_by_itself_and_is_proved(form: str) -> None:
    build, sizes = FORMS[form]
    teacher = build()
    seen, _ = trace_teacher(teacher)
    assert verify(teacher, seen) > 0
    student = get_wid_model(teacher, WidConfig(overrides=sizes, init="identity")).merge_and_unload()
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())


class Picky(PreTrainedModel):
    """Runs on no inputs that can be guessed."""

    config_class = BertConfig
    main_input_name = "atoms"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.up = nn.Linear(3, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, atoms: Any = None, bonds: Tensor | None = None, depth: int = 1) -> tuple[Tensor, ...]:
        if not isinstance(atoms, list) or bonds is None:
            raise KeyError("bonds of every atom")
        return (self.out(self.up(torch.stack(atoms)).tanh() * bonds),)


def picky() -> Picky:
    torch.manual_seed(0)
    return Picky(BertConfig(**TEXT)).eval()


GIVEN = {"atoms": [torch.ones(4, 3), torch.zeros(4, 3)], "bonds": torch.full((1,), 2.0), "depth": 2}
HALF = WidConfig(hidden_size=12, init="identity")


def test_a_model_that_takes_no_inputs_that_were_made_says_so_and_how_to_pass_them() -> None:
    with pytest.raises(TeacherError) as refusal:
        get_wid_model(picky(), HALF)
    text = str(refusal.value)
    assert "Picky does not run on example inputs made from its config" in text
    assert "KeyError: 'bonds of every atom'" in text
    assert "atoms (3, 7)" in text
    assert "example_inputs={...}" in text
    assert isinstance(refusal.value.__cause__, KeyError)


def test_inputs_that_the_user_gave_and_that_do_not_fit_are_named() -> None:
    with pytest.raises(TeacherError, match=r"(?s)example inputs that were given.*input_ids \(2, 99\).*example_inputs"):
        get_wid_model(bert(), HALF, example_inputs={"input_ids": torch.ones(2, 99, dtype=torch.long)})
    with pytest.raises(TeacherError, match="nonsense: ValueError: You must specify"):
        plan_student(bert(), HALF, inputs={"nonsense": 1})


@pytest.mark.parametrize("cause", [KeyError("x"), TypeError("x"), RuntimeError("x"), AttributeError("x"), OSError("x")])
def test_whatever_a_model_raises_becomes_a_wid_error(monkeypatch: pytest.MonkeyPatch, cause: Exception) -> None:
    def broken(self: Any, *args: Any, **kwargs: Any) -> None:
        raise cause

    teacher = bert()
    monkeypatch.setattr(type(teacher.bert.encoder), "forward", broken)
    with pytest.raises(TeacherError, match=type(cause).__name__) as refusal:
        plan_student(teacher, HALF)
    assert refusal.value.__cause__ is cause


@pytest.mark.parametrize("cause", [KeyError("x"), TypeError("x"), IndexError("x"), AttributeError("x")])
def test_whatever_a_student_of_these_sizes_raises_becomes_a_plan_error(
    monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    kind = type(bert().bert.encoder)
    original = kind.forward

    def broken(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[-1] == 12:
            raise cause
        return original(self, hidden, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", broken)
    with pytest.raises(PlanError, match=rf"does not run at these sizes: {type(cause).__name__}"):
        plan_student(bert(), HALF)


class Particular(BertForMaskedLM):
    """A class that raises what it likes for widths that it does not want."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if config.hidden_size < 24:
            raise TypeError("too narrow")


def test_what_a_constructor_raises_becomes_a_plan_error() -> None:
    with pytest.raises(PlanError, match="too narrow"):
        plan_student(Particular(BertConfig(**TEXT)).eval(), HALF)


def test_an_adapter_made_with_example_inputs_loads_again(tmp_path: Path) -> None:
    wid = get_wid_model(picky(), HALF, example_inputs=GIVEN)
    with torch.no_grad():
        for parameter in wid.base_model.student.folded_weights.parameters():
            parameter.add_(0.1)
    wid.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(picky(), tmp_path)
    assert torch.equal(again(**GIVEN)[0], wid(**GIVEN)[0])
    kept = unpacked(json.loads((tmp_path / "adapter_config.json").read_text())["example_inputs"])
    assert kept is not None
    assert torch.equal(kept["atoms"][0], torch.ones(4, 3)) and kept["depth"] == 2


def test_an_adapter_that_holds_no_example_inputs_says_what_to_pass_and_takes_it(tmp_path: Path) -> None:
    wid = get_wid_model(picky(), HALF, example_inputs=GIVEN)
    wid.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"example_inputs": None}))
    with pytest.raises(TeacherError, match="example_inputs of the WidConfig"):
        PeftModel.from_pretrained(picky(), tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    config.example_inputs = GIVEN
    again = PeftModel.from_pretrained(picky(), tmp_path, config=config)
    assert torch.equal(again(**GIVEN)[0], wid(**GIVEN)[0])


def test_inputs_that_no_file_can_hold_still_plan() -> None:
    odd = {**GIVEN, "depth": range(3)}
    assert get_wid_model(picky(), HALF, example_inputs=odd).peft_config["default"].example_inputs is None
    with pytest.raises(ConfigError, match="depth is a range"):
        WidConfig(hidden_size=12, example_inputs=odd)


def test_packing_keeps_types_values_and_nesting() -> None:
    given = {"a": torch.tensor([[1, 2]]), "b": {"c": (torch.ones(2, dtype=torch.bfloat16), None)}, "d": 1.5, "e": True}
    there = packed(given)
    assert packed(there) == there == json.loads(json.dumps(there))
    back = unpacked(there)
    assert back is not None and back["d"] == 1.5 and back["e"] is True
    assert torch.equal(back["a"], given["a"]) and back["b"]["c"][0].dtype == torch.bfloat16
    assert back["b"]["c"][1] is None


@pytest.mark.parametrize("damaged", [{"arguments": {}, "tensors": "?"}, {"arguments": 1, "tensors": "eJw="}])
def test_damaged_example_inputs_of_an_adapter_are_refused(damaged: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        unpacked(damaged)


def test_flex_attention_is_planned_and_stays_set() -> None:
    config = BertConfig(**TEXT)
    config._attn_implementation = "flex_attention"
    teacher = BertForMaskedLM(config).eval()
    planned = plan_student(teacher, HALF, proof=True)
    assert planned.plan.shape("bert.encoder.layer.0.attention.self.query.weight") == (12, 12)
    assert teacher.config._attn_implementation == planned.config._attn_implementation == "flex_attention"


def test_a_forward_that_draws_random_numbers_can_be_proved() -> None:
    """ViLT chooses patches at random."""
    build, _ = FORMS["image and text in one"]
    teacher = build()
    assert verify(teacher, trace_teacher(teacher)[0]) > 0


@pytest.mark.parametrize("given", [torch.ones(2, 3), [1], "input_ids", 3, True])
def test_example_inputs_that_are_no_dictionary_are_refused_in_words(given: object) -> None:
    with pytest.raises(ConfigError, match="is not a dictionary of keyword arguments"):
        WidConfig(hidden_size=12, example_inputs=given)
