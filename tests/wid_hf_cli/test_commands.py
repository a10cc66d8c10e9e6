"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from toys import write_texts
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from wid_hf.errors import ConfigError, Stopped
from wid_hf_cli import app as program
from wid_hf_cli import options

SIZES = ["--hidden-size", "12", "--intermediate-size", "24"]


def invoke(*words: str) -> str:
    result = CliRunner().invoke(program.app, words, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def compress(teacher: Path, folder: Path, options: str) -> str:
    """Compress a teacher on texts in `folder` to `folder / "s"`, and return what is printed."""
    train = write_texts(folder / "t.txt")
    words = ["--train", str(train), "--output", str(folder / "s"), *SIZES, *options.split()]
    return invoke("compress", str(teacher), *words)


def test_reports_name_the_program_however_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for started in ("/usr/bin/wid-hf", str(Path(options.__file__).with_name("__main__.py"))):
        monkeypatch.setattr(sys, "argv", [started, "compress", "a b"])
        assert options.command_line() == "wid-hf compress 'a b'"


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("0,0", "layers=[0, 0]: give each number once, in ascending order"),
        ("1,0", "layers=[1, 0]: give each number once, in ascending order"),
        ("0,5", "give numbers from 0 to 1"),
        ("", "--layers '' is not a list of numbers"),
    ],
)
def test_layers_are_refused_as_they_are_written(masked_teacher: Path, layers: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        invoke("plan", str(masked_teacher), "--layers", layers)


def test_plan_prints_coupled_dimensions_sizes_and_reasons(masked_teacher: Path, tmp_path: Path) -> None:
    out = invoke("plan", str(masked_teacher), *SIZES, "--verify")
    assert "4 x 6 = 24" in out
    assert "4 x 3 = 12" in out
    assert "is looked up by number" in out
    assert "Proved by permutation" in out
    assert "A head of its own (tie_word_embeddings=False) would add" in out
    assert "A head of its own" not in invoke("plan", str(masked_teacher), *SIZES, "--no-tie-word-embeddings")
    invoke(
        "compress",
        str(masked_teacher),
        "--train",
        str(write_texts(tmp_path / "t.txt")),
        "--output",
        str(tmp_path / "s"),
        *SIZES,
        "--steps",
        "0",
        "--validation-texts",
        "8",
    )
    real = sum(p.numel() for p in AutoModelForMaskedLM.from_pretrained(tmp_path / "s").parameters())
    assert f"{real:,} (" in out


def test_plan_finds_sizes_for_a_target(masked_teacher: Path) -> None:
    out = invoke("plan", str(masked_teacher), "--params", "50%", "--round-to", "2")
    assert "At most" in out
    sizes = dict(re.findall(r"(\w+)=(\d+)", out[out.index("Without a search:") :]))
    assert 4 <= int(sizes["hidden_size"]) < 24
    share = re.search(r"parameters .*\(100\.0%\) .*\((\d+\.\d)%\)", out)
    assert share is not None
    assert 40 < float(share[1]) <= 50


def test_plan_refuses_sizes_beside_a_target_and_amounts_that_are_none(masked_teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"Sizes \(hidden_size\) and a target are given"):
        invoke("plan", str(masked_teacher), "--params", "50%", "--hidden-size", "12")
    with pytest.raises(ConfigError, match="latency_ms='fast' is no amount above 0"):
        invoke("plan", str(masked_teacher), "--latency-ms", "fast")


def test_compress_takes_a_target_in_the_place_of_sizes(masked_teacher: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "t.txt")
    target = ["--params", "50%", "--round-to", "2", "--search-seconds", "0"]
    words = [*target, "--steps", "0", "--max-length", "12", "--validation-texts", "8"]
    out = invoke("compress", str(masked_teacher), "--train", str(train), "--output", str(tmp_path / "s"), *words)
    assert "a guess, without a search." in out
    report = json.loads((tmp_path / "s" / "wid_report.json").read_text())
    assert report["search"]["asked"]["target"] == {"params": "50%"}
    assert report["sizes"]["student"]["total"] <= report["sizes"]["teacher"]["total"] / 2
    assert report["run"]["params"] == "50%"


@pytest.mark.slow
def test_compress_prints_teacher_start_and_student_side_by_side(masked_teacher: Path, tmp_path: Path) -> None:
    out = compress(masked_teacher, tmp_path, "--steps 2 --batch-size 8 --max-length 12 --validation-texts 8")
    assert "masked lm accuracy" in out
    assert "2 steps" in out
    report = json.loads((tmp_path / "s" / "wid_report.json").read_text())
    assert "ms for {} x {} tokens".format(*report["latency"]["batch"]) in out
    assert all(f"{1000 * seconds:.1f}" in out for seconds in report["latency"]["seconds"].values())
    assert report["command"].startswith(Path(sys.argv[0]).name)


def test_compress_without_steps_calibrates_merges_and_tells_how_well(masked_teacher: Path, tmp_path: Path) -> None:
    quick = "--steps 0 --validation-texts 8 --max-length 12"
    calibration = "--calibration-samples 30 --calibration-batch-size 10 --ridge 0.01 --calibration-output coordinates"
    out = compress(masked_teacher, tmp_path, f"{quick} {calibration}")
    report = json.loads((tmp_path / "s" / "wid_report.json").read_text())
    told = {"calibration_samples": 30, "calibration_batch_size": 10, "ridge": 0.01, "calibration_output": "coordinates"}
    assert {name: report["settings"][name] for name in told} == told
    site = report["calibration"]["sites"][0]
    assert f"{site['before']:.1%}" in out and f"{site['after']:.1%}" in out
    assert f"{report['calibration']['positions']:,} positions" in out
    assert "calibrated, pivots, not trained" in out
    assert f"{report['scores']['student']['masked_lm_accuracy']:.4f}" in out
    assert str(tmp_path / "s" / "calibration.png") in out


def test_compress_with_an_identity_start_tells_of_no_calibration(masked_teacher: Path, tmp_path: Path) -> None:
    out = compress(masked_teacher, tmp_path, "--steps 0 --validation-texts 8 --init identity")
    assert "identity, first, not trained" in out
    assert "positions" not in out and "calibration.png" not in out


def test_columns_several_files_and_streams_are_told_before_and_after_training(
    masked_teacher: Path, tmp_path: Path
) -> None:
    for name in ("a.csv", "b.csv"):
        lines = write_texts(tmp_path / "t.txt").read_text().splitlines()
        (tmp_path / name).write_text("rxn,yield\n" + "".join(f"{line},9\n" for line in lines) + " ,9\n")
    words = ["--train", str(tmp_path / "a.csv"), "--train", str(tmp_path / "b.csv"), "--column", "text=rxn"]
    quick = ["--steps", "0", "--validation-texts", "8", "--init", "identity", "--max-length", "12", "--streaming"]
    out = invoke("compress", str(masked_teacher), *words, "--output", str(tmp_path / "s"), *SIZES, *quick)
    source = f"{tmp_path / 'a.csv'}, {tmp_path / 'b.csv'}"
    assert f"{source}: text from 'rxn'. " in out
    assert f"{source}: 2 of 162 rows read so far are left out: the text is blank (2)." in out


@pytest.mark.parametrize("ridge", ["0", "-1", "nan"])
def test_a_ridge_that_is_no_strength_is_refused(masked_teacher: Path, tmp_path: Path, ridge: str) -> None:
    with pytest.raises(ConfigError, match="is not a number above 0"):
        compress(masked_teacher, tmp_path, f"--ridge {ridge}")


def test_overrides_reach_the_config_under_the_teachers_own_names(masked_teacher: Path) -> None:
    assert "24" in invoke("plan", str(masked_teacher), "--override", "intermediate_size=24")


@pytest.mark.parametrize("pair", ["embedding_size", "embedding_size=", "embedding_size=big"])
def test_an_override_that_is_no_size_is_refused(masked_teacher: Path, pair: str) -> None:
    with pytest.raises(ConfigError, match="is not NAME=SIZE"):
        invoke("plan", str(masked_teacher), "--override", pair)


def test_a_refusal_is_printed_without_a_traceback_and_exits_with_1(masked_teacher: Path) -> None:
    command = [sys.executable, "-c", "from wid_hf_cli.main import main; main()"]
    ended = subprocess.run(
        [*command, "plan", str(masked_teacher), "--hidden-size", "13", "--head-strategy", "dim"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "ConfigError: No student of this BertConfig" in ended.stderr
    assert "nearest legal: 12, 16" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_warnings_are_shown_but_for_one_that_no_user_can_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", program._show_warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(
            "`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1
        )
        warnings.warn("`another` is deprecated.", FutureWarning, stacklevel=1)
    shown = capsys.readouterr().err
    assert "`another` is deprecated." in shown
    assert "gradient_checkpointing" not in shown


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from wid_hf_cli.main import main; main()", *words]
    environment = {**os.environ, "HOME": str(home), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_a_refusal_speaks_options_and_the_home_folder_is_expanded(masked_teacher: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "t.txt")
    words = ["compress", "~/teacher", "--train", "~/t.txt", "--output", "~/s", *SIZES, "--steps", "0"]
    done = run(*words, "--max-length", "64", home=tmp_path)
    assert done.returncode == 0 and (tmp_path / "s" / "config.json").exists()
    assert "Note: --max-length 64 is more than BertForMaskedLM has positions for" in done.stderr
    again = run(*words, home=tmp_path)
    assert again.returncode == 1 and "or pass --overwrite to replace it" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_exit_status_is_that_of_the_signal(
    masked_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stopped(getattr(signal, name), "It is in x.")

    monkeypatch.setattr("wid_hf.tools.compress.compress", stop)
    words = ["compress", str(masked_teacher), "--train", "t.txt", "--output", str(tmp_path / "s"), *SIZES]
    result = CliRunner().invoke(program.app, words)
    assert result.exit_code == status and f"Stopped by {name}. It is in x." in result.stderr
