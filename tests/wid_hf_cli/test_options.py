"""What the command line states of the library without importing it: words, defaults, names of tasks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from wid_hf import CalibrationConfig, WidConfig, config
from wid_hf.objectives.registry import AUTO, OBJECTIVES
from wid_hf.tools.compress import CompressSettings
from wid_hf.tools.evaluation.tasks import TASKS, DataPlaces, FineTuning
from wid_hf.tools.reports.html_report import AttentionTexts
from wid_hf.training.losses.registry import DISTILLED
from wid_hf_cli import evaluate, options
from wid_hf_cli.app import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def defaults(command: str) -> dict[str, Any]:
    return {parameter.name: parameter.default for parameter in COMMANDS[command].params}


def test_words_are_those_of_the_library() -> None:
    for mine, theirs in (
        (options.HeadStrategy, config.HeadStrategy),
        (options.Init, config.Init),
        (options.Selection, config.Selection),
        (options.Output, config.Output),
    ):
        assert {word.value for word in mine} == set(get_args(theirs))
    assert options.LOSSES == DISTILLED
    assert {word.value for word in options.Task} == {AUTO, *OBJECTIVES}
    assert set(evaluate.TASKS) == set(TASKS)


@pytest.mark.parametrize(
    ("command", "given"),
    [("compress", CompressSettings), ("compress", WidConfig), ("eval", FineTuning), ("eval", DataPlaces)],
)
def test_defaults_are_those_of_the_library(command: str, given: Any) -> None:
    theirs = {field.name: field.default for field in fields(given)}
    theirs |= {field.name: field.default_factory() for field in fields(given) if field.default_factory is not MISSING}
    mine = {name: default for name, default in defaults(command).items() if name in theirs and default is not None}
    listed = {name: ",".join(map(str, theirs[name])) for name in ("learning_rates", "seeds") if name in theirs}
    assert mine == {name: theirs[name] for name in mine} | listed
    assert all(theirs[name] in (None, (), {}) for name in set(defaults(command)) & set(theirs) - set(mine))


def test_the_page_takes_as_many_texts_as_the_library() -> None:
    assert defaults("report")["attention_texts"] == AttentionTexts.count


def test_defaults_of_calibration_are_those_of_the_library() -> None:
    theirs = CalibrationConfig().flat()
    theirs["calibration_output"] = theirs.pop("output")  # the output of the command is a folder
    assert theirs == {name: defaults("compress")[name] for name in theirs}


def program(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`wid-hf` with these words; it prints afterwards what it imported."""
    script = (
        "import atexit, sys\n"
        "sys.argv[0] = 'wid-hf'\n"
        "heavy = ('torch', 'transformers', 'peft', 'datasets', 'wid_hf')\n"
        "told = lambda: print('loaded', [n for n in heavy if n in sys.modules], file=sys.stderr)\n"
        "atexit.register(told)\n"
        "from wid_hf_cli.main import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "160", **environment},
    )


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_loads_no_torch(words: tuple[str, ...]) -> None:
    done = program(*words, "--help")
    assert done.returncode == 0 and "Usage: wid-hf" in done.stdout
    assert "loaded []" in done.stderr


def test_completion_loads_no_torch() -> None:
    done = program(
        _WID_HF_COMPLETE="complete_bash",
        COMP_WORDS="wid-hf compress --distil",
        COMP_CWORD="2",
    )
    assert done.stdout.split() == ["--distillation"]
    assert "loaded []" in done.stderr
    assert "--install-completion" in program("--help").stdout


def test_without_typer_the_program_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['typer'] = None\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = program("--help", PYTHONPATH=path)
    assert done.returncode == 1
    assert re.search(r'typer is not installed .* pip install "wid-hf\[cli\]"', done.stderr)
