"""The memory of a step as it is counted, against what the system says of a real training in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import QUIET, masked_rows
from transformers import BertConfig, BertForMaskedLM

from wid_hf import WidConfig, WidTrainer, WidTrainingArguments, get_wid_model
from wid_hf.layers.stacked_fold import drop_kept_stacks
from wid_hf.training.step_memory import StepMemoryCounter

MIB = 2**20
CLOSE = 0.15
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
LARGE = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}


def trainer_of(folder: Path, sizes: dict[str, int], vocabulary: int, given: dict[str, Any]) -> WidTrainer:
    torch.manual_seed(0)
    teacher = BertForMaskedLM(BertConfig(vocab_size=vocabulary, **sizes))
    half = WidConfig(
        hidden_size=sizes["hidden_size"] // 2, intermediate_size=sizes["intermediate_size"] // 2, init="identity"
    )
    model = get_wid_model(teacher, half)
    args = {
        "output_dir": str(folder),
        "max_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-4,
        **QUIET,
    }
    keep = given.pop("keep_last_good", "device")
    args = WidTrainingArguments(**args | given)
    return WidTrainer(model=model, args=args, train_dataset=masked_rows(24, 64), keep_last_good=keep)


def counted(folder: Path, sizes: dict[str, int], vocabulary: int, given: dict[str, Any]) -> StepMemoryCounter:
    drop_kept_stacks()  # of other tests in this process
    trainer = trainer_of(folder, sizes, vocabulary, dict(given))
    counter = StepMemoryCounter(trainer, trainer.wid_model)
    trainer.add_callback(counter)
    trainer.train()
    assert counter.found is not None
    return counter


def peak_growth(folder: Path, given: dict[str, Any]) -> int:
    """Bytes by which a fresh process grows at most when it makes and trains the large model."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "support"), *sys.path])
    # Memory that is freed goes back at once, so that what the system counts is what is alive.
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder), json.dumps(given)],
        env={**os.environ, **small, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


def resident(entry: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[entry].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"teacher_learning_rate": 0, "keep_last_good": "disk", "activation_checkpointing": True},
        {"optim": "adafactor", "keep_last_good": None},
    ],
    ids=["all trains", "frozen teacher, checkpointing, copy on disk", "adafactor, no copy"],
)
def test_the_count_is_near_the_peak_of_a_real_training(tmp_path: Path, given: dict[str, Any]) -> None:
    found = counted(tmp_path / "counted", LARGE, 20_000, given).found
    assert found is not None and found.teacher > 40 * MIB
    assert found.total == pytest.approx(peak_growth(tmp_path / "real", given), rel=CLOSE)


def test_each_part_is_what_it_says(tmp_path: Path) -> None:
    plain = counted(tmp_path, TINY, 100, {"teacher_learning_rate": 0}).found
    on_disk = counted(tmp_path, TINY, 100, {"teacher_learning_rate": 0, "keep_last_good": "disk"}).found
    assert plain is not None and on_disk is not None
    trainer = trainer_of(tmp_path, TINY, 100, {"teacher_learning_rate": 0})
    trains = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    assert plain.last_good == trains and on_disk.last_good == 0
    assert plain.gradients == trains
    assert 2 * trains <= plain.optimizer < 2 * trains + 4 * len([*trainer.model.parameters()]) + 1
    teacher = trainer.model.base_model.teacher
    assert plain.teacher == sum(t.nbytes for t in (*teacher.parameters(), *teacher.buffers()))
    assert plain.total - on_disk.total == trains
    assert plain.rows()[-1] == ("all", f"{plain.total / MIB:,.1f}")


def test_checkpointing_and_adafactor_save_what_they_are_for(tmp_path: Path) -> None:
    given: dict[str, Any] = {"teacher_learning_rate": 0}
    deep = TINY | {"num_hidden_layers": 4}
    plain = counted(tmp_path, deep, 100, given).found
    checkpointed = counted(tmp_path, deep, 100, given | {"activation_checkpointing": True}).found
    factored = counted(tmp_path, deep, 100, given | {"optim": "adafactor"}).found
    assert plain is not None and checkpointed is not None and factored is not None
    assert checkpointed.activations < 0.6 * plain.activations
    assert factored.optimizer < 0.2 * plain.optimizer


if __name__ == "__main__":
    where, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    trainer_of(where, TINY, 100, dict(options)).train()  # loads what is loaded late
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    trainer_of(where, LARGE, 20_000, dict(options)).train()
    print(resident("VmHWM") - before)
