"""Students with fewer layers: chosen on data, merged, saved, trained beside the whole teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layered_models import MAKERS, batches_for, teacher_of
from peft import PeftModel
from transformers import PreTrainedModel

from wid_hf import CalibrationConfig, WidConfig, get_wid_model
from wid_hf.planning.student_plan import plan_student


def shallower(family: str, **more: object) -> tuple[PreTrainedModel, PeftModel]:
    teacher = teacher_of(family)
    model = get_wid_model(teacher, WidConfig(**MAKERS[family][1], **more), calibration_data=batches_for(teacher))
    return teacher, model


@torch.no_grad()
def first_output(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    return model.eval()(**batches_for(model, 1, seed=5)[0])[0]


@pytest.mark.parametrize("family", MAKERS)
def test_a_merged_student_has_fewer_layers_and_loads_without_wid_hf(family: str, tmp_path: Path) -> None:
    teacher, model = shallower(family)

    student = model.merge_and_unload()

    assert torch.equal(first_output(student), first_output(model))
    assert type(student) is type(teacher)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert torch.equal(first_output(loaded), first_output(student))
    assert model.unload() is teacher
    fewer = sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    assert fewer or family == "albert"


def test_the_layers_of_least_divergence_go_whatever_was_spread_before_there_was_data() -> None:
    teacher = teacher_of("gpt2")
    with torch.no_grad():
        for writer in (teacher.transformer.h[3].attn.c_proj, teacher.transformer.h[3].mlp.c_proj):
            writer.weight.zero_()
            writer.bias.zero_()
    model = get_wid_model(teacher, WidConfig(num_hidden_layers=3))
    assert 3 in model.base_model.stacks[0].kept

    model.base_model.calibrate(batches_for(teacher))

    assert [each.kept for each in model.base_model.stacks] == [(0, 1, 2)]
    torch.testing.assert_close(first_output(model), first_output(teacher))
    report = model.base_model.calibration
    assert [layer.layer for layer in report.dropped] == ["transformer.h.3"]
    assert type(report).from_dict(report.to_dict()) == report


def test_width_and_depth_go_together() -> None:
    teacher, model = shallower("bert", hidden_size=12, intermediate_size=16)

    student = model.merge_and_unload()

    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 12)
    assert torch.equal(first_output(student), first_output(model))
    assert teacher.config.num_hidden_layers == 4


def test_a_saved_adapter_names_its_layers_and_loads_on_the_whole_teacher(tmp_path: Path) -> None:
    _, model = shallower("bert", hidden_size=12)
    model.save_pretrained(tmp_path)

    loaded = PeftModel.from_pretrained(teacher_of("bert"), tmp_path)

    assert loaded.peft_config["default"].layers == model.peft_config["default"].layers is not None
    assert torch.equal(first_output(loaded), first_output(model))


def test_an_adapter_whose_layers_were_chosen_loads_into_a_model_whose_layers_are_open(tmp_path: Path) -> None:
    teacher, model = shallower("bert", hidden_size=12)
    model.save_pretrained(tmp_path)
    fresh = get_wid_model(teacher, WidConfig(**MAKERS["bert"][1], hidden_size=12))
    assert fresh.base_model.stacks[0].kept != model.base_model.stacks[0].kept

    fresh.load_adapter(str(tmp_path), "default", is_trainable=True)

    assert fresh.base_model.stacks[0].kept == model.base_model.stacks[0].kept
    assert torch.equal(first_output(fresh), first_output(model))


def test_layers_are_chosen_by_influence_alone_if_asked() -> None:
    _, model = shallower("bert", calibration_config=CalibrationConfig(layer_choice="influence"))

    assert [layer.divergence for layer in model.base_model.calibration.dropped] == [None, None]


def test_a_progressive_student_is_shallow_from_the_start() -> None:
    teacher = teacher_of("bert")

    model = get_wid_model(teacher, WidConfig(layers=[0, 3], hidden_size=12, schedule="progressive"))

    shallow = get_wid_model(teacher, WidConfig(layers=[0, 3]), calibration_data=batches_for(teacher))
    torch.testing.assert_close(first_output(model), first_output(shallow))


def test_a_plan_tells_which_layers_stay_or_that_data_decides() -> None:
    teacher = teacher_of("bert")

    (counted,) = plan_student(teacher, WidConfig(num_hidden_layers=2)).stacks
    (named,) = plan_student(teacher, WidConfig(layers=[0, 2])).stacks

    assert str(counted) == "num_hidden_layers 4 -> 2: calibration data decides which layers stay."
    assert str(named) == "num_hidden_layers 4 -> 2: layers 0, 2 stay."
