"""Students of several sizes in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toys import write_texts
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from wid_hf import ConfigError, OutputError
from wid_hf.budget import SizeSearch, Target
from wid_hf.tools import find_sizes as finding
from wid_hf.tools import many_sizes
from wid_hf.tools.compress import CompressSettings
from wid_hf.tools.many_sizes import compress_sizes
from wid_hf_cli.app import app

SETTINGS = CompressSettings(steps=0, batch_size=8, max_length=12, validation_texts=8)
GUESS = SizeSearch(Target(params="99%"), 0, 2, {"init": "identity", "selection": "variance"})


def parameters(folder: Path) -> int:
    return sum(each.numel() for each in AutoModelForMaskedLM.from_pretrained(folder).parameters())


def made(teacher: Path, folder: Path, sizes: list[str], **more: Any) -> dict[str, Any]:
    rows = write_texts(folder / "rows.txt")
    return compress_sizes(str(teacher), str(rows), folder / "out", sizes, GUESS, SETTINGS, **more)[0]


def test_each_size_has_a_folder_and_all_are_on_one_page(masked_teacher: Path, tmp_path: Path) -> None:
    reports = made(masked_teacher, tmp_path, ["50%", "75%"])

    whole = parameters(masked_teacher)
    assert [*reports] == ["75-percent", "50-percent"]
    for name, share in (("75-percent", 0.75), ("50-percent", 0.5)):
        assert 0.6 * share * whole < parameters(tmp_path / "out" / name) <= share * whole
        assert json.loads((tmp_path / "out" / name / "wid_report.json").read_text())["teacher"] == str(masked_teacher)
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "75-percent" in page and "50-percent" in page


def test_in_a_chain_each_student_is_made_from_the_next_larger_one(masked_teacher: Path, tmp_path: Path) -> None:
    reports = made(masked_teacher, tmp_path, ["75%", "50%"], chain=True)

    assert reports["50-percent"].teacher == str(tmp_path / "out" / "75-percent")
    assert parameters(tmp_path / "out" / "50-percent") <= 0.5 * parameters(masked_teacher)


def test_all_sizes_share_one_survey_of_the_teacher_and_its_tokens(
    masked_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(owner: Any, name: str) -> None:
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(name), own(*a, **k))[1])

    counted(finding.Survey, "of")
    counted(finding.Space, "of")
    for name in ("smaller_vocabulary", "load_training_data", "halved"):
        counted(finding, name)
    rows, asked = write_texts(tmp_path / "rows.txt"), SizeSearch(Target(params="99%"), 20, 8, {"vocabulary": "corpus"})

    reports, _ = compress_sizes(str(masked_teacher), str(rows), tmp_path / "out", ["50%", "75%"], asked, SETTINGS)

    assert sorted(calls) == ["halved", "halved", "load_training_data", "of", "of", "smaller_vocabulary"]
    whole = parameters(masked_teacher)
    for name, share in (("75-percent", 0.75), ("50-percent", 0.5)):
        search = reports[name].search
        assert search is not None and search["asked"]["seconds"] == 10
        assert search["limits"] == {"params": int(share * whole)}
        assert parameters(tmp_path / "out" / name) <= share * whole


def test_a_folder_that_may_not_be_replaced_is_refused_before_the_search(
    masked_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("it searches")

    monkeypatch.setattr(many_sizes, "find_many_sizes", refuse)
    (tmp_path / "out" / "50-percent").mkdir(parents=True)
    (tmp_path / "out" / "50-percent" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="50-percent"):
        made(masked_teacher, tmp_path, ["75%", "50%"])


def test_students_that_are_complete_stay_when_the_call_goes_on(masked_teacher: Path, tmp_path: Path) -> None:
    made(masked_teacher, tmp_path, ["75%", "50%"])
    file = tmp_path / "out" / "75-percent" / "model.safetensors"
    before = file.stat().st_mtime_ns

    reports = made(masked_teacher, tmp_path, ["75%", "50%", "40%"], resume=True)

    assert [*reports] == ["40-percent"]
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("sizes", [["50%"], ["50%", "50%"], ["50%", "half"], ["50%", "0%"]])
def test_sizes_that_make_no_sense_are_refused_before_anything_is_written(
    masked_teacher: Path, tmp_path: Path, sizes: list[str]
) -> None:
    with pytest.raises(ConfigError):
        made(masked_teacher, tmp_path, sizes)

    assert not (tmp_path / "out").exists()


def test_the_command_makes_them_too(masked_teacher: Path, tmp_path: Path) -> None:
    rows, out = write_texts(tmp_path / "rows.txt"), tmp_path / "out"
    words = ["compress", str(masked_teacher), "--train", str(rows), "--output", str(out), "--sizes", "75%,50%"]
    start = ["--init", "identity", "--steps", "0", "--search-seconds", "0", "--round-to", "2", "--max-length", "12"]

    done = CliRunner().invoke(app, [*words, *start, "--validation-texts", "8"])

    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"75-percent", "50-percent", "report"}
    assert "All students on one page" in done.stdout
