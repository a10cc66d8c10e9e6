from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from wid_hf.errors import OutputError
from wid_hf.tools.evaluation.runs import Runs, write_json


def test_a_run_is_made_once_for_the_same_settings_in_any_order(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"scores": {"dev": {"f1": 0.5}}}

    first = Runs(tmp_path / "runs").get({"seed": 0, "learning_rate": 1e-4}, make)
    again = Runs(tmp_path / "runs").get({"learning_rate": 1e-4, "seed": 0}, make)
    Runs(tmp_path / "runs").get({"learning_rate": 1e-4, "seed": 1}, make)
    assert first == again == {"made_from": {"seed": 0, "learning_rate": 1e-4}, "scores": {"dev": {"f1": 0.5}}}
    assert len(made) == 2


def test_a_run_that_fails_leaves_nothing_behind_and_is_made_again(tmp_path: Path) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("stopped")

    runs = Runs(tmp_path / "runs")
    with pytest.raises(RuntimeError):
        runs.get({"seed": 0}, fail)
    assert not (tmp_path / "runs").exists()
    assert runs.get({"seed": 0}, lambda: {"steps": 1})["steps"] == 1


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_record_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert runs.get({"seed": 0}, lambda: {"scores": 1})["scores"] == 1
    (file,) = tmp_path.iterdir()
    for content in ("not json", "[]", "{}", '{"made_from": {"seed": 1}}'):
        file.write_text(content)
        with pytest.raises(OutputError, match="is not a record of `evaluate`"):
            runs.get({"seed": 0}, dict)
