"""The copy of the last good weights of a device, in memory of the CPU and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wid_hf.training.last_good import last_good

SIM = "sim"


@pytest.mark.parametrize(("place", "device"), [("device", SIM), ("cpu", "cpu"), ("disk", None)])
def test_weights_of_a_device_come_back_from_any_place(tmp_path: Path, place: str, device: str | None) -> None:
    weight = nn.Parameter(torch.arange(6.0).view(2, 3).to(SIM))
    copy = last_good(place, tmp_path)
    assert copy is not None
    copy.keep(1, [weight])
    assert {each.device.type for each in copy.tensors} == ({device} if device else set())
    with torch.no_grad():
        weight.zero_()
    copy.restore()
    assert weight.device.type == SIM
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5]]
