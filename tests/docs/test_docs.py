"""Every code block of README and docs runs, with a tiny teacher in the place of a big one."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_folders import write_modules
from toys import save_teacher, texts, word_tokenizer, write_texts
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertForSequenceClassification, BertModel
from typer.testing import CliRunner

from wid_hf.coupling import op_registry
from wid_hf.inputs import tokenize
from wid_hf_cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKS = re.compile(r"\]\((?!http)([^)#]+)")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)

# The documents name models and datasets of the Hub; tests have no network and little time.
SMALLER = {
    "google-bert/bert-base-uncased --params 50% --train": "classifier --params 50% --train",  # a few texts must do
    "google-bert/bert-base-uncased": "teacher",
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": "classifier",
    "sst2-half": "classifier",
    "sentence-transformers/all-MiniLM-L6-v2": "sentences",
    ".push_to_hub(": ".save_pretrained(",
    ", private=True)": ")",
    "wikitext:wikitext-103-raw-v1": "train.txt",
    "'corpus/*.txt'": "'trai*.txt' --batch-size 4",
    "max_steps=1000": "max_steps=2, report_to='none', use_cpu=True, dataloader_pin_memory=False, save_strategy='no'",
    "max_steps=20_000, save_steps=500": (
        "max_steps=2, save_steps=1, report_to='none', use_cpu=True, dataloader_pin_memory=False"
    ),
    ".cache/teachers/reaction-bert": "teacher",
    "../shared/data/uspto50k/train.jsonl.gz --column rxn": "train.txt",
    "../shared/data/uspto50k/valid.jsonl.gz --column rxn": "train.txt",
    "../shared/data/uspto50k/valid.jsonl.gz": "train.txt",
    "--data ../shared/data": "--data data --learning-rates 1e-3 --seeds 0 --steps 1 --batch-size 8",
    'Path("../shared/data")': 'Path("data")',
    "epochs=3": "steps=1",
    "--steps 300 --batch-size 32": "--steps 1 --batch-size 4",
    "--hidden-size 384 --override hidden_dim=1536": "--hidden-size 12 --intermediate-size 24",  # it is a BERT here
    "--steps 1000 --output": "--steps 2 --validation-texts 8 --batch-size 8 --max-length 16 --output",
    "steps: 1000\n": "steps: 2\nvalidation-texts: 8\nbatch-size: 8\nmax-length: 16\n",
    "--steps 10000": "--steps 2 --validation-texts 8 --batch-size 8 --max-length 16",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def smaller(code: str) -> str:
    for big, small in SMALLER.items():
        code = code.replace(big, small)
    return code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a teacher wide enough for the sizes in the documents, and texts."""
    save_teacher(tmp_path / "teacher", BertForMaskedLM, hidden=384, layers=1)
    save_teacher(tmp_path / "classifier", BertForSequenceClassification)
    write_modules(save_teacher(tmp_path / "sentences", BertModel, hidden=384, layers=1), "Normalize")
    write_texts(tmp_path / "train.txt", count=40)
    reviews = "".join(f"{text},{number % 2}\n" for number, text in enumerate(texts(40)))
    (tmp_path / "reviews.csv").write_text(f"text,label\n{reviews}")
    (tmp_path / "reactions.csv").write_text("rxn,class\n" + "".join(f"{text},1\n" for text in texts(40)))
    write_glue(tmp_path / "data" / "glue")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_glue(folder: Path) -> None:
    """Two rows for each split of some tasks."""
    single = [{"text": text, "label": label} for label, text in enumerate(texts(2))]
    pairs = [{"text_a": text, "text_b": text, "label": label} for label, text in enumerate(texts(2))]
    for task, rows in (("sst2", single), ("mrpc", pairs), ("stsb", pairs)):
        (folder / task).mkdir(parents=True)
        for split in ("train", "dev"):
            (folder / task / f"{split}.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, workplace: Path) -> None:
    tokenizer = word_tokenizer()
    names: dict[str, Any] = {
        "teacher": AutoModelForMaskedLM.from_pretrained("teacher"),
        "tokenizer": tokenizer,
        "dataset": tokenize(Dataset.from_dict({"text": texts(64)}), tokenizer, max_length=16),
    }
    rules = dict(op_registry._RULES)
    try:
        for language, code in blocks(page):
            if language == "python":
                exec(compile(smaller(code), str(page), "exec"), names)
            elif language == "bash":
                run_shell(smaller(code))
            elif language == "yaml":  # of --config, which the next command reads
                Path("run.yaml").write_text(smaller(code), encoding="utf-8")
            else:
                pytest.fail(f"{page.name} has a block of {language}, which nothing runs")
    finally:
        op_registry._RULES.clear()
        op_registry._RULES.update(rules)


def run_shell(code: str) -> None:
    """Run `wid-hf` in this process; of `make` and of examples, check that the target exists."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "wid-hf":
            output = words.index("--output") + 1 if "--output" in words else 0
            if output:
                words[output] += "-by-command"
            result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, result.output
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()  # tests/examples runs it
        else:
            assert words[0] == "make", f"nothing runs {line!r}"
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    missing = [link for link in LINKS.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_a_block_that_is_wrong_would_be_noticed(tmp_path: Path, workplace: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text("```python\nfrom wid_hf import no_such_name\n```\n")
    with pytest.raises(ImportError, match="no_such_name"):
        test_every_block_of_a_page_runs(page, workplace)
