"""`python benchmarks/budget` on a tiny teacher: which runs it makes, and what a row is."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_command import load_command
from tiny_subjects import sentences_subject

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

FOLDER = Path(__file__).parents[2] / "benchmarks" / "budget"
BESIDE = ("calibration",)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/budget/__main__.py` with a tiny teacher that has two layers; the library is of version `now`."""
    module = load_command(FOLDER)
    from contests import Contest, Quoted

    quoted = {"80%": (Quoted("an older way", "1.2 k", "77.7", "a book"),)}
    targets = {"80%": "80%", "2%": "2%"}
    contest = Contest(sentences_subject(tmp_path), "Spearman", targets, quoted, of_corpus=("80%",))
    monkeypatch.setattr(module, "CONTESTS", {"minilm": contest})
    monkeypatch.setattr("rows.library_version", lambda: "now")
    return module


def run(command: ModuleType, folder: Path, **given: Any) -> str:
    options = {"subject": None, "target": ["80%"], "method": None, "seconds": 30.0, "limit_minutes": None}
    command.main(**{**options, **given}, records=folder / "records", output=folder / "page.md")
    return (folder / "page.md").read_text()


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / "records" / "budget").glob("*.json"))]


def test_every_way_leads_to_a_student_below_the_target(command: ModuleType, tmp_path: Path) -> None:
    page = run(command, tmp_path, method=["width alone", "depth alone", "search"])

    found = {record["settings"]["method"]: record for record in records_of(tmp_path)}
    teacher = json.loads(next((tmp_path / "records" / "teacher").glob("*.json")).read_text())
    alone = {name: record for name, record in found.items() if "tokens" not in record}
    assert set(alone) == {"width alone", "depth alone", "search"}
    assert all(record["parameters"] <= 0.8 * teacher["parameters"] for record in alone.values())
    assert len(alone["depth alone"]["layers"]["num_hidden_layers"]) == 1
    assert "| 80% | an older way (quoted) | 1.2 k |" in page and "a book" in page


def test_the_tokens_of_the_training_texts_are_tried_alone_where_asked(command: ModuleType, tmp_path: Path) -> None:
    page = run(command, tmp_path, method=["width alone"])

    (fewer,) = [record for record in records_of(tmp_path) if "tokens" in record]
    assert fewer["settings"]["method"] == "width alone, tokens of the training texts"
    assert f"{fewer['tokens']:,} tokens" in page


def test_a_size_that_a_way_cannot_reach_is_told_with_its_reason(command: ModuleType, tmp_path: Path) -> None:
    page = run(command, tmp_path, target=["2%"], method=["depth alone"])

    assert "refused: One layer alone, with the embeddings, has more than" in page


def test_what_is_recorded_is_not_measured_again(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(command, tmp_path, target=["2%"], method=["depth alone"])
    monkeypatch.setattr("rows.measured", None)

    assert run(command, tmp_path, target=["2%"], method=["depth alone"]) == first
