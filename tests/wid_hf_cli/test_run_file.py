"""A run as one file: options by name, the command line before them, and a report that repeats its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import write_texts
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from wid_hf import ConfigError
from wid_hf_cli.app import app


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, ["compress", *words], env={"COLUMNS": "160"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(*words: str) -> dict[str, Any]:
    """What `--print-config` writes, read as texts."""
    return yaml.load(invoke(*words, "--print-config"), Loader=yaml.BaseLoader)


def write(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


GIVEN = """
teacher: somewhere
train: t.txt
output: out
hidden_size: 12
intermediate-size: 24
steps: 5
distillation: [logits, hidden]
revision: null
tie-word-embeddings: no
override: {embedding_size: 16}
set: {bf16: no, warmup_steps: 1e-1, lr_scheduler_kwargs: {num_cycles: 2}}
"""


def test_a_file_stands_in_for_options_and_the_command_line_goes_before(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", GIVEN)
    found = printed("--config", file)
    assert {name: found[name] for name in ("teacher", "train", "output", "hidden-size", "intermediate-size")} == {
        "teacher": "somewhere",
        "train": ["t.txt"],
        "output": "out",
        "hidden-size": "12",
        "intermediate-size": "24",
    }
    assert found["steps"] == "5" and found["distillation"] == "logits,hidden" and "revision" not in found
    assert found["tie-word-embeddings"] == "false"
    assert found["set"] == ["bf16=no", "warmup_steps=1e-1", 'lr_scheduler_kwargs={"num_cycles": "2"}']
    assert found["batch-size"] == "32"  # the default
    other = printed(
        "elsewhere", "--steps", "7", "--set", "bf16=yes", "--set", "fp16=no", "--override", "ffn=8", "--config", file
    )
    assert other["override"] == ["embedding_size=16", "ffn=8"]
    assert (other["teacher"], other["steps"]) == ("elsewhere", "7")
    assert other["set"] == ["bf16=yes", *found["set"][1:], "fp16=no"]


def test_what_is_printed_repeats_itself_and_nothing_else_is_done(tmp_path: Path) -> None:
    once = invoke("--config", write(tmp_path / "run.yaml", GIVEN), "--print-config")
    assert invoke("--config", write(tmp_path / "again.yaml", once), "--print-config") == once
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "again.yaml"}


def test_json_means_the_same_as_yaml(tmp_path: Path) -> None:
    found = printed("--config", write(tmp_path / "run.yaml", GIVEN))
    values = {**yaml.safe_load(GIVEN), "set": {"bf16": "no", "warmup_steps": "1e-1"}}
    same = printed("--config", write(tmp_path / "run.json", json.dumps(values)))
    assert same == found | {"set": found["set"][:2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 5", "there is no option stepz. The nearest is steps"),
        ("- steps", "holds no options by name"),
        ("steps: [", "cannot be read"),
        ('{"versions": {}, "sizes": {}}', "holds one if its run was made on the command line"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / ("r.json" if text.startswith("{") else "r.yaml"), text)
    with pytest.raises(ConfigError, match=message):
        invoke("--config", file, "--print-config")
    with pytest.raises(ConfigError, match="cannot be read"):
        invoke("--config", str(tmp_path / "nowhere.yaml"))


def test_a_value_that_an_option_cannot_have_is_refused_as_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", GIVEN.replace("steps: 5", "steps: few"))
    result = CliRunner().invoke(app, ["compress", "--config", file])
    assert result.exit_code == 2 and "Invalid value for '--steps'" in result.output


@pytest.mark.parametrize("pair", ["bf16", "=true", "report_to=[a"])
def test_a_setting_that_is_no_pair_is_refused(tmp_path: Path, pair: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        invoke("--config", write(tmp_path / "run.yaml", GIVEN), "--set", pair)


def test_a_report_repeats_its_run(tmp_path: Path, masked_teacher: Path) -> None:
    words = ["--hidden-size", "12", "--intermediate-size", "24", "--steps", "2", "--batch-size", "8"]
    quick = ["--max-length", "12", "--validation-texts", "8", "--init", "identity"]
    train = str(write_texts(tmp_path / "t.txt"))
    settings = ["--set", "lr_scheduler_type=constant", "--set", "logging_steps=2", "--set", "use_cpu=true"]
    one, two = tmp_path / "one", tmp_path / "two"
    invoke(str(masked_teacher), "--train", train, "--output", str(one), *words, *quick, *settings)
    report = json.loads((one / "wid_report.json").read_text())
    assert report["settings"]["training"] == {
        "lr_scheduler_type": "constant",
        "logging_steps": 2.0,
        "use_cpu": True,
    }
    assert [step for step, _ in report["losses"]] == [2]
    invoke("--config", str(one / "wid_report.json"), "--output", str(two))
    a, b = (AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (one, two))
    assert all((a[name] == b[name]).all() for name in a)
    again = json.loads((two / "wid_report.json").read_text())
    assert again["run"] == report["run"] | {"output": str(two)}
