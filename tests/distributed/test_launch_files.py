"""The launch files of `examples/launch`: two processes each, through `accelerate launch`, end in one student."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toys import save_teacher, write_texts
from transformers import BertForMaskedLM

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / "examples" / "launch"
FILES = sorted(path.name for path in LAUNCH.glob("*.yaml"))
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
WORDS = ["--teacher", "teacher", "--texts", "texts.txt", "--hidden_size", "12", "--intermediate_size", "24"]
WORDS += ["--max_steps", "3", "--learning_rate", "0.001", "--save_strategy", "no", "--report_to", "none"]
WORDS += ["--dataloader_pin_memory", "false", "--per_device_train_batch_size", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher without dropout, texts, and the student of two processes that divide nothing."""
    made = tmp_path_factory.mktemp("launch")
    teacher = BertForMaskedLM.from_pretrained(save_teacher(made / "teacher", BertForMaskedLM))
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    teacher.save_pretrained(made / "teacher")
    write_texts(made / "texts.txt")
    launch(made, "ddp.yaml", "--use_cpu")
    return made


def launch(folder: Path, file: str, *more: str) -> None:
    """Train in two processes; the masks of their texts are the same with every file."""
    launcher = [*LAUNCHER, "--config_file", str(LAUNCH / file), str(HERE / "on_cpu.py"), str(LAUNCH / "train.py")]
    done = subprocess.run(
        [*launcher, *WORDS, "--output_dir", file, *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-4000:]


def test_there_is_a_file_for_each_way() -> None:
    assert FILES == ["ddp.yaml", "fsdp2.yaml", "zero2.yaml", "zero3.yaml"]


@pytest.mark.parametrize("file", ["fsdp2.yaml", "zero2.yaml", "zero3.yaml"])
def test_divided_weights_give_the_student_of_whole_ones(folder: Path, file: str) -> None:
    if file.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    launch(folder, file)
    whole, divided = (load_file(folder / name / "student" / "model.safetensors") for name in ("ddp.yaml", file))
    assert whole.keys() == divided.keys()
    assert max(float((whole[name] - divided[name]).abs().max()) for name in whole) < 1e-5
