"""Cards tell what the report tells, name only what is on the Hub, and carry metadata that the Hub can read."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from toys import save_teacher, write_texts
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel
from wid_models import identity, random_turn, tiny_encoder, turned

from wid_hf import CalibrationConfig, WidConfig, WidError, WidModel, get_wid_model
from wid_hf.hub.cards import adapter_card, hub_id, student_card
from wid_hf.hub.own_files import why_not_ours
from wid_hf.tools.compress import CompressSettings, compress

CONFIG = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=CalibrationConfig(samples=40))
QUICK = CompressSettings(steps=2, batch_size=8, max_length=12, validation_texts=16)
TEACHERS_CARD = "---\nlicense: apache-2.0\nlanguage: en\ndatasets: [secret-of-the-teacher]\n---\n# Teacher\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `compress` wrote, for all tests that read it."""
    folder = tmp_path_factory.mktemp("made")
    teacher = save_teacher(folder / "teacher", BertForMaskedLM)
    (teacher / "README.md").write_text(TEACHERS_CARD)
    compress(str(teacher), str(write_texts(folder / "train.txt")), folder / "student", CONFIG, QUICK)
    return folder / "student"


@pytest.fixture
def student(tmp_path: Path, masked_teacher: Path, made: Path) -> Path:
    """A copy that a test may change, of a student of `masked_teacher`."""
    (masked_teacher / "README.md").write_text(TEACHERS_CARD)
    folder = shutil.copytree(made, tmp_path / "student")
    change_report(folder, teacher=str(masked_teacher))
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "wid_report.json").read_text())


def change_report(folder: Path, **changes: Any) -> None:
    report = report_of(folder)
    report["settings"] |= changes.pop("settings", {})
    (folder / "wid_report.json").write_text(json.dumps(report | changes))


def rows(card: ModelCard) -> dict[str, list[str]]:
    """Cells of all tables by the first cell of their row."""
    lines = [line.strip("|").split("|") for line in card.text.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in others] for first, *others in lines}


def test_compress_writes_a_card_with_the_figures_of_its_report(student: Path) -> None:
    card, report = ModelCard.load(student / "README.md"), report_of(student)
    table = rows(card)
    for row, attribute in (("parameters", "total"), ("encoder parameters", "encoder"), ("bytes on disk", "bytes")):
        told = [int(cell.split(" (")[0].replace(",", "")) for cell in table[row]]
        assert told == [report["sizes"][side][attribute] for side in ("teacher", "student")]
    sides = ("teacher", "start", "student")
    for figure in ("masked_lm_loss", "masked_lm_accuracy"):
        assert table[figure.replace("_", " ")] == [f"{report['scores'][side][figure]:.4f}" for side in sides]
    assert f"{report['tokens']:,} tokens in" in card.text and "2 steps of 8 texts of up to 12 tokens" in card.text
    assert f"{report['calibration']['positions']:,} tokens in" in card.text
    assert report["outputs"] == "whole" and "output_map" not in card.text
    assert report["hardware"] in card.text and f"torch {report['versions']['torch']}" in card.text
    assert "`hidden_size=12`, `intermediate_size=24`" in card.text
    assert "arxiv.org/abs/2305.09098" in card.text
    assert "](calibration.png)" in card.text and (student / "calibration.png").is_file()


def test_figures_follow_the_report_and_are_typed_nowhere(student: Path) -> None:
    numbers = re.compile(r"\d[\d,.]*\d")
    before = set(numbers.findall(student_card(student).text))
    scores = {
        side: {"masked_lm_loss": 7.0625, "masked_lm_accuracy": 0.4375} for side in ("teacher", "start", "student")
    }
    size = {"total": 12_345_678, "encoder": 11_111_111, "bytes": 22_222_222}
    change_report(student, scores=scores, sizes={"teacher": size, "student": size}, steps=424_242, tokens=515_151)
    after = set(numbers.findall(student_card(student).text))
    assert {"7.0625", "0.4375", "12,345,678", "11,111,111", "22,222,222", "424,242", "515,151"} <= after - before
    assert "trained after its start" not in student_card(student).text
    change_report(student, steps=0)
    assert "not trained after its start" in student_card(student).text
    assert "start" not in rows(student_card(student))[""]


def test_what_the_card_says_about_loading_loads(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(student.parent)
    (code,) = re.findall(r"```python\n(.*?)```", student_card(student).text, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert type(names["model"]) is BertForMaskedLM and names["model"].config.hidden_size == 12
    assert 'from_pretrained("me/small")' in student_card(student, "me/small").text


def test_license_and_language_come_from_the_teachers_card(student: Path) -> None:
    data = student_card(student).data
    assert (data.license, data.language, data.pipeline_tag) == ("apache-2.0", "en", "fill-mask")
    assert data.library_name == "transformers" and data.datasets is None
    assert "names no license" not in student_card(student).text


@pytest.mark.parametrize("text", [None, "# no metadata\n", "---\n: [not yaml\n---\n", "---\nlicense:\n---\n"])
def test_a_teacher_without_a_license_is_said_to_have_none(
    student: Path, masked_teacher: Path, text: str | None
) -> None:
    (masked_teacher / "README.md").unlink()
    if text is not None:
        (masked_teacher / "README.md").write_text(text)
    card = student_card(student)
    assert card.data.license is None
    assert "names no license that could be taken over" in card.text


def test_names_of_the_hub_become_metadata_and_links(student: Path) -> None:
    change_report(student, settings={"hub": {"teacher": "org/teacher", "revision": "v2", "dataset": "org/texts"}})
    card = student_card(student)
    assert (card.data.base_model, card.data.base_model_relation) == ("org/teacher", "finetune")
    assert card.data.datasets == ["org/texts"]
    assert "[org/teacher](https://huggingface.co/org/teacher) at `v2`" in card.text
    assert "[org/texts](https://huggingface.co/datasets/org/texts)" in card.text


def test_the_metadata_is_yaml_that_comes_back_as_it_was(student: Path) -> None:
    card = student_card(student)
    header = yaml.safe_load(card.content.split("---\n")[1])
    assert header == card.data.to_dict() == ModelCard(str(card)).data.to_dict()


def test_local_folders_and_files_are_not_named(student: Path) -> None:
    text = (student / "README.md").read_text()
    assert str(student.parent) not in text and "train.txt" not in text
    assert "teacher that is not on the Hub" in text and "texts that are not on the Hub" in text
    assert ModelCard(text).data.base_model is None


def test_a_headless_student_is_loaded_by_automodel(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "encoder", BertModel)
    compress(str(teacher), str(write_texts(tmp_path / "t.txt")), tmp_path / "s", CONFIG, QUICK)
    card = ModelCard.load(tmp_path / "s" / "README.md")
    assert card.data.pipeline_tag == "feature-extraction"
    assert "AutoModel.from_pretrained" in card.text and "cosine correlation" in rows(card)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_student_with_turned_outputs_is_told_of_and_lies_beside_its_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    calibrate = WidModel.calibrate

    def turning(wid: WidModel, *batches: Any, **given: Any) -> None:
        calibrate(wid, *batches, **given)
        wid._turn({wid._output_dim: random_turn(24, 12)})

    monkeypatch.setattr(WidModel, "calibrate", turning)
    monkeypatch.chdir(tmp_path)
    teacher = save_teacher(tmp_path / "encoder", BertModel)
    (teacher / "modules.json").write_text(
        json.dumps([{"path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    train = str(write_texts(tmp_path / "t.txt"))
    told = compress(str(teacher), train, tmp_path / "s", CONFIG, replace(QUICK, steps=steps))
    report = report_of(tmp_path / "s")
    assert told.outputs == report["outputs"] == "turned" and "output_map.safetensors" in report["files"]
    assert why_not_ours(tmp_path / "s") is None and (tmp_path / "s" / "modules.json").is_file()
    card = ModelCard.load(tmp_path / "s" / "README.md")
    usage, snippet = re.findall(r"```python\n(.*?)```", card.text, re.S)
    names: dict[str, Any] = {"torch": torch, "head": torch.nn.Linear(12, 3), "W_head": torch.randn(3, 24)}
    exec(usage + snippet, names)
    assert type(names["model"]) is BertModel
    assert torch.equal(names["head"].weight, names["W_head"] @ random_turn(24, 12).T.float())


def test_an_adapter_with_turned_outputs_is_told_of() -> None:
    assert "output_map" not in adapter_card(identity(tiny_encoder()), "a").text
    assert "W_head @ model.base_model.output_map)" in adapter_card(turned(identity(tiny_encoder())), "a").text


def test_a_folder_without_a_report_is_refused(masked_teacher: Path) -> None:
    with pytest.raises(WidError, match=r"holds no wid_report\.json, from which a card takes its figures"):
        student_card(masked_teacher)


@pytest.mark.parametrize("report", ["[]", "{}", "not json", '{"settings": {"hub": 1}}'])
def test_a_report_of_somebody_else_is_refused_in_words(student: Path, report: str) -> None:
    (student / "wid_report.json").write_text(report)
    with pytest.raises(WidError, match="No card can be made for"):
        student_card(student)


def test_a_student_that_was_not_scored_has_a_card_without_scores(student: Path) -> None:
    report = json.loads((student / "wid_report.json").read_text())
    del report["scores"]["student"]
    (student / "wid_report.json").write_text(json.dumps(report))
    text = str(student_card(student))
    assert "## Scores" not in text and "This student was not scored." in text and "## Recipe" in text


@pytest.fixture
def adapter(masked_teacher: Path) -> PeftModel:
    (masked_teacher / "README.md").write_text(TEACHERS_CARD)
    model = AutoModelForMaskedLM.from_pretrained(masked_teacher)
    return get_wid_model(model, WidConfig(hidden_size=12, intermediate_size=24, init="identity"))


def test_an_adapters_card_tells_sizes_and_how_to_load_but_no_folder(adapter: PeftModel, tmp_path: Path) -> None:
    card = adapter_card(adapter, "me/adapter")
    student = adapter.merge_and_unload()
    assert rows(card)["parameters"][1].startswith(f"{sum(p.numel() for p in student.parameters()):,} (")
    assert (card.data.library_name, card.data.license, card.data.pipeline_tag) == ("peft", "apache-2.0", "fill-mask")
    assert 'PeftModel.from_pretrained(teacher, "me/adapter")' in card.text
    assert str(tmp_path) not in card.content and card.data.base_model is None
    assert "## Scores" not in card.text and "There are no evaluation results" in card.text


def test_an_adapters_card_takes_scores_from_a_report(adapter: PeftModel, student: Path) -> None:
    card = adapter_card(adapter, "adapter", report_of(student))
    assert rows(card)["masked lm loss"] == rows(student_card(student))["masked lm loss"]


def test_an_adapters_card_names_the_teacher_on_the_hub(adapter: PeftModel) -> None:
    config = adapter.peft_config["default"]
    config.base_model_name_or_path, config.revision = "org/teacher", "v2"
    card = adapter_card(adapter, "adapter")
    assert (card.data.base_model, card.data.base_model_relation) == ("org/teacher", "adapter")
    assert 'from_pretrained("org/teacher", revision="v2")' in card.text


@pytest.mark.parametrize(
    ("name", "found"),
    [("bert-base", "bert-base"), ("org/x", "org/x"), ("wikitext:raw", "wikitext"), ("/gone/x", None), ("", None)],
)
def test_only_names_of_the_hub_are_taken_for_such(name: str, found: str | None) -> None:
    assert hub_id(name) == found


def test_a_file_or_folder_that_exists_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("teachers").mkdir()
    assert hub_id("teachers") is None
