"""Students with fewer layers follow the whole teacher: its outputs, and the states of the layers that stayed."""

from __future__ import annotations

from typing import Any

import torch
from layered_models import batches_for, bert
from torch import Tensor

from wid_hf import WidConfig, get_wid_model
from wid_hf.training.losses.distillation import Distillation


def test_the_target_is_what_the_whole_teacher_makes_at_the_layers_that_stay() -> None:
    torch.manual_seed(0)
    teacher = bert().eval()
    batch = batches_for(teacher, 1)[0]
    model = get_wid_model(teacher, WidConfig(layers=[1, 3], hidden_size=12), calibration_data=batches_for(teacher))
    given: dict[str, Tensor] = {}
    outputs: dict[str, Any] = {}
    for name, module in teacher.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: given.update({name: (*args, None)[0]}))
        module.register_forward_hook(lambda module, args, out, name=name: outputs.update({name: out}))

    seen = Distillation(model, ["logits", "hidden", "relations"]).target(batch)

    places = {"layer.0.": "layer.1.", "layer.1.": "layer.3."}
    for recorded, made in ((seen.given, given), (seen.returned, outputs)):
        names = [name for name, _ in recorded if "encoder.layer" in name]
        assert {next(place for place in places if place in name) for name in names} == {*places}
        for name in names:
            place = next(place for place in places if place in name)
            assert torch.equal(recorded[name, 0], made[name.replace(place, places[place])])
    assert torch.equal(seen.output.logits, outputs[""].logits)
