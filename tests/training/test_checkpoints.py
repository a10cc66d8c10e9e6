"""Resuming: what makes a checkpoint whole, and runs that are killed, also while they write one, and go on exactly."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from toys import CONFIGS, save_teacher, texts, word_tokenizer
from training_runs import QUIET
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, TrainerCallback, TrainingArguments

from wid_hf import StudentTrainer, WidConfig, WidError, WidTrainer, WidTrainingArguments, get_wid_model
from wid_hf.inputs import tokenize
from wid_hf.training.checkpoints import last_whole_checkpoint, missing_parts, refuse_torn_checkpoint

SCRIPT = Path(__file__).parents[1] / "distributed" / "train.py"
READ_BY_RESUMING = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
)
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make_trainer(folder: Path, config: dict[str, Any] = CONFIGS["identity"], **given: Any) -> WidTrainer:
    """A trainer with dropout and random masks, so that a wrong random state shows, and two micro-batches a step."""
    tokenizer = word_tokenizer()
    rows = tokenize(Dataset.from_dict({"text": texts(64)}), tokenizer, max_length=16)
    teacher = BertForMaskedLM.from_pretrained(save_teacher(folder.parent / "teacher", BertForMaskedLM))
    defaults: dict[str, Any] = {
        **QUIET,
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 1e-3,
        "compactor_learning_rate": 3e-3,
        "logging_steps": 1,
    }
    kwargs = {name: given.pop(name) for name in ("callbacks", "eval_dataset") if name in given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older name is the one that all releases know
        args = WidTrainingArguments(**{**defaults, **given})
    model = get_wid_model(teacher, WidConfig(**config))
    collator = DataCollatorForLanguageModeling(tokenizer)
    return WidTrainer(model=model, args=args, train_dataset=rows, data_collator=collator, **kwargs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, with checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    make_trainer(folder).train()
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def cut(path: Path, kept: float) -> None:
    """Keep a share of a file, as a process leaves it that was killed while it wrote."""
    with path.open("rb+") as file:
        file.truncate(int(path.stat().st_size * kept))


def assert_same_state(one: Path, other: Path) -> None:
    """Compare what two checkpoints hold bit for bit: weights, optimizer, schedule, random states, losses."""
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        states = [torch.load(folder / name, weights_only=False) for folder in (one, other)]
        assert same(*states), name
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (one, other)]
    losses = [[(entry["step"], entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == losses[0][-1][0]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all()) if hasattr(one, "shape") else one == other


@pytest.mark.slow
def test_a_checkpoint_that_was_written_to_the_end_is_whole(run: Path) -> None:
    for step in (2, 4, 6):
        assert missing_parts(run / f"checkpoint-{step}") == []
    assert last_whole_checkpoint(run) == run / "checkpoint-6"


def test_a_checkpoint_of_a_stock_model_is_whole_with_all_its_weights(tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(save_teacher(tmp_path / "teacher", BertForMaskedLM))
    quiet = QUIET | {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "output_dir": str(tmp_path / "run")}
    rows = tokenize(Dataset.from_dict({"text": texts(8)}), word_tokenizer(), max_length=16)
    collator = DataCollatorForLanguageModeling(word_tokenizer())
    StudentTrainer(model, TrainingArguments(**quiet), collator, rows).train()
    folder = tmp_path / "run" / "checkpoint-1"
    assert missing_parts(folder) == []
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert missing_parts(folder) == ["model.safetensors is missing"]
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert missing_parts(folder) == ["model-00002-of-00002.safetensors is missing"]
    index.write_text('{"weight_map": ')
    assert missing_parts(folder) == ["model.safetensors.index.json is cut off"]


@pytest.mark.parametrize("name", READ_BY_RESUMING)
def test_a_file_that_is_absent_is_named(copy: Path, name: str) -> None:
    (copy / "checkpoint-6" / name).unlink()
    assert missing_parts(copy / "checkpoint-6") == [f"{name} is missing"]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_every_file_that_is_cut_off_is_named(copy: Path, tmp_path: Path, kept: float) -> None:
    names = {path.name for path in (copy / "checkpoint-6").iterdir()} - {"README.md"}
    assert names > {*READ_BY_RESUMING, "training_args.bin"}
    for name in names:
        folder = Path(shutil.copytree(copy / "checkpoint-6", tmp_path / name / "checkpoint-6"))
        cut(folder / name, kept)
        assert missing_parts(folder) == [f"{name} is cut off" if kept else f"{name} is empty"]


def test_a_state_of_another_step_is_not_that_of_the_folder(copy: Path) -> None:
    shutil.copy(copy / "checkpoint-4" / "trainer_state.json", copy / "checkpoint-6")
    assert missing_parts(copy / "checkpoint-6") == ["trainer_state.json is of step 4"]
    (copy / "checkpoint-6" / "trainer_state.json").write_text("[]")
    assert missing_parts(copy / "checkpoint-6") == ["trainer_state.json states no global_step"]


def test_a_checkpoint_under_a_name_of_its_own_may_be_whole(copy: Path) -> None:
    kept = (copy / "checkpoint-6").rename(copy / "kept")
    assert missing_parts(kept) == []
    assert last_whole_checkpoint(copy) == copy / "checkpoint-4"


def test_each_of_several_processes_must_have_left_its_random_state(copy: Path) -> None:
    folder = copy / "checkpoint-6"
    assert missing_parts(folder, processes=2) == []  # one process wrote it, so nothing is missing
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    for processes in (1, 2):
        assert missing_parts(folder, processes=processes) == ["rng_state_1.pth is missing"]
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_2.pth")
    assert missing_parts(folder) == ["rng_state_1.pth is missing"]
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert missing_parts(folder) == missing_parts(folder, processes=3) == []
    assert missing_parts(folder, processes=4) == ["rng_state_3.pth is missing"]


def test_a_run_that_saves_models_only_has_no_optimizer_to_miss(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_trainer(folder, max_steps=2, save_only_model=True).train()
    expected = ["optimizer.pt is missing", "scheduler.pt is missing", "rng_state.pth is missing"]
    assert missing_parts(folder / "checkpoint-2") == expected
    assert last_whole_checkpoint(folder, model_only=True) == folder / "checkpoint-2"


@pytest.mark.slow
@each_config
def test_half_the_steps_and_a_resume_equal_all_steps(tmp_path: Path, config: dict[str, Any]) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    make_trainer(tmp_path / "whole", config, save_steps=3).train()
    make_trainer(tmp_path / "parts", config, save_steps=3, callbacks=[Stop()]).train()
    assert [path.name for path in (tmp_path / "parts").iterdir() if path.is_dir()] == ["checkpoint-3"]
    make_trainer(tmp_path / "parts", config, save_steps=3).train(resume_from_checkpoint=True)
    assert_same_state(tmp_path / "whole" / "checkpoint-6", tmp_path / "parts" / "checkpoint-6")


def test_a_checkpoint_that_is_not_whole_is_skipped_with_a_warning_and_written_anew(run: Path, copy: Path) -> None:
    (copy / "checkpoint-6" / "trainer_state.json").unlink()
    cut(copy / "checkpoint-4" / "optimizer.pt", 0.5)
    with pytest.warns(UserWarning, match="is skipped") as caught:
        make_trainer(copy).train(resume_from_checkpoint=True)
    said = [str(warning.message) for warning in caught if "is skipped" in str(warning.message)]
    assert ["checkpoint-6 is not whole" in said[0], "trainer_state.json is missing" in said[0]] == [True, True]
    assert ["checkpoint-4 is not whole" in said[1], "optimizer.pt is cut off" in said[1]] == [True, True]
    assert all(f"training resumes from {copy / 'checkpoint-2'}" in line for line in said)
    for step in (4, 6):
        assert_same_state(run / f"checkpoint-{step}", copy / f"checkpoint-{step}")


def test_a_checkpoint_asked_for_by_name_is_refused_unless_it_is_whole(copy: Path) -> None:
    cut(copy / "checkpoint-4" / "adapter_model.safetensors", 0.5)
    (copy / "checkpoint-4" / "scheduler.pt").unlink()
    words = r"checkpoint-4 is not whole.*scheduler\.pt is missing, adapter_model\.safetensors is cut off.*=True"
    for given in (str(copy / "checkpoint-4"), copy / "checkpoint-4"):
        with pytest.raises(WidError, match=words):
            make_trainer(copy).train(resume_from_checkpoint=given)
    with pytest.raises(WidError, match=r"There is no folder .*checkpoint-5: resume_from_checkpoint must be"):
        refuse_torn_checkpoint(copy / "checkpoint-5")


def test_a_run_without_a_whole_checkpoint_says_so(copy: Path, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (copy / f"checkpoint-{step}" / "rng_state.pth").unlink()
    words = r"no checkpoint to resume from.*checkpoint-6 is not.*checkpoint-2 is not whole.*rng_state\.pth is missing"
    with pytest.raises(WidError, match=words):
        make_trainer(copy).train(resume_from_checkpoint=True)
    with pytest.raises(WidError, match=r"nowhere has no folder checkpoint-<step>\. Leave resume_from_checkpoint out"):
        last_whole_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_written_over_an_older_one_is_not_taken_for_it(copy: Path) -> None:
    trainer = make_trainer(copy)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    trainer.data_collator.tokenizer.save_pretrained = killed  # between the weights and the optimizer
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert missing_parts(copy / "checkpoint-2") == ["trainer_state.json is missing", "rng_state.pth is missing"]
    assert missing_parts(copy / "checkpoint-4") == []


@pytest.mark.slow
def test_the_best_model_is_loaded_and_old_checkpoints_go_after_a_resume_too(tmp_path: Path) -> None:
    rows = tokenize(Dataset.from_dict({"text": texts(8, seed=1)}), word_tokenizer(), max_length=16)
    given = {
        "eval_dataset": rows,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    whole = make_trainer(tmp_path / "whole", **given)
    whole.train()

    class Kill(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "run", callbacks=[Kill()], **given).train()
    cut(tmp_path / "run" / "checkpoint-4" / "trainer_state.json", 0.5)
    trainer = make_trainer(tmp_path / "run", **given)
    with pytest.warns(UserWarning, match=r"checkpoint-4 is not whole.*trainer_state\.json is cut off"):
        trainer.train(resume_from_checkpoint=True)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == sorted(path.name for path in (tmp_path / "whole").iterdir()) and len(left) == 2
    assert trainer.state.best_global_step == whole.state.best_global_step
    assert Path(trainer.state.best_model_checkpoint).name in left
    for (name, one), (_, other) in zip(whole.model.named_parameters(), trainer.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def start(folder: Path, config: dict[str, Any], *given: str) -> subprocess.Popen[str]:
    """Start a run of 24 steps, a checkpoint every third, in a process of its own."""
    command = [
        sys.executable,
        str(SCRIPT),
        "--output",
        str(folder),
        "--config",
        json.dumps(config),
        "--steps",
        "24",
        "--save-steps",
        "3",
        "--accumulation",
        "2",
        "--checkpointing",
        *given,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for the end, which must be that status; return what was printed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output[-3000:]
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of 24 steps in processes of their own, made when they are asked for."""
    folders: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            finish(start(folders[name], CONFIGS[name]))
        return folders[name]

    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(
    uninterrupted: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    whole, folder, chance = uninterrupted(name), tmp_path / "run", random.Random(0)
    for kills, step in enumerate((6, 12, 18)):  # by then there is an earlier checkpoint to go on from
        process = start(folder, CONFIGS[name], *(["--resume"] if kills else []))
        deadline = time.monotonic() + 300
        while not (folder / f"checkpoint-{step}").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.3) if kills else 0)  # at once: while the checkpoint is being written
        process.send_signal(signal.SIGKILL)
        finish(process, -signal.SIGKILL)
        if kills == 0:
            assert missing_parts(folder / f"checkpoint-{step}")
    finish(start(folder, CONFIGS[name], "--resume"))
    assert_same_state(whole / "checkpoint-24", folder / "checkpoint-24")
    results = [json.loads((path / "rank-0.json").read_text()) for path in (whole, folder)]
    assert results[0]["end"] == results[1]["end"]


@pytest.mark.slow
@pytest.mark.parametrize("written", ["README.md", "adapter_model.safetensors", "optimizer.pt"])
def test_a_run_killed_while_it_writes_a_file_goes_on_from_the_checkpoint_before(
    uninterrupted: Callable[[str], Path], tmp_path: Path, written: str
) -> None:
    whole, folder = uninterrupted("calibrated"), tmp_path / "run"
    size = (whole / "checkpoint-12" / written).stat().st_size
    limits = ["--file-limit", str(size - 9), "--limit-after", "12"]  # no file that is written earlier is as large
    finish(start(folder, CONFIGS["calibrated"], *limits), -signal.SIGXFSZ)
    missing = missing_parts(folder / "checkpoint-12")
    assert missing and (written == "README.md" or any(line.startswith(written) for line in missing))
    output = finish(start(folder, CONFIGS["calibrated"], "--resume"))
    assert "checkpoint-12 is not whole" in output and f"training resumes from {folder / 'checkpoint-9'}" in output
    assert_same_state(whole / "checkpoint-24", folder / "checkpoint-24")
