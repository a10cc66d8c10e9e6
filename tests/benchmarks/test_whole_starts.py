"""`python benchmarks/calibration start` and `train` on tiny teachers: which runs they make, and what a row is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_command import load_command
from tiny_subjects import SIZES, classifier_subject, masked_subject, sentences_subject, tagger_subject

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

FOLDER = Path(__file__).parents[2] / "benchmarks" / "calibration"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/calibration/__main__.py` with tiny teachers, and a folder of its own for records."""
    module = load_command(FOLDER)
    store = module._store
    monkeypatch.setattr(module, "_store", lambda _, minutes: store(tmp_path / "results", minutes))
    monkeypatch.setattr(
        module, "SUBJECTS", {"reaction-bert": masked_subject(tmp_path), "minilm": sentences_subject(tmp_path)}
    )
    monkeypatch.setattr(
        module,
        "EQUALLY_TRAINED",
        {"reaction-bert": module.SUBJECTS["reaction-bert"], "tagger": tagger_subject(tmp_path)},
    )
    return module


@pytest.fixture
def cases(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two cases of tiny teachers and two ways to calibrate; the library is of version `now`."""
    from cases import Case, drawn
    from starts import Start

    made = {name: Case(subject, SIZES, drawn(8, 40)) for name, subject in command.SUBJECTS.items()}
    monkeypatch.setattr(command, "CASES", made)
    monkeypatch.setattr(command, "CALIBRATIONS", {"selection": Start(), "firm": Start(calibration={"ridge": 0.1})})
    for module in ("starting", "equal_training"):
        monkeypatch.setattr(f"{module}.library_version", lambda: "now")
    return made


def test_every_calibration_of_every_student_from_all_texts_is_a_row(
    command: ModuleType, cases: dict[str, Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    command.start(output=page)
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "start").iterdir()]
    assert len(records) == len(cases) * 2 * 2 * 2
    losses = [record["scores"]["loss"] for record in records]
    assert len(set(losses)) == len(losses)
    rows = [line for line in page.read_text().splitlines() if " | now | " in line]
    assert len(rows) == len(cases) * 2 * 2 * 2


def test_another_version_of_the_library_is_measured_anew_and_stands_beside_the_first(
    command: ModuleType, cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    few = {"subject": ["minilm"], "start": ["selection"], "width": ["1/2"], "texts": ["8"], "output": page}
    command.start(**few)
    monkeypatch.setattr("starting.library_version", lambda: "later")
    command.start(**few, limit_minutes=0, beside=["now"])
    assert "| now |" in page.read_text() and "1 runs are missing" in page.read_text()
    command.start(**few, beside=["now"])
    assert [line.split(" | ")[3] for line in page.read_text().splitlines() if " 8 |" in line] == ["later", "now"]


def test_two_starts_take_turns_and_their_ratio_is_told(
    command: ModuleType, cases: dict[str, Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    command.start(subject=["reaction-bert"], width=["1/2"], texts=["8"], timing=True, rounds=2, output=page)
    (record,) = [json.loads(file.read_text()) for file in (tmp_path / "results" / "start-time").iterdir()]
    assert {name: len(seconds) for name, seconds in record["rounds"].items()} == {"selection": 2, "firm": 2}
    assert "| ratio (least to most) |" in page.read_text()
    with pytest.raises(command.typer.BadParameter, match="two starts take turns"):
        command.start(start=["firm"], timing=True, output=page)


@pytest.mark.parametrize(("teacher", "figure"), [("reaction-bert", "loss"), ("tagger", "KL")])
def test_compactors_and_merged_students_train_for_equal_steps_and_for_equal_seconds(
    teacher: str, figure: str, command: ModuleType, cases: dict[str, Any], tmp_path: Path
) -> None:
    """With labels, and without: then both learn the outputs of their teacher."""
    page = tmp_path / "page.md"
    few = {"start": ["firm"], "width": ["1/2"], "steps": [3], "seeds": 2, "batch_size": 16}
    command.train_equally(subject=[teacher], **few, output=page)
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "equal-training").iterdir()]
    equal = [record for record in records if record["settings"]["steps"] == 3]
    assert {(record["settings"]["trained"], record["settings"]["seed"]) for record in equal} == {
        (trained, seed) for trained in ("compactors", "merged student") for seed in range(2)
    }
    starts = {record["before"][figure] for record in records}
    assert max(starts) == pytest.approx(min(starts), abs=0.1)  # another seed calibrates on other texts
    assert len({record["scores"][figure] for record in equal}) == 4
    assert "merged student, equal seconds" in page.read_text()


def test_single_runs_are_named_by_what_trains_and_by_their_seed(
    command: ModuleType, cases: dict[str, Any], tmp_path: Path
) -> None:
    few = {"start": ["firm"], "width": ["1/2"], "steps": [3], "batch_size": 16}
    one = {"seed": [1], "trained": ["merged student"]}
    command.train_equally(subject=["reaction-bert"], **few, **one, output=tmp_path / "page.md")
    (record,) = [json.loads(file.read_text()) for file in (tmp_path / "results" / "equal-training").iterdir()]
    assert (record["settings"]["seed"], record["settings"]["trained"]) == (1, "merged student")
    with pytest.raises(command.typer.BadParameter, match="teachers is none of compactors, merged student"):
        command.train_equally(subject=["reaction-bert"], **few, trained=["teachers"], output=tmp_path / "page.md")


def test_words_are_confused_with_others_of_their_group_only(command: ModuleType) -> None:
    from confusions import OTHERS, confused

    text = "They went to their house, which is older than ours, to see an uncle."
    changed = {
        (was, now) for seed in range(20) for was, now in zip(text.split(), confused(text, seed).split(), strict=True)
    }
    assert all(was == now or now in OTHERS[was] for was, now in changed)
    assert ("than", "then") in changed and ("than", "than") in changed


@pytest.mark.parametrize("kind", [tagger_subject, classifier_subject])
def test_a_teacher_agrees_with_itself_and_less_with_its_student(
    command: ModuleType, tmp_path: Path, kind: Callable[[Path], Any]
) -> None:
    from starts import Start, measure_start

    subject = kind(tmp_path)
    assert subject.score(subject.teacher())["agreement"] == 1
    found = measure_start(subject, SIZES["1/2"], Start(), subject.calibration(0))["scores"]
    assert set(found) == set(subject.figures)
    assert found["agreement"] < 1
