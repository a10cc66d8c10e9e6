"""A folder is this program's own only as far as its report lists the files, and they are as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wid_hf.hub.own_files import FILE_NAME, file_digests, why_not_ours

REPORT = {"teacher": "t", "requested": {}, "sizes": {}, "versions": {"wid-hf": "0"}}


def student(folder: Path) -> Path:
    (folder / "templates").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "templates" / "chat.jinja").write_text("chat")
    (folder / FILE_NAME).write_text(json.dumps(REPORT | {"files": file_digests(folder)}))
    return folder


def test_a_folder_as_it_was_written_is_ours_also_with_files_missing(tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    assert why_not_ours(folder) is None
    (folder / "model.safetensors").unlink()
    assert why_not_ours(folder) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda folder: (folder / ".git").mkdir(), ".git"),
        (lambda folder: (folder / "templates" / "mine").write_text(""), "templates/mine"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"fine-tuned"), "model.safetensors"),
        (lambda folder: (folder / "link").symlink_to("model.safetensors"), "link"),
    ],
)
def test_what_was_added_or_changed_since_is_named(tmp_path: Path, change: object, named: str) -> None:
    folder = student(tmp_path / "student")
    change(folder)  # type: ignore[operator]
    told = why_not_ours(folder)
    assert told is not None and "changed since" in told and f"({named})" in told


@pytest.mark.parametrize(
    "report", ["{}", "[]", "not json", '{"files": {}}', json.dumps(REPORT), json.dumps(REPORT | {"files": []})]
)
def test_a_file_of_the_same_name_makes_no_folder_ours(tmp_path: Path, report: str) -> None:
    folder = student(tmp_path / "student")
    (folder / FILE_NAME).write_text(report)
    told = why_not_ours(folder)
    assert told is not None and "model.safetensors" in told
