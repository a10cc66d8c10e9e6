"""A target in the place of sizes: they are found once, reports and cards say for what, and a resumed run keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from toys import WORDS, texts, write_texts
from transformers import AutoModelForMaskedLM

import wid_hf
from wid_hf import ConfigError, OutputError, WidConfig
from wid_hf.budget import SizeSearch, Target
from wid_hf.errors import Stopped
from wid_hf.tools import compress as compressing
from wid_hf.tools import find_sizes as finding
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.find_sizes import find_sizes
from wid_hf.tools.teachers import Teacher
from wid_hf.tools.work_folder import RUN

HALF = Target(params="50%")
SETTINGS = CompressSettings(steps=4, batch_size=8, max_length=12, validation_texts=8, training={"save_steps": 2})
GUESS = SizeSearch(HALF, 0, 2, {"init": "identity", "selection": "variance"})


def parameters(folder: Path) -> int:
    return sum(each.numel() for each in AutoModelForMaskedLM.from_pretrained(folder).parameters())


def test_sizes_are_found_on_the_rows_of_the_run_and_fill_the_target(masked_teacher: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "t.txt")
    told: list[str] = []
    asked = SizeSearch(HALF, 120.0, 4)
    settings = CompressSettings(steps=0, batch_size=8, max_length=12, validation_texts=8)
    report = compress(str(masked_teacher), str(train), tmp_path / "s", asked, settings, tell=told.append)
    assert report.search is not None
    assert report.search["asked"] == {"target": {"params": "50%"}, "seconds": 120.0, "round_to": 4}
    assert report.search["candidates"][0]["shape"] == report.search["winner"]
    assert {name: report.requested[name] for name in report.search["sizes"]} == report.search["sizes"]
    assert 0.3 * parameters(masked_teacher) < parameters(tmp_path / "s") <= parameters(masked_teacher) / 2
    assert report.search["reason"] in told
    assert json.loads((tmp_path / "s" / "wid_report.json").read_text())["search"] == report.search
    card = (tmp_path / "s" / "README.md").read_text()
    assert f"Found for the target `params=50%`: {report.search['reason']}" in card


def test_a_call_from_python_takes_a_target_and_keeps_the_start_that_is_given(masked_teacher: Path) -> None:
    rows = Dataset.from_dict({"text": texts(80)})
    given: dict[str, Any] = {"steps": 0, "max_length": 12, "validation_texts": 8}
    student, report = wid_hf.compress(str(masked_teacher), rows, GUESS, **given)
    assert report.start == "identity, variance"
    assert report.search is not None and report.search["reason"].endswith("a guess, without a search.")
    assert student.config.hidden_size == report.search["winner"]["hidden_size"] < 24


def test_a_resumed_run_does_not_search_again(
    masked_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_texts(tmp_path / "t.txt")

    def run(asked: SizeSearch | WidConfig = GUESS, **given: Any) -> Any:
        return compress(str(masked_teacher), str(train), tmp_path / "s", asked, SETTINGS, **given)

    with monkeypatch.context() as patched:
        patched.setattr(compressing, "_train", lambda *_: Stopped(15))
        with pytest.raises(Stopped):
            run()
    kept = json.loads((tmp_path / "s-work" / RUN).read_text())["search"]
    with pytest.raises(OutputError, match=r"found for something else: target.params: 50% there, 40% here"):
        run(SizeSearch(Target(params="40%"), 0, 2), resume=True)

    def refuse(*_: Any) -> None:
        raise AssertionError("it searches")

    monkeypatch.setattr(finding, "find_sizes", refuse)
    report = run(resume=True)
    assert (report.search, report.steps) == (kept, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"others": {"hidden_size": 12}}, r"Sizes \(hidden_size\) and a target are given"),
        ({"seconds": -1}, "seconds=-1 is not a number from 0"),
    ],
)
def test_sizes_beside_a_target_and_negative_times_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SizeSearch(HALF, **given)


def test_a_share_is_of_the_whole_teacher_also_where_tokens_go(masked_teacher: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join([" ".join(WORDS[:5])] * 60))
    asked = SizeSearch(HALF, 0, 2, {"init": "identity", "vocabulary": "corpus"})

    report = compress(str(masked_teacher), str(rows), tmp_path / "s", asked, replace(SETTINGS, steps=0))

    assert 0.35 * parameters(masked_teacher) < parameters(tmp_path / "s") <= parameters(masked_teacher) / 2
    assert report.vocabulary is not None and report.search is not None
    assert report.search["limits"] == {"params": parameters(masked_teacher) // 2}


def test_a_head_of_its_own_is_counted_in_what_a_student_needs(masked_teacher: Path, tmp_path: Path) -> None:
    rows = write_texts(tmp_path / "rows.txt")
    others = {"init": "identity", "tie_word_embeddings": False}
    asked = SizeSearch(HALF, 0, 2, others)

    report = compress(str(masked_teacher), str(rows), tmp_path / "s", asked, replace(SETTINGS, steps=0))

    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "s")
    assert not student.config.tie_word_embeddings
    assert 0.4 * parameters(masked_teacher) < parameters(tmp_path / "s") <= parameters(masked_teacher) / 2
    assert report.search is not None
    assert report.search["limits"] == {"params": parameters(masked_teacher) // 2}


def test_tokens_of_rows_without_rows_are_refused(masked_teacher: Path) -> None:
    with pytest.raises(ConfigError, match="needs rows whose tokens are counted"):
        find_sizes(Teacher(str(masked_teacher)), SizeSearch(HALF, 0, 2, {"vocabulary": "corpus"}), None, SETTINGS)
