"""`python benchmarks/calibration` on tiny teachers: what a run measures, what it keeps, and what the page says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from benchmark_command import load_command
from tiny_subjects import SIZES, masked_subject, sentences_subject

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

FOLDER = Path(__file__).parents[2] / "benchmarks" / "calibration"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/calibration/__main__.py` with tiny teachers, and a folder of its own for records and page."""
    module = load_command(FOLDER)
    store = module._store
    monkeypatch.setattr(module, "_store", lambda _, minutes: store(tmp_path / "results", minutes))
    monkeypatch.setattr(
        module, "SUBJECTS", {"reaction-bert": masked_subject(tmp_path), "minilm": sentences_subject(tmp_path)}
    )
    return module


def test_every_start_of_every_width_is_measured_and_the_pieces_differ(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    command.ablation(teacher=["reaction-bert"], output=page)
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "untrained").iterdir()]
    assert len(records) == 1 + 2 * len(command.STARTS)
    losses = [record["scores"]["loss"] for record in records]
    assert len(set(losses)) == len(losses)
    assert capsys.readouterr().out.strip() in page.read_text()
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| 1/2 |", "| 1/4 |"))]
    assert len(rows) == 2 * len(command.STARTS)
    assert "missing" not in page.read_text()


def test_a_finished_run_is_read_back_and_no_run_begins_out_of_time(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    command.ablation(teacher=["reaction-bert"], width=["1/2"], output=page)
    first = page.read_text()
    for name in ("measure_teacher", "measure_start"):
        monkeypatch.setattr(f"sections.{name}", lambda *_, **__: pytest.fail("measured again"))
    command.ablation(teacher=["reaction-bert"], width=["1/2"], output=page)
    assert page.read_text() == first
    command.ablation(teacher=["reaction-bert"], limit_minutes=0, output=page)
    assert f"{len(command.STARTS)} runs are missing" in page.read_text()


def test_a_run_that_fails_leaves_no_record(tmp_path: Path) -> None:
    from store import Store

    store = Store(tmp_path, time.monotonic() + 60)
    with pytest.raises(ZeroDivisionError):
        store.get({"what": "test"}, lambda: {"scores": 1 / 0})
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    made = store.get({"what": "test"}, lambda: {"scores": 1})
    assert made == store.get({"what": "test"}, lambda: pytest.fail("measured again"))
    assert store.get({"what": "test", "seed": 1}, lambda: {"scores": 2})["scores"] == 2


def test_training_is_measured_before_and_after_for_each_seed(command: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command.starts(steps=3, seeds=2, batch_size=16, output=page)  # fewer texts may have nothing masked
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "trained").iterdir()]
    assert len(records) == 2 * 2 * len(command.TRAINED)
    for record in records:
        assert record["before"]["loss"] != record["scores"]["loss"]
        assert len(record["losses"]) == 3
    assert page.read_text().count("→") >= 2 * len(command.TRAINED)
    assert page.read_text().count("±") > 2 * len(command.TRAINED)


def test_training_starts_where_the_ablation_left_the_student(command: ModuleType) -> None:
    from starts import CALIBRATED, STARTS, measure_start
    from training import train

    subject = command.SUBJECTS["reaction-bert"]
    begun = measure_start(subject, SIZES["1/2"], STARTS[CALIBRATED], subject.calibration(seed=0))
    trained = train(subject, SIZES["1/2"], STARTS[CALIBRATED], steps=1, batch_size=4, rates=(1e-4, 1e-5), seed=0)
    assert trained["before"] == begun["scores"]


def test_a_sweep_runs_every_pair_of_its_grid_from_both_starts(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ((1e-4, 0.0), (1e-2, 0.0))
    monkeypatch.setattr(type(command.SUBJECTS["minilm"]), "grid", grid)
    command.sweep(teacher=["minilm"], steps=3, batch_size=4, output=tmp_path / "page.md")
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "trained").iterdir()]
    assert len(records) == 4
    assert {tuple(record["settings"]["rates"]) for record in records} == set(grid)
    assert len({record["before"]["loss"] for record in records}) == 2
    assert len({record["scores"]["loss"] for record in records}) == 4


def test_a_teacher_follows_itself_perfectly(command: ModuleType) -> None:
    subject = command.SUBJECTS["minilm"]
    found = subject.score(subject.teacher())
    assert found["loss"] == pytest.approx(0, abs=1e-6)
    assert found["cosine with teacher"] == pytest.approx(1)
    assert found["correlation of cosines"] == pytest.approx(1)


def test_spearman_counts_ranks_and_ties_share_theirs(command: ModuleType) -> None:
    from sentences import spearman

    assert spearman(pd.Series([1.0, 2.0, 3.0, 40.0]), pd.Series([9.0, 8.0, 8.0, 1.0])) == pytest.approx(-(0.9**0.5))


def test_a_section_takes_the_place_of_its_older_self_and_leaves_the_others(command: ModuleType, tmp_path: Path) -> None:
    from page import write_section

    page = tmp_path / "page.md"
    for title, line in (("One", "old"), ("Two", "kept"), ("One", "new"), ("Three", "last"), ("Three", "newest")):
        write_section(page, "# Page\n", title, [line])
    text = page.read_text()
    assert [line for line in text.splitlines() if line][-6:] == [
        "## One",
        "new",
        "## Two",
        "kept",
        "## Three",
        "newest",
    ]


def test_an_unknown_teacher_is_named(command: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(command.typer.BadParameter, match="nobody is none of reaction-bert, minilm"):
        command.ablation(teacher=["nobody"], output=tmp_path / "page.md")


def test_every_schedule_is_trained_and_drawn(command: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command.schedules(steps=50, seeds=1, batch_size=16, output=page)  # fewer texts may have nothing masked
    records = {
        record["settings"]["start"]: record
        for record in (json.loads(file.read_text()) for file in (tmp_path / "results" / "trained").iterdir())
    }
    assert set(records) == set(command.SCHEDULES)
    assert records["progressive, dim"]["narrow_from"] == 2
    assert records["ten times slower, dim, by norm"]["narrow_from"] == 15
    assert records["from scratch"]["narrow_from"] is None
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")
    assert "schedules.png" in page.read_text()
    assert len({record["scores"]["loss"] for record in records.values()}) == len(records)
