"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toys import save_teacher, write_texts
from transformers import AutoModelForMaskedLM, BertForMaskedLM
from typer.testing import CliRunner

from wid_hf.commands import main
from wid_hf.errors import ConfigError

SIZES = ["--hidden-size", "12", "--intermediate-size", "24"]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "teacher", BertForMaskedLM)


def invoke(*words: str) -> str:
    result = CliRunner().invoke(main.app, words, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_prints_coupled_dimensions_sizes_and_reasons(teacher: Path, tmp_path: Path) -> None:
    out = invoke("plan", str(teacher), *SIZES, "--verify")
    assert "4 x 6 = 24" in out
    assert "4 x 3 = 12" in out
    assert "is looked up by number" in out
    assert "Proved by permutation" in out
    invoke(
        "compress", str(teacher), "--train", str(write_texts(tmp_path / "t.txt")), "--output", str(tmp_path / "s"),
        *SIZES, "--steps", "0", "--validation-texts", "8",
    )  # fmt: skip
    real = sum(p.numel() for p in AutoModelForMaskedLM.from_pretrained(tmp_path / "s").parameters())
    assert f"{real:,} (" in out


def test_compress_prints_teacher_start_and_student_side_by_side(teacher: Path, tmp_path: Path) -> None:
    out = invoke(
        "compress", str(teacher), "--train", str(write_texts(tmp_path / "t.txt")), "--output", str(tmp_path / "s"),
        *SIZES, "--steps", "2", "--batch-size", "8", "--max-length", "12", "--validation-texts", "8",
    )  # fmt: skip
    assert "masked lm accuracy" in out
    assert "2 steps" in out
    report = json.loads((tmp_path / "s" / "wid_report.json").read_text())
    assert "ms for {} x {} tokens".format(*report["latency"]["batch"]) in out
    assert all(f"{1000 * seconds:.1f}" in out for seconds in report["latency"]["seconds"].values())
    assert report["command"].startswith(Path(sys.argv[0]).name)


def test_compress_without_steps_calibrates_merges_and_tells_how_well(teacher: Path, tmp_path: Path) -> None:
    out = invoke(
        "compress", str(teacher), "--train", str(write_texts(tmp_path / "t.txt")), "--output", str(tmp_path / "s"),
        *SIZES, "--steps", "0", "--validation-texts", "8", "--max-length", "12",
        "--calibration-samples", "30", "--calibration-batch-size", "10", "--ridge", "0.01",
    )  # fmt: skip
    report = json.loads((tmp_path / "s" / "wid_report.json").read_text())
    assert {name: report["settings"][name] for name in ("calibration_samples", "calibration_batch_size", "ridge")} == {
        "calibration_samples": 30, "calibration_batch_size": 10, "ridge": 0.01,
    }  # fmt: skip
    site = report["calibration"]["sites"][0]
    assert f"{site['before']:.1%}" in out and f"{site['after']:.1%}" in out
    assert f"{report['calibration']['positions']:,} positions" in out
    assert "calibrated, pivots, not trained" in out
    assert f"{report['scores']['student']['masked_lm_accuracy']:.4f}" in out
    assert str(tmp_path / "s" / "calibration.png") in out


def test_compress_with_an_identity_start_tells_of_no_calibration(teacher: Path, tmp_path: Path) -> None:
    out = invoke(
        "compress", str(teacher), "--train", str(write_texts(tmp_path / "t.txt")), "--output", str(tmp_path / "s"),
        *SIZES, "--steps", "0", "--validation-texts", "8", "--init", "identity",
    )  # fmt: skip
    assert "identity, first, not trained" in out
    assert "positions" not in out and "calibration.png" not in out


@pytest.mark.parametrize("ridge", ["0", "-1", "nan"])
def test_a_ridge_that_is_no_strength_is_refused(teacher: Path, tmp_path: Path, ridge: str) -> None:
    with pytest.raises(ConfigError, match="is not a number above 0"):
        invoke("compress", str(teacher), "--train", "t.txt", "--output", str(tmp_path / "s"), *SIZES, "--ridge", ridge)


def test_overrides_reach_the_config_under_the_teachers_own_names(teacher: Path) -> None:
    assert "24" in invoke("plan", str(teacher), "--override", "intermediate_size=24")


@pytest.mark.parametrize("pair", ["embedding_size", "embedding_size=", "embedding_size=big"])
def test_an_override_that_is_no_size_is_refused(teacher: Path, pair: str) -> None:
    with pytest.raises(ConfigError, match="is not NAME=SIZE"):
        invoke("plan", str(teacher), "--override", pair)


def test_a_refusal_is_printed_without_a_traceback_and_exits_with_1(teacher: Path) -> None:
    command = [sys.executable, "-c", "from wid_hf.commands.main import main; main()"]
    ended = subprocess.run(
        [*command, "plan", str(teacher), "--hidden-size", "13", "--head-strategy", "dim"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "ConfigError: No student of this BertConfig" in ended.stderr
    assert "nearest legal: 12, 16" in ended.stderr
    assert "Traceback" not in ended.stderr
