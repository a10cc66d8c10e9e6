"""The map of turned outputs lies beside a merged student, is read by one call, and disturbs nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel
from wid_models import IDS, identity, random_turn, tiny_encoder, turned

from wid_hf import FormatError, WidError, load_output_map
from wid_hf.adapter.merge import map_of

FILE = "output_map.safetensors"


def students() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student whose outputs are turned, and one whose outputs are coordinates."""
    return turned(identity(tiny_encoder())).merge_and_unload(), identity(tiny_encoder()).merge_and_unload()


def test_a_turned_student_is_saved_with_its_map_and_loads_as_ever(tmp_path: Path) -> None:
    student, _ = students()
    (tmp_path / "modules.json").write_text(json.dumps([]))  # as in a folder of sentence-transformers
    student.save_pretrained(tmp_path)
    assert torch.equal(load_output_map(tmp_path), random_turn(24, 12).T.float())
    with safe_open(tmp_path / FILE, framework="pt") as file:
        assert file.metadata() == {
            "teacher_size": "24",
            "student_size": "12",
            "outputs": "turned",
            "format_version": "1",
        }
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**IDS).last_hidden_state, student(**IDS).last_hidden_state)


def test_a_merged_student_knows_its_map_until_it_is_saved(tmp_path: Path) -> None:
    student, selection = students()
    assert torch.equal(map_of(student), random_turn(24, 12).T.float())
    chosen = map_of(selection)
    assert chosen is not None
    assert torch.equal(chosen.sum(0), torch.ones(12))
    student.save_pretrained(tmp_path)
    assert map_of(AutoModel.from_pretrained(tmp_path)) is None
    assert map_of(tiny_encoder()) is None


def test_a_selection_is_saved_without_a_map_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    student, selection = students()
    student.save_pretrained(tmp_path)
    selection.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(WidError, match=r"holds no output_map\.safetensors.*some coordinates of the teacher's"):
        load_output_map(tmp_path)


def test_only_the_main_process_writes_the_map(tmp_path: Path) -> None:
    student, _ = students()
    student.save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / FILE).exists()


def test_the_map_is_pushed_with_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, _ = students()
    pushed: list[tuple[str, dict[str, Any]]] = []

    def push_to_hub(self: PreTrainedModel, repo_id: str, *, private: bool | None = None, token: Any = None) -> str:
        self.save_pretrained(tmp_path / "uploaded")
        pushed.append((repo_id, {"private": private, "token": token}))
        return "commit"

    monkeypatch.setattr(type(student), "push_to_hub", push_to_hub)
    student.save_pretrained(tmp_path / "student", push_to_hub=True, private=True)
    student.save_pretrained(tmp_path / "student", push_to_hub=True, repo_id="me/other", token="hf_x")
    assert pushed == [("student", {"private": True, "token": None}), ("me/other", {"private": None, "token": "hf_x"})]
    assert (tmp_path / "uploaded" / FILE).is_file() and (tmp_path / "student" / FILE).is_file()


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WidError, match="neither a folder nor a model on the Hub"):
        load_output_map(tmp_path / "nowhere")
    save_file({"output_map": torch.zeros(2, 1)}, tmp_path / FILE, metadata={"format_version": "2"})
    with pytest.raises(FormatError, match="a newer one wrote it"):
        load_output_map(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a tensor")
    with pytest.raises(WidError, match="is damaged"):
        load_output_map(tmp_path)
