"""What callers see of a student: coordinates of the teacher's outputs or turned ones, and the map between both."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from training_runs import arguments
from transformers import BertForMaskedLM
from wid_models import IDS, SCHEDULE, identity, random_turn, stream_of, tiny_encoder, turned

from wid_hf import CalibrationConfig, FollowingTrainer, WidConfig, WidError, get_wid_model
from wid_hf.adapter.turned import TurnedStreams, turn
from wid_hf.coupling import Plan
from wid_hf.coupling.dims import Dim, concat

WEIGHTS = "adapter_model.safetensors"


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_map_of_a_selection_has_one_hot_columns_and_changes_no_bit() -> None:
    batches = [{"input_ids": torch.randint(2, 60, (8, 12), generator=torch.Generator().manual_seed(1))}]
    config = WidConfig(hidden_size=12, calibration_config=CalibrationConfig(output="coordinates"))
    wid = get_wid_model(tiny_encoder(), config, calibration_data=batches).base_model
    kept, outputs = wid.kept_outputs(), states(3, 5, 24)
    assert wid.outputs == "coordinates" and kept != list(range(12))
    assert wid.output_map.shape == (24, 12) and wid.output_map.dtype == torch.float32
    assert torch.equal(wid.output_map.nonzero(), torch.tensor([[index, at] for at, index in enumerate(kept)]))
    assert torch.equal(wid.map_outputs(outputs), outputs[..., kept])
    assert torch.equal(outputs @ wid.output_map, outputs[..., kept])


@pytest.mark.parametrize("sizes", [{"hidden_size": 12}, {"intermediate_size": 24}])
def test_outputs_that_do_not_shrink_have_no_map(tiny_bert: BertForMaskedLM, sizes: dict[str, int]) -> None:
    teacher = tiny_bert if "hidden_size" in sizes else tiny_encoder()  # logits are as many as tokens
    wid = get_wid_model(teacher, WidConfig(**sizes, init="identity")).base_model
    outputs = states(3, 5, wid.kept.numel())
    assert wid.outputs == "whole" and wid.output_map is None and wid.map_outputs(outputs) is outputs


@pytest.mark.parametrize(("teacher", "of_map"), [("float32", "float32"), ("bfloat16", "float32"), ("float64",) * 2])
def test_a_turned_stream_has_the_transposed_map_in_full_precision(teacher: str, of_map: str) -> None:
    dtype = getattr(torch, teacher)
    wid = turned(identity(tiny_encoder().to(dtype))).base_model
    expected = random_turn(24, 12).T.to(getattr(torch, of_map))
    assert wid.outputs == "turned" and torch.equal(wid.output_map, expected)
    outputs = states(3, 5, 24).to(dtype)
    assert torch.equal(wid.map_outputs(outputs), outputs.to(expected.dtype) @ expected)
    with pytest.raises(WidError, match=r"outputs are turned.*Use output_map.*output=\"coordinates\""):
        wid.kept_outputs()


def test_autocast_does_not_round_the_map() -> None:
    outputs, matrix = states(3, 24), random_turn(24, 12).T.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = turn(outputs, matrix)
    assert torch.equal(found, outputs @ matrix)


def test_a_head_of_the_teachers_outputs_serves_the_student() -> None:
    wid = turned(identity(tiny_encoder())).base_model
    head, spanned = states(5, 24), states(7, 12) @ wid.output_map.T  # what the student can hold of a teacher's outputs
    served = wid.map_outputs(spanned) @ (head @ wid.output_map).T
    assert (served - spanned @ head.T).abs().max() < 1e-5


def test_outputs_behind_each_other_have_a_map_of_blocks() -> None:
    a, b = Dim(4), Dim(3)
    plan = Plan(axes={"weight": (concat([a, b]),)}, targets={a: 2, b: 2}, under={})
    maps, whole = TurnedStreams(plan), plan.axes["weight"][0]
    maps.replace({a: random_turn(4, 2)})
    assert maps.touches(whole) and maps.of(b) is None and maps.of(whole) is None
    found = maps.axis_map(whole, torch.tensor([0, 1, 4, 6]), torch.float64)
    assert torch.equal(found[:4, :2], random_turn(4, 2).T)
    assert torch.equal(found[4:, 2:], torch.eye(3, dtype=torch.float64)[:, [0, 2]])
    assert not found[:4, 2:].any() and not found[4:, :2].any()


def test_an_adapter_holds_the_maps_of_turned_streams(tmp_path: Path) -> None:
    wid = turned(identity(tiny_encoder()))
    wid.save_pretrained(tmp_path / "turned")
    loaded = PeftModel.from_pretrained(tiny_encoder(), tmp_path / "turned").base_model
    assert loaded.outputs == "turned" and torch.equal(loaded.output_map, wid.base_model.output_map)
    copy = deepcopy(loaded)
    assert copy.outputs == "turned" and torch.equal(copy.output_map, loaded.output_map)


def test_the_adapter_of_a_selection_is_what_it_was_before_streams_could_turn(tmp_path: Path) -> None:
    wid = identity(tiny_encoder())
    wid.save_pretrained(tmp_path)
    assert not any("turned" in name for name in load_file(tmp_path / WEIGHTS))
    loaded = PeftModel.from_pretrained(tiny_encoder(), tmp_path).base_model
    assert loaded.outputs == "coordinates" and torch.equal(loaded.output_map, wid.base_model.output_map)


def test_loading_takes_over_which_streams_are_turned(tmp_path: Path) -> None:
    selected, other = identity(tiny_encoder()), turned(identity(tiny_encoder()))
    selected.save_pretrained(tmp_path / "selected")
    other.save_pretrained(tmp_path / "turned")
    other.load_adapter(tmp_path / "selected", "default")
    assert other.base_model.outputs == "coordinates"
    selected.load_adapter(tmp_path / "turned", "default")
    assert torch.equal(selected.base_model.output_map, random_turn(24, 12).T.float())


def test_a_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    wid = identity(tiny_encoder())
    wid.base_model._turn({stream_of(wid): random_turn(24, 8)})
    wid.save_pretrained(tmp_path)
    with pytest.raises(WidError, match=r"differ in name or shape, the first is base_model\.turned\.0"):
        PeftModel.from_pretrained(tiny_encoder(), tmp_path)


def test_calibrating_again_forgets_earlier_maps() -> None:
    wid = turned(get_wid_model(tiny_encoder(), WidConfig(hidden_size=12)))
    wid.base_model.calibrate([{"input_ids": torch.randint(2, 60, (8, 12))}], pca=False)
    assert wid.base_model.outputs == "coordinates"


def test_with_a_progressive_schedule_the_map_follows_the_phase() -> None:
    model = get_wid_model(tiny_encoder(), WidConfig(hidden_size=12, schedule=SCHEDULE))
    wid, widths = model.base_model, []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.wid_begin(5, optimizer)
    for step in range(1, 6):
        model(**IDS).last_hidden_state.square().mean().backward()
        optimizer.step()
        model.wid_step(step)
        outputs = states(2, 24)
        assert torch.equal(wid.output_map.argmax(0), torch.tensor(wid.kept_outputs()))
        assert torch.equal(wid.map_outputs(outputs), outputs[:, wid.kept_outputs()])
        widths.append(wid.output_map.shape[1])
    assert not wid.is_wide and widths == [18, 12, 12, 12, 12]


class Exact(nn.Module):
    """In the place of a student: it gives exactly the mapped outputs of its teacher."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.wid = (model.base_model,)

    def forward(self, **inputs: Any) -> Any:
        output = self.wid[0].teacher(**inputs)
        output.last_hidden_state = self.wid[0].map_outputs(output.last_hidden_state)
        return output


@pytest.mark.parametrize("how", [identity, lambda teacher: turned(identity(teacher))])
def test_following_a_teacher_exactly_costs_nothing(how: Any, tmp_path: Path) -> None:
    trainer = FollowingTrainer(
        how(tiny_encoder()), arguments(tmp_path, teacher_learning_rate=0), train_dataset=[], cosine_weight=0.0
    )
    assert trainer.compute_loss(Exact(trainer.model).eval(), IDS).item() == pytest.approx(0, abs=1e-10)
    assert trainer.compute_loss(trainer.model.eval(), IDS).item() > 0.01
