"""Prints what of a training works where: two processes in each mode against one process with both batches.

    python tests/distributed/table.py FOLDER [MODE ...]

Each line is a mode; a cell is the largest difference of losses or merged weights to one process, or the error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "train.py"
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SIZES: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "narrow": {**SIZES, "init": "identity"},
    "calibrated": {**SIZES, "calibration_config": {"samples": 32}},
    "progressive": {**SIZES, "schedule": {"mask_interval": 1, "mask_increments": 2, "decay_to_zero_steps": 2}},
}
ERROR = re.compile(r"^(?:\[rank\d\]:)?\s*((?:\w+\.)*\w*(?:Error|Exception|Refused)\b: .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What a run found, or its error."""

    losses: list[float]
    weights: dict[str, Any]
    error: str = ""

    def difference(self, other: Run) -> str:
        """Return in words how far losses and merged weights are from each other."""
        if self.error or other.error:
            return self.error or other.error
        if len(self.losses) != len(other.losses) or self.weights.keys() != other.weights.keys():
            return f"{len(self.losses)} losses against {len(other.losses)}, or other weights"
        losses = max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True))
        weights = max(float((self.weights[n] - other.weights[n]).abs().max()) for n in self.weights)
        return f"loss {losses:.0e}, weights {weights:.0e}"


def run(launcher: list[str], folder: Path, *given: str) -> Run:
    """Run the script once."""
    done = subprocess.run(
        [*launcher, str(SCRIPT), "--output", str(folder), "--dropout", "0", *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        (folder.parent / f"{folder.name}.log").write_text(done.stdout + done.stderr)
        found = [line for line in ERROR.findall(done.stderr) if "ChildFailedError" not in line]
        return Run([], {}, found[-1] if found else done.stderr[-300:])
    found = json.loads((folder / "rank-0.json").read_text())
    return Run(found["losses"], load_file(folder / "student" / "model.safetensors"))


def row(folder: Path, mode: str, ones: dict[str, Run], model: str) -> Iterator[tuple[str, str]]:
    """Yield the cells of a mode, by what was tried."""
    for name, config in CONFIGS.items():
        place = folder / f"{mode}-{name}"
        words = ["--mode", mode, "--config", json.dumps(config), "--batch", "4", "--steps", "6", "--model", model]
        whole = run(TWO, place, *words, "--save-steps", "3")
        yield name, whole.difference(ones[name])
        if not whole.error:
            shutil.rmtree(place / "checkpoint-6")
            shutil.rmtree(place / "student")
            yield f"{name}, resumed", run(TWO, place, *words, "--save-steps", "3", "--resume").difference(whole)


def main(folder: Path, modes: list[str]) -> None:
    """Print the table."""
    model = os.environ.get("TABLE_MODEL", "bert")
    folder.mkdir(parents=True, exist_ok=True)
    ones = {
        name: run(
            ALONE,
            folder / f"one-{name}",
            "--config",
            json.dumps(config),
            "--batch",
            "8",
            "--steps",
            "6",
            "--model",
            model,
        )
        for name, config in CONFIGS.items()
    }
    for name, one in ones.items():
        print("one", name, one.error or one.losses, flush=True)
    for mode in modes:
        for name, cell in row(folder, mode, ones, model):
            print(f"{mode:12} {name:24} {cell}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
