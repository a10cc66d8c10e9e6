"""The page says what the reports say, tells what they lack, and runs nothing that is written in them."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from toys import save_teacher, write_texts
from transformers import BertForMaskedLM
from typer.testing import CliRunner

from wid_hf import OutputError, TeacherError
from wid_hf.hub.model_size import ModelSize
from wid_hf.tools.reports.eval_report import EvalReport, TaskResult
from wid_hf.tools.reports.html_report import AttentionTexts, write_html_report
from wid_hf.tools.reports.html_report import page as page_module
from wid_hf.tools.reports.html_report.found import read_folder
from wid_hf.tools.reports.html_report.recipes import Spread, recipes, teacher_figures
from wid_hf_cli.app import app

SIZES = {
    "teacher": {"total": 6675535, "encoder": 6325760, "bytes": 26702140},
    "student": {"total": 1748815, "encoder": 1590016, "bytes": 6995260},
}


def values(**other: Any) -> dict[str, Any]:
    """What a `wid_report.json` may hold."""
    return {
        "teacher": "me/teacher",
        "requested": {"hidden_size": 12, "intermediate_size": 24},
        "head_strategy": "dim",
        "start": "calibrated, pivots",
        "objective": "masked-lm",
        "sizes": SIZES,
        "scores": {
            "teacher": {"masked_lm_accuracy": 0.9511, "masked_lm_loss": 0.6026},
            "start": {"masked_lm_accuracy": 0.8726, "masked_lm_loss": 0.6527},
            "student": {"masked_lm_accuracy": 0.8987, "masked_lm_loss": 0.3721},
        },
        "steps": 300,
        "tokens": 870808,
        "seconds": 360.5,
        "losses": [[1, 2.5], [2, 1.5]],
        "settings": {"learning_rates": {"compactors": 0.0001}, "seed": 0, "train": "texts.txt"},
        "seed": 0,
        "fingerprints": {"teacher": "aaa", "student": "bbb"},
        "latency": {"seconds": {"teacher": 0.1588, "student": 0.0464}, "batch": [4, 75]},
        "command": "wid-hf compress me/teacher --steps 300",
        "hardware": "x86_64 CPU, 1 threads",
        "versions": {"torch": "2.13.0"},
    } | other


def seeded(seed: int, accuracy: float, **other: Any) -> dict[str, Any]:
    scores = {"teacher": {"accuracy": 0.95}, "student": {"accuracy": accuracy}}
    return values(seed=seed, settings={"seed": seed, "train": "texts.txt"}, scores=scores, **other)


def write(folder: Path, report: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "wid_report.json").write_text(json.dumps(report))
    return folder


def write_eval(folder: Path, fingerprint: str, accuracy: float) -> None:
    folder.mkdir(parents=True)
    mean = {"dev": {"accuracy": 0.5}, "test": {"accuracy": accuracy}}
    spread = {"dev": {"accuracy": 0.01}, "test": {"accuracy": 0.0123}}
    runs = [{"learning_rate": 5e-4, "seed": s, "hardware": "a GPU", "versions": {"scipy": "1.2"}} for s in (7, 8, 9)]
    result = TaskResult("reactions", "Reactions", ("accuracy",), 5e-4, mean, spread, 3, runs)
    EvalReport(
        "some/name", "BertForMaskedLM", fingerprint, ModelSize(1, 1, 4), {"reactions": result}, ["wid-hf eval x"]
    ).save(folder)


class Page(HTMLParser):
    """Rows of all tables, every tag and every attribute that may load something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str | None] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data if self.lasttag in ("td", "th", "a") else ""

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


def test_the_numbers_of_the_page_are_those_of_the_reports(tmp_path: Path) -> None:
    write(tmp_path / "half", values())
    page = Page(write_html_report(tmp_path))
    assert page.row("half") == [
        "half",
        "wid",
        "0",
        "1,748,815\n26.2%",
        "1,590,016\n25.1%",
        "6,995,260\n26.2%",
        "46.4 / 158.8",
        "0.8726 → 0.8987",
        "0.6527 → 0.3721",
    ]
    assert page.row("teacher")[3:6] == ["6,675,535", "6,325,760", "26,702,140"]
    assert page.row("teacher")[7:] == ["0.9511", "0.6026"]
    assert page.row("wid 12/24") == [
        "wid 12/24",
        "0",
        "0.8987",
        "0.3721",
        "300",
        "870,808",
        "360.5",
        "1,590,016",
        "compactors 0.0001",
        "calibrated, pivots",
    ]
    for told in ("wid-hf compress me/teacher --steps 300", "x86_64 CPU, 1 threads", "torch 2.13.0", "4 x 75 tokens"):
        assert told in page.text


def test_runs_that_differ_only_in_their_seed_are_one_recipe(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.80, 0.84, 0.88)):
        write(tmp_path / f"wid-{seed}", seeded(seed, accuracy))
    write(tmp_path / "scratch", seeded(0, 0.5, method="scratch"))
    write(tmp_path / "longer", seeded(0, 0.9) | {"settings": {"steps": 600}})
    found = read_folder(tmp_path)
    made = {recipe.label: recipe for recipe in recipes(found.runs, found)}
    assert {label: [run.name for run in recipe.runs] for label, recipe in made.items()} == {
        "wid 12/24": ["longer"],
        "wid-0": ["wid-0", "wid-1", "wid-2"],
        "scratch 12/24": ["scratch"],
    }
    assert made["wid-0"].figure("accuracy") == Spread(pytest.approx(0.84), pytest.approx(0.04))
    assert made["scratch 12/24"].figure("accuracy") == Spread(0.5, None)
    page = Page(write_html_report(tmp_path))
    recipe = next(row for row in page.rows if row and row[:2] == ["wid-0", "0, 1, 2"])
    assert recipe[2] == "0.8400 ± 0.0400"


def test_evaluations_go_to_the_run_whose_weights_they_are_of(tmp_path: Path) -> None:
    write(tmp_path / "half", values())
    for name, fingerprint, accuracy in (("a", "bbb", 0.71), ("b", "aaa", 0.93), ("c", "ccc", 0.1)):
        write_eval(tmp_path / "eval" / name, fingerprint, accuracy)
    found = read_folder(tmp_path)
    name = "Reactions accuracy (test)"
    assert [recipe.figure(name) for recipe in recipes(found.runs, found)] == [Spread(0.71, None)]
    assert teacher_figures(found.runs, found)[name] == Spread(0.93, None)
    page = Page(write_html_report(tmp_path))
    tested = {row[0]: row[1:] for row in page.rows if "test" in row}
    assert tested["half"] == ["eval/a", "Reactions", "test", "accuracy", "0.7100", "0.0123", "3", "0.0005"]
    assert set(tested) == {"half", "some/name (teacher)", "some/name (of no run here)"}
    assert all(told in page.text for told in ("wid-hf eval x", "7, 8, 9", "a GPU", "scipy 1.2"))


def test_teachers_scored_on_other_texts_are_told(tmp_path: Path) -> None:
    write(tmp_path / "one", seeded(0, 0.8))
    assert "own scores differ" not in Page(write_html_report(tmp_path)).text
    other = seeded(1, 0.8)
    other["scores"]["teacher"]["accuracy"] = 0.94
    write(tmp_path / "two", other)
    assert "own scores differ" in Page(write_html_report(tmp_path)).text


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    folder = write(tmp_path / "half run", values(pictures=[]))
    (folder / "widths.png").write_bytes(picture)
    page = Page(write_html_report(tmp_path, tmp_path / "out"))
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(page.tags)
    images = [source for source in page.loaded if not source.startswith("#")]
    assert all(source.startswith("data:image/png;base64,") for source in images)
    embedded = [base64.b64decode(source.partition(",")[2]) for source in images]
    assert embedded[-1] == picture
    drawn = ["losses-1.png", "quality-1.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*drawn, "report.html"]
    assert sorted(embedded[:-1]) == sorted((tmp_path / "out" / name).read_bytes() for name in drawn)
    assert {"#run-half%20run"} == {source for source in page.loaded if source.startswith("#")}
    assert "run-half run" in page.ids


def test_what_reports_hold_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    write(
        tmp_path / "<b>half<b>",
        values(
            teacher=evil,
            command=evil,
            start=evil,
            hardware=evil,
            objective=evil,
            method=evil,
            requested={evil: evil},
            settings={evil: evil},
            versions={evil: evil},
            scores={"student": {evil: 1.0}},
        ),
    )
    path = write_html_report(tmp_path)
    page = Page(path)
    assert {"script", "b"}.isdisjoint(page.tags)
    assert "<script" not in path.read_text()
    assert "onerror=alert(1)>" in page.text and evil in page.text
    assert page.tags.count("img") == len(re.findall(r'<img src="data:image/png;base64,', path.read_text()))


@pytest.mark.parametrize("name", sorted(values()))
def test_a_field_that_is_missing_is_told(tmp_path: Path, name: str) -> None:
    write(tmp_path / "half", {key: value for key, value in values().items() if key != name})
    told = re.search(r"This report lacks: ([^.]*)\.", Page(write_html_report(tmp_path)).text)
    assert told is not None
    assert name in told[1].split(", ")


@pytest.mark.parametrize(
    "wrong", ["text", 7, None, [], [["a", "b"], 3, [1, 2, 3]], {"student": "text"}, {"student": {"a": "b"}}]
)
def test_fields_of_another_kind_are_left_out(tmp_path: Path, wrong: Any) -> None:
    write(tmp_path / "good", values())
    write(tmp_path / "half", dict.fromkeys(values(), wrong))
    page = Page(write_html_report(tmp_path))
    assert page.row("good")[3] == "1,748,815\n26.2%"
    assert page.row("half")[3:7] == ["-", "-", "-", "- / -"]


def test_a_folder_without_reports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no folder"):
        write_html_report(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"no wid_report\.json and no eval_report\.json that can be read"):
        write_html_report(tmp_path)
    (tmp_path / "wid_report.json").write_text("{broken")
    with pytest.raises(OutputError, match=r"wid_report\.json: Expecting property name"):
        write_html_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["wid_report.json"]


def test_a_report_that_cannot_be_read_is_told_beside_the_others(tmp_path: Path) -> None:
    write(tmp_path / "half", values())
    for name, content in (("list", "[]"), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "wid_report.json").write_text(content)
    (tmp_path / "list" / "eval_report.json").write_text("{}")
    write(tmp_path / ".unfinished", values())
    page = Page(write_html_report(tmp_path))
    assert "list/wid_report.json could not be read: it holds no JSON object" in page.text
    assert "broken/wid_report.json could not be read: Expecting property name" in page.text
    assert "list/eval_report.json could not be read" in page.text
    assert "1 run, 0 evaluations" in page.text


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "half", values())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be a folder"):
        write_html_report(tmp_path, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_files_and_no_page_of_ours_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", values())
    output = tmp_path / "out"
    output.mkdir()
    (output / "report.html").write_text("<title>mine</title>")
    with pytest.raises(OutputError, match=r"holds files and no report\.html of wid-hf"):
        write_html_report(tmp_path / "runs", output)
    assert (output / "report.html").read_text() == "<title>mine</title>" and len(list(output.iterdir())) == 1
    (output / "report.html").unlink()
    for _ in range(2):
        assert write_html_report(tmp_path / "runs", output) == output / "report.html"


def test_the_page_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "half", values())
    path = write_html_report(tmp_path)
    before = path.read_text()
    write(tmp_path / "other", values())
    monkeypatch.setattr(page_module, "_render", lambda **_: "half a page \ud800")  # no UTF-8
    with pytest.raises(UnicodeEncodeError):
        write_html_report(tmp_path)
    assert path.read_text() == before
    assert not [each for each in path.parent.iterdir() if each.name.startswith(".")]


@pytest.mark.slow
def test_attention_of_students_is_compared_with_their_teachers(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    for name, hidden in (("same", 24), ("half", 12)):
        folder = save_teacher(tmp_path / "runs" / name, BertForMaskedLM, hidden=hidden)
        report = values(teacher=str(teacher), requested={"hidden_size": hidden})
        (folder / "wid_report.json").write_text(json.dumps(report))
    write(tmp_path / "runs" / "gone", values(teacher=str(teacher)))
    texts = write_texts(tmp_path / "texts.txt")
    result = CliRunner().invoke(
        app,
        ["report", str(tmp_path / "runs"), "--attention", str(texts), "--attention-texts", "9"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    output = tmp_path / "runs" / "report"
    assert str(output / "report.html") in result.output.replace("\n", "")
    measured = json.loads((output / "attention-1.json").read_text())["students"]
    assert measured["wid 24"]["mean"] < 1e-9 < 1e-6 < measured["wid 12"]["mean"]
    page = Page(output / "report.html")
    half = next(row for row in page.rows if row and row[0] == "wid 12" and len(row) == 4)
    layers = [sum(heads) / 4 for heads in measured["wid 12"]["divergence"]]
    assert half[1:] == [f"{value:.3f}" for value in (measured["wid 12"]["mean"], *layers)]
    assert "No attention of gone" in page.text
    assert page.tags.count("img") == 4


def test_a_teacher_that_is_gone_is_refused_when_attention_is_asked_for(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "runs" / "half", BertForMaskedLM, hidden=12)
    (folder / "wid_report.json").write_text(json.dumps(values(teacher=str(tmp_path / "nowhere"))))
    with pytest.raises(TeacherError, match="There is no folder"):
        write_html_report(tmp_path / "runs", attention=AttentionTexts(str(write_texts(tmp_path / "texts.txt"))))
