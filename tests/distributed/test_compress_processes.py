"""`wid-hf compress` in two processes: one scores, writes and prints, and both go on where they were stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toys import save_teacher, write_texts
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
ACCELERATE += ["-m"]
ALONE = [sys.executable, "-m"]
SIZES = ["--hidden-size", "12", "--intermediate-size", "24"]
QUICK = ["--validation-texts", "8", "--max-length", "12", "--calibration-samples", "32"]
STILL = ["--set", "logging_steps=1", "--set", "save_steps=4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with texts and a classifier without dropout: nothing in its training is drawn at random."""
    saved = save_teacher(tmp_path / "teacher", BertForSequenceClassification)
    teacher = BertForSequenceClassification.from_pretrained(saved)
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    teacher.classifier.weight.data *= 3000  # so that classes differ
    teacher.save_pretrained(saved)
    write_texts(tmp_path / "t.txt")
    return tmp_path


def begin(launcher: list[str], folder: Path, output: str, *more: str) -> subprocess.Popen[str]:
    words = ["wid_hf_cli", "compress", "teacher", "--train", "t.txt", "--output", output, *SIZES, *QUICK, *STILL]
    return subprocess.Popen(
        [*launcher, *words, *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report(launcher: list[str], folder: Path, output: str, *more: str) -> tuple[dict[str, Any], str]:
    """Compress, and return the report with what was printed."""
    child = begin(launcher, folder, output, *more)
    out, err = child.communicate(timeout=600)
    assert child.returncode == 0, err[-4000:]
    return json.loads((folder / output / "wid_report.json").read_text()), out


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"teacher", "t.txt"}


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_make_the_student_of_one_with_both_batches(folder: Path, launcher: list[str]) -> None:
    one, _ = report(ALONE, folder, "one", "--steps", "6", "--batch-size", "8")
    both, printed = report(launcher, folder, "both", "--steps", "6", "--batch-size", "4")
    assert names(folder) == {"one", "both"}
    assert printed.count("The student is in both") == 1 and printed.count("divergence") == 1
    losses = [[loss for _, loss in told["losses"]] for told in (one, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 6
    for name in ("teacher", "start", "student"):
        assert both["scores"][name] == pytest.approx(one["scores"][name], rel=1e-4)
    assert AutoModelForSequenceClassification.from_pretrained(folder / "both").config.hidden_size == 12


def test_two_processes_that_are_stopped_stop_together_and_go_on(folder: Path) -> None:
    given = ["--steps", "2000", "--batch-size", "4"]
    child = begin(TORCHRUN, folder, "s", *given)
    state = folder / "s-work" / "checkpoint-8"
    while not state.is_dir() and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=600)
    assert child.returncode != 0
    assert err.count("Stopped by SIGTERM. The student after") == 1, err[-4000:]
    assert names(folder) == {"s-last-good", "s-work"}
    kept = json.loads((folder / "s-last-good" / "wid_report.json").read_text())
    (checkpoint,) = (folder / "s-work").glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{kept['steps']}" and kept["steps"] >= 8
    child = begin(TORCHRUN, folder, "s", *given, "--resume")
    while child.poll() is None and not any(
        int(path.name.partition("-")[2]) > kept["steps"] for path in (folder / "s-work").glob("checkpoint-*")
    ):
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=600)
    again = json.loads((folder / "s-last-good" / "wid_report.json").read_text())
    assert again["steps"] > kept["steps"], err[-4000:]
    assert again["losses"][: kept["steps"]] == kept["losses"] and again["scores"]["start"] == kept["scores"]["start"]
