"""`python benchmarks/methods` on tiny teachers: every method at its best learning rate, and what the page says."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toys import save_teacher, texts
from transformers import BertForMaskedLM, BertModel

from wid_hf.methods import METHODS

FOLDER = Path(__file__).parents[2] / "benchmarks" / "methods"
SIZES = {"1/2": {"hidden_size": 12, "intermediate_size": 24}, "1/4": {"hidden_size": 8, "intermediate_size": 12}}
TUNING = {"tuning_steps": 2, "tuning_rate": [1e-3], "tuning_examples": 16, "eval_examples": 8}


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    """Make the package's modules importable by the names that they have for each other, here alone."""
    before, folders = list(sys.path), [FOLDER, FOLDER.with_name("shared")]
    names = {file.stem for folder in folders for file in folder.glob("*.py")}
    sys.path[:0] = map(str, folders)
    yield
    sys.path[:] = before
    for name in names - {"__main__"}:
        sys.modules.pop(name, None)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/methods/__main__.py` with tiny teachers and data, and a folder of its own for records."""
    spec = util.spec_from_file_location("methods_run", FOLDER / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write_data(tmp_path / "data")
    shared = {"sizes": SIZES, "data": tmp_path / "data", "max_length": 12, "validation_texts": 16,
              "calibration_samples": 40}  # fmt: skip
    reactions = tmp_path / "data" / "uspto50k"
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        module,
        "CONTESTS",
        {
            "reaction-bert": replace(
                module.CONTESTS["reaction-bert"], folder=save_teacher(tmp_path / "masked", BertForMaskedLM),
                train=reactions / "train.jsonl", validation=reactions / "valid.jsonl", **shared,
            ),
            "minilm": replace(
                module.CONTESTS["minilm"], folder=save_teacher(tmp_path / "encoder", BertModel), column="rxn",
                train=reactions / "train.jsonl", tasks={"stsb-zero-shot": ("test", "spearman")}, **shared,
            ),
        },
    )  # fmt: skip
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


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (tmp_path / "results" / "methods").iterdir()]


@pytest.mark.slow
def test_every_learning_rate_is_tried_and_the_best_is_compared(command: ModuleType, tmp_path: Path) -> None:
    page, names = tmp_path / "page.md", ["slice", "logit-kd"]
    shared: dict[str, Any] = {"teacher_name": ["reaction-bert"], "method": names, "batch_size": 16, "output": page}
    command.sweep(sweep_steps=4, **shared)
    swept = records(tmp_path)
    assert len(swept) == 2 * 4
    command.compare(steps=6, seeds=2, sweep_steps=4, **shared, **TUNING)
    made = [record for record in records(tmp_path) if "tasks" in record]
    students = [record for record in made if record["settings"]["method"] != "teacher"]
    assert len(made) - len(students) == 2 and len(students) == 2 * 2 * 2  # widths, methods, seeds
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
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Learning rates of all methods: reaction-bert",
        "## All methods: reaction-bert",
    ]
    rows = [line for line in text.splitlines() if line.startswith(("| 1/2 |", "| 1/4 |"))]
    assert len(rows) == 4 and all("±" in row and "→" in row and METHODS[n].title in row for row, n in
                                  zip(rows, names * 2, strict=True))  # fmt: skip
    assert "missing" not in text and text.count("| best |") == 2


def test_a_finished_run_is_read_back_and_no_run_begins_out_of_time(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import students

    shared: dict[str, Any] = {
        "teacher_name": ["reaction-bert"], "method": ["slice"], "batch_size": 16, "output": tmp_path / "page.md",
        "steps": 2, "seeds": 1, "sweep_steps": 2, "width": ["1/2"], **TUNING,
    }  # fmt: skip
    command.compare(limit_minutes=0, **shared)
    assert not (tmp_path / "results").exists()
    assert "no run is finished yet" in (tmp_path / "page.md").read_text()
    command.compare(**shared)
    first = (tmp_path / "page.md").read_text()
    for name in ("compress", "evaluate"):
        monkeypatch.setattr(students, name, lambda *_, **__: pytest.fail("run again"))
    command.compare(**shared)
    assert (tmp_path / "page.md").read_text() == first


def test_a_run_that_diverged_is_told_and_never_the_best(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contests

    monkeypatch.setattr(contests, "STOCK_GRID", ({"learning_rate": 1e30}, {"learning_rate": 1e-3}))
    page = tmp_path / "page.md"
    command.sweep(teacher_name=["reaction-bert"], method=["scratch"], sweep_steps=8, batch_size=16, output=page)
    (hot,) = (line for line in page.read_text().splitlines() if "| scratch | 1e+30" in line)
    assert hot.count("diverged") == 2 and "best" not in hot
    assert any("diverged" in record and "scores" not in record for record in records(tmp_path))


def test_unknown_teachers_and_methods_are_named(command: ModuleType, tmp_path: Path) -> None:
    for given in ({"teacher_name": ["nobody"]}, {"method": ["nobody"]}):
        with pytest.raises(command.typer.BadParameter, match="nobody is none of"):
            command.sweep(**given, output=tmp_path / "page.md")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reaction-bert", "minilm"])
def test_all_methods_that_apply_are_compared(name: str, command: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command.compare(
        teacher_name=[name], steps=50, seeds=1, sweep_steps=50, batch_size=16, width=["1/2"], output=page, **TUNING
    )
    made = {r["settings"]["method"]: r for r in records(tmp_path) if "tasks" in r}
    applying = {method.name for method in METHODS.values() if method.headless or name == "reaction-bert"}
    assert set(made) == applying | {"teacher"}
    students = [made[method] for method in applying]
    assert len({(record["tokens"], record["parameters"]) for record in students}) == 1
    assert len({json.dumps(record["scores"]["student"]) for record in students}) == len(students)
    assert "missing" not in page.read_text() and "diverged" not in page.read_text()
