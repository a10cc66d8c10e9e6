"""`python benchmarks/methods` on tiny teachers: every method at its best learning rate, and what the page says."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_command import load_command
from methods import METHODS
from toys import save_teacher, texts
from transformers import BertForMaskedLM, BertModel

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "methods"
SIZES = {
    "3/4": {"hidden_size": 20, "intermediate_size": 36},
    "1/2": {"hidden_size": 12, "intermediate_size": 24},
    "1/4": {"hidden_size": 8, "intermediate_size": 12},
}
TUNING = {"tuning_steps": 2, "tuning_rate": [1e-3], "tuning_examples": 16, "eval_examples": 8}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/methods/__main__.py` with tiny teachers and data, and a folder of its own for records."""
    module = load_command(FOLDER)
    monkeypatch.setattr(sys.modules["students"], "STUDENTS", tmp_path / "students")
    write_data(tmp_path / "data")
    shared = {
        "sizes": SIZES,
        "data": tmp_path / "data",
        "max_length": 12,
        "validation_texts": 16,
        "calibration_samples": 40,
    }
    reactions = tmp_path / "data" / "uspto50k"
    shared |= {"train": reactions / "train.jsonl", "looked_at": reactions / "valid.jsonl"}
    monkeypatch.setattr(
        module,
        "CONTESTS",
        {
            "reaction-bert": replace(
                module.CONTESTS["reaction-bert"],
                folder=save_teacher(tmp_path / "masked", BertForMaskedLM),
                validation=reactions / "valid.jsonl",
                **shared,
            ),
            "minilm": replace(
                module.CONTESTS["minilm"],
                folder=save_teacher(tmp_path / "encoder", BertModel),
                column="rxn",
                tasks={"stsb-zero-shot": ("test", "spearman")},
                **shared,
            ),
        },
    )
    return module


def write_data(folder: Path) -> None:
    chance = random.Random(0)
    for split, seed in (("train", 1), ("valid", 2), ("test", 3)):
        rows = [{"rxn": text, "class": 1 + at % 10} for at, text in enumerate(texts(64, seed))]
        write_rows(folder / "uspto50k" / f"{split}.jsonl", rows)
    for split in ("train", "dev", "test"):
        pairs = zip(texts(16, 4), texts(16, 5), strict=True)
        rows = [{"text_a": a, "text_b": b, "label": chance.uniform(0, 5)} for a, b in pairs]
        write_rows(folder / "glue" / "stsb" / f"{split}.jsonl", rows)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")


def places(tmp_path: Path) -> dict[str, Path]:
    return {"records": tmp_path / "results", "output": tmp_path / "docs"}


def one_student(tmp_path: Path) -> dict[str, Any]:
    """The smallest comparison: one method at one width, with one seed."""
    return {
        "teacher_name": ["reaction-bert"],
        "method": ["slice"],
        "batch_size": 16,
        **places(tmp_path),
        "steps": 2,
        "seeds": 1,
        "sweep_steps": 2,
        "width": ["1/2"],
        **TUNING,
    }


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (tmp_path / "results" / "methods").iterdir()]


@pytest.mark.slow
def test_every_learning_rate_is_tried_and_the_best_is_compared(command: ModuleType, tmp_path: Path) -> None:
    names = ["slice", "logit-kd"]
    shared: dict[str, Any] = {"teacher_name": ["reaction-bert"], "method": names, "batch_size": 16, **places(tmp_path)}
    command.sweep(sweep_steps=4, **shared)
    swept = records(tmp_path)
    assert len(swept) == 2 * 4
    command.compare(steps=6, seeds=2, sweep_steps=4, **shared, **TUNING)
    tuned = [record for record in records(tmp_path) if "tasks" in record]
    assert sum(record["settings"]["method"] == "teacher" for record in tuned) == 2
    students = [r for r in records(tmp_path) if "scores" in r and r["settings"]["steps"] == 6]
    assert len(students) == len(tuned) - 2 == 2 * 2 * 2  # widths, methods, seeds
    for name in names:
        losses = {
            record["settings"]["rates"]["learning_rate"]: record["scores"]["student"]["masked_lm_loss"]
            for record in swept
            if record["settings"]["method"] == name
        }
        used = {r["settings"]["rates"]["learning_rate"] for r in students if r["settings"]["method"] == name}
        assert used == {min(losses, key=losses.__getitem__)}
    for seed in (0, 1):
        assert len({record["tokens"] for record in students if record["settings"]["seed"] == seed}) == 1
    text = (tmp_path / "docs" / "results.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Reaction BERT: all methods, 6 steps of 16",
        "## Reaction BERT: learning rates, 4 steps of 16",
    ]
    rows = [line for line in text.splitlines() if line.startswith(("| 1/2 |", "| 1/4 |"))]
    assert len(rows) == 4 and all(
        "±" in row and "→" in row and METHODS[n].title in row for row, n in zip(rows, names * 2, strict=True)
    )
    assert "28 of 36 students are missing" in text  # those of the other seven methods
    for width in ("1-of-2", "1-of-4"):
        assert (tmp_path / "docs" / "results" / f"attention-reaction-bert-{width}-6x16.png").stat().st_size
    swept_rows = [line for line in text.splitlines() if line.startswith(f"| {METHODS['slice'].title} | 0.0001: ")]
    assert len(swept_rows) == 1 and swept_rows[0].count("**") == 2


def test_students_of_all_sizes_make_a_curve(command: ModuleType, tmp_path: Path) -> None:
    command.sizes(teacher_name=["reaction-bert"], steps=2, batch_size=16, sweep_steps=1, **places(tmp_path))
    text = (tmp_path / "docs" / "results.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| 3/4 |", "| 1/2 |", "| 1/4 |"))]
    counts = [int(row.split("|")[5].replace(",", "")) for row in rows]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 3
    assert (tmp_path / "docs" / "results" / "sizes-reaction-bert-2x16.png").stat().st_size
    before = text
    command.results(**places(tmp_path))  # from what is recorded alone
    assert (tmp_path / "docs" / "results.md").read_text() == before


def test_the_page_of_results_is_what_the_records_say(command: ModuleType, tmp_path: Path) -> None:
    import contests

    found = command.Store(command.RECORDS).records("methods")
    page = command.write_results(contests.CONTESTS, found, tmp_path / "docs")
    assert (ROOT / "docs" / "results.md").read_text().startswith(page.read_text())  # sections about starts follow
    made, kept = ({file.name for file in (docs / "results").glob("*.png")} for docs in (page.parent, ROOT / "docs"))
    assert made == kept


def test_a_finished_run_is_read_back_and_no_run_begins_out_of_time(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import students

    shared = one_student(tmp_path)
    command.compare(limit_minutes=0, **shared)
    assert not (tmp_path / "results").exists()
    page = tmp_path / "docs" / "results.md"
    assert "## " not in page.read_text()
    command.compare(**shared)
    first = page.read_text()
    for name in ("_train", "evaluate", "compare_attention"):
        monkeypatch.setattr(students, name, lambda *_, **__: pytest.fail("run again"))
    command.compare(**shared)
    assert page.read_text() == first


def test_a_student_is_tuned_once_more_without_training_and_trained_again_if_it_is_gone(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import students

    shared = one_student(tmp_path)
    command.compare(**shared)
    trainings, train = [], students._train
    monkeypatch.setattr(students, "_train", lambda run: trainings.append(run) or train(run))
    command.compare(**{**shared, "tuning_steps": 3})
    assert not trainings
    shutil.rmtree(tmp_path / "students")
    command.compare(**{**shared, "tuning_steps": 4})
    assert len(trainings) == 1
    found = [
        r["tasks"]["reactions"]["splits"]
        for r in records(tmp_path)
        if "tasks" in r and r["settings"]["method"] == "slice"
    ]
    assert len(found) == 3


def test_a_run_that_diverged_is_told_and_never_the_best(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contests

    monkeypatch.setattr(contests, "STOCK_GRID", ({"learning_rate": 1e30}, {"learning_rate": 1e-3}))
    command.sweep(teacher_name=["reaction-bert"], method=["scratch"], sweep_steps=8, batch_size=16, **places(tmp_path))
    lines = (tmp_path / "docs" / "results.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith("| from scratch | 1e+30: diverged | 0.001: **"))
    assert row.count("diverged") == 1
    assert any("diverged" in record and "scores" not in record for record in records(tmp_path))


def test_unknown_teachers_and_methods_are_named(command: ModuleType, tmp_path: Path) -> None:
    for given in ({"teacher_name": ["nobody"]}, {"method": ["nobody"]}):
        with pytest.raises(command.typer.BadParameter, match="nobody is none of"):
            command.sweep(**given, **places(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reaction-bert", "minilm"])
def test_all_methods_that_apply_are_compared(name: str, command: ModuleType, tmp_path: Path) -> None:
    command.compare(
        teacher_name=[name],
        steps=51,
        seeds=1,
        sweep_steps=50,
        batch_size=16,
        width=["1/2"],
        **places(tmp_path),
        **TUNING,
    )
    applying = {method.name for method in METHODS.values() if method.headless or name == "reaction-bert"}
    assert {r["settings"]["method"] for r in records(tmp_path) if "tasks" in r} == applying | {"teacher"}
    made = {r["settings"]["method"]: r for r in records(tmp_path) if r.get("scores") and r["settings"]["steps"] == 51}
    students = [made[method] for method in applying]
    assert len({(record["tokens"], record["parameters"]) for record in students}) == 1
    assert len({json.dumps(record["scores"]["student"]) for record in students}) == len(students)
    assert all(record["attention"]["mean"] > 0 for record in students)
    assert "diverged" not in (tmp_path / "docs" / "results.md").read_text()
