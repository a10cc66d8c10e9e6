"""A shallower teacher with the layers that it lacks behind its own computes what the whole one does."""

from __future__ import annotations

import pytest
import torch
from layered_models import batches_for, teacher_of
from torch import nn

from wid_hf import WidConfig, get_wid_model
from wid_hf.calibration.batches import prepared
from wid_hf.planning.depth import can_be_deepened, deepened
from wid_hf.planning.student_plan import planned_teacher, settled_stacks, small_forward


@pytest.mark.parametrize("layers", [[0, 3], [1, 3], [0, 1], [2]], ids=str)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_layers_that_were_dropped_run_before_between_and_behind_those_that_stay(family: str, layers: list[int]) -> None:
    whole, config = teacher_of(family), WidConfig(layers=layers)
    stacks = settled_stacks(whole, config)
    shallow = planned_teacher(whole, config, stacks=stacks)
    batch = prepared(whole, batches_for(whole, 1)[0])  # without a cache, as calibration runs forwards

    assert can_be_deepened(shallow, whole, stacks, small_forward(whole, config))
    with torch.no_grad():
        expected, plain = whole(**batch)[0], shallow(**batch)[0]
        with deepened(shallow, whole, stacks):
            torch.testing.assert_close(shallow(**batch)[0], expected)
        assert torch.equal(shallow(**batch)[0], plain)
    assert not torch.allclose(plain, expected)


def test_layers_of_different_arguments_are_found_not_to_run_behind_each_other() -> None:
    whole, config = teacher_of("modernbert"), WidConfig(layers=[0, 3])  # others look at a window only
    stacks = settled_stacks(whole, config)

    assert not can_be_deepened(planned_teacher(whole, config), whole, stacks, small_forward(whole, config))


def test_a_narrower_student_is_fitted_to_what_the_whole_teacher_computes() -> None:
    teacher = teacher_of("gpt2")
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    data = batches_for(teacher, 8)
    model = get_wid_model(teacher, WidConfig(layers=[0, 3], hidden_size=16), calibration_data=data)

    found = {each.weight: each for each in model.base_model.calibration.inputs}["transformer.h.1.attn.c_attn.weight"]
    alone = get_wid_model(planned_teacher(teacher, WidConfig(layers=[0, 3])), WidConfig(hidden_size=16))
    alone.base_model.calibrate(data)
    without = {each.weight: each for each in alone.base_model.calibration.inputs}["transformer.h.1.attn.c_attn.weight"]

    assert found.before != without.before  # the input that is restored is that of the whole teacher
