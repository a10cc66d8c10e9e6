"""A merged student is not saved where an adapter lies, and is a stock model otherwise."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from wid_hf import OutputError, WidConfig, get_wid_model


def test_a_student_is_not_saved_beside_an_adapter(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity"))
    wid.save_pretrained(tmp_path / "run")
    student = wid.merge_and_unload()
    with pytest.raises(OutputError, match=r"holds an adapter \(adapter_config\.json\).*run/student"):
        student.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    student.save_pretrained(tmp_path / "run" / "student")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "student")
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_copies_of_a_student_hold_nothing_of_ours(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    student = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity")).merge_and_unload()
    content = pickle.dumps(student)
    assert b"wid_hf" not in content
    for index, one in enumerate((copy.deepcopy(student), pickle.loads(content))):
        assert type(one) is BertForMaskedLM and one.save_pretrained.__self__ is one
        one.save_pretrained(tmp_path / str(index))
        assert AutoModelForMaskedLM.from_pretrained(tmp_path / str(index)).config.hidden_size == 12
