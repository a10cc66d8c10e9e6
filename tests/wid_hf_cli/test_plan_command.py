"""`wid-hf plan` with rows: the candidates, the winner, what to expect, as tables, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib import image
from toys import write_texts
from typer.testing import CliRunner

from wid_hf.errors import ConfigError
from wid_hf_cli import app as program

DATA = ["--max-length", "12", "--validation-texts", "8", "--calibration-samples", "40", "--batch-size", "8"]
HALF = ["--params", "50%", "--round-to", "8"]


def plan(teacher: Path, *words: str) -> str:
    result = CliRunner().invoke(program.app, ["plan", str(teacher), *words], env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_search_prints_candidates_winner_reason_time_and_what_to_expect(masked_teacher: Path, tmp_path: Path) -> None:
    train = str(write_texts(tmp_path / "t.txt"))
    out = plan(masked_teacher, *HALF, "--train", train, "--picture", str(tmp_path / "front.png"), *DATA)
    for words in ("Candidates", "winner", "divergence", "the least of", "s of 900 s: ", "Expected on 8 held-out rows"):
        assert words in out
    assert "minutes per 1,000 steps on this machine" in out
    assert image.imread(tmp_path / "front.png").std() > 0


def test_json_has_search_and_forecast_in_numbers(masked_teacher: Path, tmp_path: Path) -> None:
    train = str(write_texts(tmp_path / "t.txt"))
    told = json.loads(plan(masked_teacher, *HALF, "--train", train, "--json", *DATA))
    assert told["search"]["candidates"][0]["shape"] == told["search"]["winner"]
    assert told["parameters"]["student"]["total"] == told["search"]["candidates"][0]["needs"]["params"]
    assert told["parameters"]["student"]["total"] <= told["search"]["limits"]["params"]
    assert set(told["forecast"]["scores"]) == {"teacher", "start"}
    assert told["forecast"]["memory"] > told["parameters"]["student"]["bytes"]
    assert told["forecast"]["memory"] == sum(told["forecast"]["memory_parts"].values())
    assert told["forecast"]["memory_parts"]["last_good"] == told["parameters"]["student"]["bytes"]
    assert told["forecast"]["seconds_per_1000_steps"] > 0


def test_memory_is_that_of_the_training_that_is_asked_for(masked_teacher: Path, tmp_path: Path) -> None:
    train = str(write_texts(tmp_path / "t.txt"))
    options = ["--keep-last-good", "disk", "--set", "optim=adafactor", "--train", train, *DATA]
    out = plan(masked_teacher, "--hidden-size", "12", *options)
    assert "Memory of a training step" in out and "copy of the last good weights" in out
    memory = json.loads(plan(masked_teacher, "--hidden-size", "12", "--json", *options))["forecast"]["memory_parts"]
    assert memory["last_good"] == 0
    assert memory["optimizer"] < memory["gradients"]  # sums of rows and columns, no moments


def test_json_of_given_sizes_has_layers_parameters_and_proof(masked_teacher: Path) -> None:
    told = json.loads(plan(masked_teacher, "--hidden-size", "12", "--layers", "1", "--verify", "--json"))
    assert told["requested"] == {"hidden_size": 12, "layers": [1]}
    assert told["proved"] is True
    assert told["layers"][0]["kept"] == [1]
    assert (told["layers"][0]["teacher"], told["layers"][0]["student"]) == (2, 1)
    assert told["parameters"]["student"]["total"] < told["parameters"]["teacher"]["total"]
    assert (told["search"], told["forecast"]) == (None, None)


def test_a_picture_needs_a_search(masked_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--picture draws the candidates of a search"):
        plan(masked_teacher, *HALF, "--picture", str(tmp_path / "front.png"))
