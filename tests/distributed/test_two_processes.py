"""Two processes on one machine train as one process does on both their batches, and go on where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import CONFIGS
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertForMaskedLM, LlamaForCausalLM

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "train.py"
# Every launcher finds a free port by itself. Without --cpu, which starts one process; the script asks for the CPU.
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]


def train(launcher: list[str], folder: Path, config: dict[str, Any], *given: str) -> list[dict[str, Any]]:
    """Run the script; return what each process found."""
    command = [*launcher, str(SCRIPT), "--output", str(folder), "--config", json.dumps(config), *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    assert len(found) == found[0]["processes"] == (1 if launcher is ALONE else 2)
    return found


def assert_equal_to_one(both: list[dict[str, Any]], one: dict[str, Any], steps: int) -> None:
    """Check the ranks against each other bit for bit, and their losses against those of one process."""
    assert both[0] == both[1]
    assert both[0]["start"] == one["start"]
    assert len(one["losses"]) == steps and len(set(one["losses"])) == steps
    assert both[0]["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_two_processes_have_the_losses_of_one_with_the_summed_batch(tmp_path: Path, config: dict[str, Any]) -> None:
    given = ["--steps", "6", "--dropout", "0"]
    one = train(ALONE, tmp_path / "one", config, "--batch", "8", *given)[0]
    both = train(TORCHRUN, tmp_path / "two", config, "--batch", "4", *given)
    assert_equal_to_one(both, one, steps=6)
    students = [AutoModelForMaskedLM.from_pretrained(tmp_path / name / "student") for name in ("one", "two")]
    assert type(students[1]) is BertForMaskedLM and students[1].config.hidden_size == 12
    for (name, mine), (_, other) in zip(students[0].named_parameters(), students[1].named_parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4), name


def test_the_model_shrinks_under_accelerate_too(tmp_path: Path) -> None:
    given = ["--steps", "6", "--dropout", "0"]
    one = train(ALONE, tmp_path / "one", CONFIGS["progressive"], "--batch", "8", *given)[0]
    parts = ["--batch", "2", "--accumulation", "2", "--checkpointing"]
    both = train(ACCELERATE, tmp_path / "two", CONFIGS["progressive"], *parts, *given)
    assert_equal_to_one(both, one, steps=6)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "two" / "student").config.hidden_size == 12


def test_the_penalty_works_where_processes_share_the_optimizers_state(tmp_path: Path) -> None:
    """ZeRO-1: rows reach zero alike, the model stays wide and says so, and merging gives the narrow student."""
    script = Path(__file__).parent / "zero.py"
    done = subprocess.run(
        [*TORCHRUN, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["wide"] and first["dropped_norm"] == 0.0
    assert "stays at the teacher's widths" in first["warning"]
    assert first["merged_hidden_size"] == 12
    assert first["difference"] <= 1e-5


def test_accumulation_and_gradient_checkpointing_change_nothing_under_accelerate(tmp_path: Path) -> None:
    given = ["--steps", "6", "--dropout", "0", "--model", "llama"]
    one = train(ALONE, tmp_path / "one", CONFIGS["calibrated"], "--batch", "8", *given)[0]
    parts = ["--batch", "2", "--accumulation", "2", "--checkpointing"]
    both = train(ACCELERATE, tmp_path / "two", CONFIGS["calibrated"], *parts, *given)
    assert_equal_to_one(both, one, steps=6)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "student")) is LlamaForCausalLM


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_two_processes_that_resume_end_where_they_would_have_ended(tmp_path: Path, config: dict[str, Any]) -> None:
    given = ["--steps", "6", "--save-steps", "3", "--accumulation", "2", "--checkpointing"]
    folder = tmp_path / "run"
    whole = train(TORCHRUN, folder, config, *given)
    assert whole[0] == whole[1]
    (folder / "checkpoint-6" / "rng_state_1.pth").unlink()  # as if killed before the second process had written it
    shutil.rmtree(folder / "student")
    for path in folder.glob("rank-*.json"):
        path.unlink()
    resumed = train(TORCHRUN, folder, config, "--resume", *given)
    assert resumed[0] == resumed[1]
    assert (resumed[0]["end"], resumed[0]["losses"]) == (whole[0]["end"], whole[0]["losses"])
    assert (folder / "student" / "config.json").is_file()
