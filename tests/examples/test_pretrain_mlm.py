"""The recipe of examples/pretrain_mlm.py: what it trains on, what it saves, resuming, the paper's configs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import save_teacher, word_tokenizer, write_texts
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    HfArgumentParser,
)

from wid_hf import DataError, TeacherError, WidConfig, WidSchedule, WidTrainingArguments, get_wid_model
from wid_hf.scores import masked_batches, masked_lm_score

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import pretrain_mlm

Recipe = pretrain_mlm.Recipe

CONFIGS = sorted((Path(pretrain_mlm.__file__).parent / "configs").glob("bert-*.json"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A whole run, small: 6 steps of 4 blocks of 16 tokens."""
    return {
        "teacher": str(save_teacher(tmp_path / "teacher", BertForMaskedLM)),
        "corpus": str(write_texts(tmp_path / "train.txt", count=200)),
        "hidden_size": 12,
        "intermediate_size": 24,
        "max_length": 16,
        "validation_blocks": 8,
        "output_dir": str(tmp_path / "out"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
        "compactor_learning_rate": 1e-2,
        "teacher_learning_rate": 1e-3,
        "logging_steps": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain_mlm.py", *words])
    pretrain_mlm.main()


def run_json(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> Path:
    path = Path(values["output_dir"]).with_suffix(".json")
    path.write_text(json.dumps(values))
    run(monkeypatch, str(path))
    return Path(values["output_dir"]) / "student"


def test_a_json_file_is_all_it_takes_and_the_student_is_stock(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_json(monkeypatch, values)
    student, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(student) is BertForMaskedLM
    assert (student.config.hidden_size, student.config.intermediate_size) == (12, 24)
    report = json.loads((folder / "wid_report.json").read_text())
    assert (report["steps"], report["tokens"]) == (6, 6 * 4 * 16)
    assert [step for step, _ in report["losses"]] == [2, 4, 6]
    assert report["requested"] == {"hidden_size": 12, "intermediate_size": 24}
    assert report["settings"]["corpus"] == values["corpus"]
    args = WidTrainingArguments(values["output_dir"], use_cpu=True)
    recipe = Recipe(**{name: values[name] for name in Recipe.__dataclass_fields__ if name in values})
    _, held_out = pretrain_mlm.hold_out(pretrain_mlm.blocks(recipe, tokenizer), 8)
    batches = masked_batches(held_out, tokenizer, args.per_device_eval_batch_size, args.seed)
    again = masked_lm_score(student, batches)
    assert report["scores"]["student"]["masked_lm_loss"] == pytest.approx(again.loss, rel=1e-6)
    assert report["scores"]["teacher"]["masked_lm_loss"] != pytest.approx(again.loss, rel=1e-3)


@pytest.mark.slow
def test_flags_give_the_same_run_as_a_file(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = load_file(run_json(monkeypatch, values) / "model.safetensors")
    other = {**values, "output_dir": values["output_dir"] + "-flags"}
    words = [word for name, value in other.items() for word in (f"--{name}", str(value))]
    run(monkeypatch, *words)
    by_flags = load_file(Path(other["output_dir"]) / "student" / "model.safetensors")
    assert all(torch.equal(tensor, by_flags[name]) for name, tensor in by_file.items())


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_student(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_json(monkeypatch, values)
    whole = load_file(folder / "model.safetensors")
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "checkpoint-6")
    resumed = load_file(run_json(monkeypatch, values) / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    state = json.loads((folder.parent / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert len([entry for entry in state["log_history"] if "loss" in entry]) == 3


def test_a_corpus_can_be_streamed(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_json(monkeypatch, {**values, "streaming": True})
    assert json.loads((folder / "wid_report.json").read_text())["tokens"] == 6 * 4 * 16
    assert AutoModelForMaskedLM.from_pretrained(folder).config.hidden_size == 12


@pytest.mark.parametrize("streaming", [False, True])
def test_blocks_are_the_texts_one_after_the_other(values: dict[str, Any], streaming: bool, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    (tmp_path / "train.txt").write_text("one two three\n\n" + "four\n" * 9)
    recipe = Recipe("", str(tmp_path / "train.txt"), 12, 24, streaming=streaming, max_length=8)
    rows = list(pretrain_mlm.blocks(recipe, tokenizer))
    tokens = tokenizer("one two three")["input_ids"] + 9 * tokenizer("four")["input_ids"]
    assert rows == [{"input_ids": tokens[at : at + 8]} for at in (0, 8, 16, 24)]
    train, held_out = pretrain_mlm.hold_out(pretrain_mlm.blocks(recipe, tokenizer), 1)
    assert (list(train), list(held_out)) == (rows[1:], rows[:1])


def test_masks_change_with_the_batch_and_leave_the_random_state_alone() -> None:
    collate = pretrain_mlm.masking(word_tokenizer(), 0.5, seed=0)
    rows = [{"input_ids": list(range(5, 13))}, {"input_ids": list(range(7, 15))}]
    before = torch.get_rng_state()
    once, again, swapped = (collate(each)["input_ids"] for each in (rows, rows, rows[::-1]))
    assert torch.equal(once, again)
    assert not torch.equal(once, swapped.flip(0))
    assert (once == 4).any() and not torch.equal(
        once, pretrain_mlm.masking(word_tokenizer(), 0.5, 1)(rows)["input_ids"]
    )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_papers_students_have_the_papers_numbers(path: Path, tmp_path: Path) -> None:
    recipe, args = HfArgumentParser((Recipe, WidTrainingArguments)).parse_json_file(path)
    assert (args.compactor_learning_rate, args.teacher_learning_rate) == (5e-5, 1e-6)
    assert (args.per_device_train_batch_size, recipe.max_length, args.max_steps) == (120, 128, 400_000)
    assert (args.get_warmup_steps(args.max_steps), args.weight_decay) == (4_000, 0.01)
    one_layer = BertConfig(vocab_size=60, num_hidden_layers=1, max_position_embeddings=16)  # else BERT-base
    config = WidConfig(
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        head_strategy=recipe.head_strategy,
        init="identity",
    )
    student = get_wid_model(BertForMaskedLM(one_layer), config).base_model.model
    heads = student.config.num_attention_heads
    assert path.stem == f"bert-{student.config.hidden_size}-{recipe.head_strategy}"
    assert {"bert-516-dim": (12, 2064), "bert-192-dim": (12, 768), "bert-192-head": (3, 768)}[path.stem] == (
        heads,
        student.config.intermediate_size,
    )


@pytest.mark.slow
def test_the_papers_schedule_reaches_the_student_and_its_report(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = run_json(monkeypatch, {**values, "schedule": "progressive"})
    report = json.loads((student / "wid_report.json").read_text())
    assert report["schedule"] == asdict(WidSchedule())
    assert report["narrow_from"] == 2
    assert AutoModelForMaskedLM.from_pretrained(student).config.hidden_size == 12


def test_the_papers_own_numbers_do_not_fit_a_short_run(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"ends at step 16000 .* only 6"):
        run_json(monkeypatch, {**values, "schedule": "paper"})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"column": "body"}, r"train.txt has no text in column 'body'; its columns: \['text'\]"),
        (
            {"corpus": "no-such-corpus"},
            "'no-such-corpus' is not a file here, and its split 'train' cannot be loaded",
        ),
        ({"validation_blocks": 5000}, "of which 5000 are held out; give more texts"),
        ({"teacher": "/no/such/teacher"}, "There is no folder '/no/such/teacher'"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    given: dict[str, Any], words: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=words) as stopped:
        run_json(monkeypatch, {**values, **given})
    assert isinstance(stopped.value.__cause__, (DataError, TeacherError))


def test_a_headless_teacher_is_refused(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    teacher = str(save_teacher(tmp_path / "headless", BertModel))
    with pytest.raises(SystemExit, match="is a BertModel; this recipe is for masked language models"):
        run_json(monkeypatch, {**values, "teacher": teacher})
