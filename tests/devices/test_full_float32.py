"""Proofs and statistics in full float32, where the caller lets products be rounded (TF32; bfloat16 on CPUs)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM
from wid_models import SCHEDULE

from wid_hf import WidConfig, get_wid_model
from wid_hf.arithmetic import full_float32

PLACES = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]


def settings() -> list[Any]:
    found = [place.fp32_precision for place in PLACES]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        with suppress(RuntimeError):  # the newer settings say what this one cannot express
            found.append(read())
    return found


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = [place.fp32_precision for place in PLACES]
    yield
    torch.set_float32_matmul_precision("highest")
    for place, value in zip(PLACES, before, strict=True):
        place.fp32_precision = value


@pytest.mark.skipif(not hasattr(PLACES[0], "fp32_precision"), reason="this torch has only the older settings")
@pytest.mark.parametrize("newer", [False, True], ids=["older settings", "newer settings"])
def test_products_are_full_inside_and_settings_come_back(newer: bool) -> None:
    if newer:
        for place in PLACES:
            place.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high")
    before = settings()
    with pytest.raises(KeyError), full_float32():
        assert {place.fp32_precision for place in PLACES} == {"ieee"}
        raise KeyError
    assert settings() == before


def test_a_schedule_is_proved_although_the_caller_lets_products_be_rounded(tiny_bert: BertForMaskedLM) -> None:
    torch.set_float32_matmul_precision("medium")  # bfloat16 where the CPU has it
    model = get_wid_model(tiny_bert, WidConfig(hidden_size=12, schedule=SCHEDULE), verify=True)
    assert model.base_model.is_wide
    assert torch.get_float32_matmul_precision() == "medium"
