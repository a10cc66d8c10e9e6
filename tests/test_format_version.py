"""Files of version 0.1 still load, files of today say their version, and those of a newer wid_hf are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, BertForMaskedLM

from wid_hf import FormatError, WidConfig, WidError, get_wid_model
from wid_hf.format_version import refuse_newer
from wid_hf.hub.cards import student_card
from wid_hf.tools.evaluation.runs import Runs
from wid_hf.tools.reports.eval_report import EvalReport
from wid_hf.tools.reports.html_report import write_html_report

OLD = Path(__file__).parent / "support" / "version_0_1"  # what commit daf5368 wrote
ADAPTERS = Path(__file__).parent / "adapter" / "saved_adapters"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def record_of(folder: Path) -> Path:
    (record,) = (folder / "eval" / "runs" / "masked-lm").iterdir()
    return record


def test_the_files_of_0_1_have_no_version() -> None:
    files = [*OLD.rglob("*report.json"), record_of(OLD), *ADAPTERS.rglob("adapter_config.json")]
    assert len(files) == 6 and not any("format_version" in json.loads(file.read_text()) for file in files)


@pytest.mark.parametrize(("name", "words"), [("wid", "by Weight-Inherited"), ("slice", "rows and columns of the tea")])
def test_a_card_is_made_of_a_report_of_0_1(name: str, words: str, old: Path) -> None:
    card = str(student_card(old / name))
    title = {"wid": "WID", "slice": "slicing, then fine-tuning"}[name]
    assert words in card and f"**Method**: {title}\n" in card


def test_a_page_shows_reports_of_0_1(old: Path) -> None:
    page = write_html_report(old).read_text()
    assert all(f"run-{name}" in page for name in ("wid", "slice"))
    assert "masked LM" in page and "could not be read" not in page


def test_an_evaluation_of_0_1_is_read_and_goes_on(old: Path) -> None:
    report = EvalReport.load(old / "eval")
    assert list(report.tasks) == ["masked-lm"]
    made_from = json.loads(record_of(old).read_text())["made_from"]
    found = Runs(record_of(old).parent).get(made_from, lambda: pytest.fail("run again"))
    assert found["scores"] == report.tasks["masked-lm"].runs[0]["scores"]
    report.save(old / "eval")
    assert json.loads((old / "eval" / "eval_report.json").read_text())["format_version"] == 1
    assert EvalReport.load(old / "eval") == report


def test_an_adapter_of_0_1_is_loaded_and_saved_with_a_version(tmp_path: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(ADAPTERS / "teacher")
    model = PeftModel.from_pretrained(teacher, ADAPTERS / "dim")
    model.peft_config["default"].save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["format_version"] == 2


def test_what_a_newer_version_wrote_is_refused(old: Path, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    told = r"has format_version=2, and this wid-hf reads versions up to 1: a newer one wrote it\. Run: pip install"
    changed(old / "wid" / "wid_report.json", format_version=2)
    with pytest.raises(FormatError, match=rf"wid_report\.json {told}"):
        student_card(old / "wid")
    assert "a newer one wrote it" in write_html_report(old).read_text()  # and shows the others
    changed(old / "eval" / "eval_report.json", format_version=2)
    with pytest.raises(FormatError, match=rf"eval_report\.json {told}"):
        EvalReport.load(old / "eval")
    record = record_of(old)
    changed(record, format_version=2)
    with pytest.raises(FormatError, match=rf"{record.name} {told}"):
        Runs(record.parent).get(json.loads(record.read_text())["made_from"], lambda: pytest.fail("run again"))
    config = WidConfig(hidden_size=12, intermediate_size=24, init="identity")
    get_wid_model(tiny_bert, config).save_pretrained(tmp_path / "adapter")
    changed(tmp_path / "adapter" / "adapter_config.json", format_version=3)
    told = told.replace("=2", "=3").replace("to 1", "to 2")
    with pytest.raises(FormatError, match=f"The adapter's configuration {told}"):
        PeftModel.from_pretrained(tiny_bert, tmp_path / "adapter")


@pytest.mark.parametrize("found", ["1", 0, 1.0, True])
def test_a_version_that_is_none_is_refused(found: object) -> None:
    with pytest.raises(
        WidError, match=r"x has format_version=.*, which is not a version\. Legal: a whole number from 1"
    ):
        refuse_newer(found, 3, "x")
