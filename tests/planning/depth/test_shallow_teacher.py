"""Shallower teachers on the same tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from layered_models import KINDS, MAKERS, batches_for, gemma3, t5, teacher_of
from transformers import Gemma3TextConfig, GPT2LMHeadModel, LlamaConfig, PreTrainedModel

from wid_hf import PlanError, WidConfig
from wid_hf.calibration.bypass import bypassed
from wid_hf.planning.depth import requested_stacks, shallow_teacher
from wid_hf.planning.depth.shallow_config import shallow_config
from wid_hf.planning.depth.shallow_teacher import dropped_layers
from wid_hf.planning.student_plan import planned_teacher, settled_stacks, small_forward


@torch.no_grad()
def first_output(model: PreTrainedModel) -> torch.Tensor:
    return model(**batches_for(model, 1, seed=3)[0])[0]


@pytest.mark.parametrize("family", [family for family in MAKERS if family != "albert"])
def test_a_shallower_teacher_computes_what_the_teacher_does_past_the_other_layers(family: str) -> None:
    teacher, config = teacher_of(family), WidConfig(**MAKERS[family][1])
    stacks = settled_stacks(teacher, config)

    shallow = planned_teacher(teacher, config)

    with bypassed(teacher, dropped_layers(stacks)):
        expected = first_output(teacher)
    torch.testing.assert_close(first_output(shallow), expected)
    assert not torch.equal(expected, first_output(teacher))


def test_a_shallower_teacher_has_the_tensors_of_the_teacher() -> None:
    teacher = teacher_of("bert")

    shallow = planned_teacher(teacher, WidConfig(layers=[1, 3]))

    own = dict(teacher.named_parameters())
    for name, parameter in shallow.named_parameters():
        other = name.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        assert parameter is own[other]
    assert teacher.config.num_hidden_layers == 4
    assert shallow.config.num_hidden_layers == 2
    assert shallow.get_output_embeddings().weight is shallow.get_input_embeddings().weight


def test_lists_with_an_entry_for_each_layer_follow_the_layers_that_stay() -> None:
    shallow = planned_teacher(gemma3(), WidConfig(layers=[0, 2, 4, 5]))

    assert shallow.config.layer_types == [KINDS[at] for at in (0, 2, 4, 5)]


def test_a_list_as_long_as_there_are_layers_follows_whatever_it_is_called() -> None:
    shallow = planned_teacher(teacher_of("longformer"), WidConfig(layers=[0, 1, 3]))

    assert shallow.config.attention_window == [4, 8, 8]


def test_sizes_of_single_layers_follow_their_layers() -> None:
    config = LlamaConfig(num_hidden_layers=4, per_layer_config={3: {"attention_dropout": 0.5}})

    shallow = shallow_config(config, ("num_hidden_layers",), (0, 3))

    assert [layer.attention_dropout for layer in shallow.per_layer_config] == [0.0, 0.5]


def test_a_backbone_returns_what_comes_out_of_the_layers_that_stay() -> None:
    shallow = planned_teacher(teacher_of("dinov2"), WidConfig(layers=[0, 2, 3]))

    assert shallow.config.out_indices == [0, 1, 3]
    assert shallow.config.out_features == ["stem", "stage1", "stage3"]


def test_a_layer_with_other_weights_than_its_new_place_is_refused() -> None:
    teacher = t5().eval()  # the first block has the table of relative positions

    with pytest.raises(PlanError, match=r"block\.1\.layer\.0\.SelfAttention\.relative_attention_bias"):
        planned_teacher(teacher, WidConfig(layers=[1, 2]))


def test_layers_that_compute_something_else_at_another_place_are_refused() -> None:
    teacher = teacher_of("swin")  # every other block shifts its windows
    (stack,) = requested_stacks(teacher, WidConfig(overrides={"depths": [1, 2]}))

    with pytest.raises(PlanError, match=r"without layers 0 of depths\.0"):
        shallow_teacher(teacher, [replace(stack, kept=(1,))], small_forward(teacher, WidConfig(hidden_size=8)))


def test_one_layer_that_runs_fewer_times_needs_no_choice() -> None:
    teacher = teacher_of("albert")

    shallow = planned_teacher(teacher, WidConfig(num_hidden_layers=1))

    names = dict(teacher.named_parameters())
    assert all(parameter is names[name] for name, parameter in shallow.named_parameters())
    assert len(shallow(**batches_for(teacher, 1)[0], output_hidden_states=True).hidden_states) == 2


class LastIsFull(Gemma3TextConfig):
    """A config whose class completes it when it is loaded, as Gemma 4's does."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        config = super().from_dict(config_dict, **kwargs)
        config.layer_types = [*config.layer_types[:-1], "full_attention"]
        return config


def test_layers_that_a_saved_config_would_turn_into_another_kind_are_refused() -> None:
    config = LastIsFull(num_hidden_layers=6, layer_types=KINDS)

    with pytest.raises(PlanError, match="its layers have kinds by place"):
        shallow_config(config, ("num_hidden_layers",), (0, 1, 2, 3))

    assert shallow_config(config, ("num_hidden_layers",), (0, 5)).layer_types == [KINDS[0], KINDS[5]]


class NeedsFourLayers(GPT2LMHeadModel):
    """A model that does not run without a kind of layer, as Granite 4 without attention."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.config.n_layer < 4:
            raise ValueError("no attention layer to ask")
        return super().forward(*args, **kwargs)


def test_a_model_that_does_not_run_with_the_layers_that_stay_is_refused() -> None:
    teacher = NeedsFourLayers(teacher_of("gpt2").config).eval()

    with pytest.raises(PlanError, match="does not run with these layers alone: no attention layer to ask"):
        planned_teacher(teacher, WidConfig(layers=[0, 1, 3]))


def test_a_number_that_changes_nothing_is_no_number_of_layers() -> None:
    teacher = teacher_of("swin")  # its `num_layers` says how many stages there are, which the class never asks

    with pytest.raises(PlanError, match=r"num_layers counts no layers of Swin"):
        planned_teacher(teacher, WidConfig(num_hidden_layers=1))
