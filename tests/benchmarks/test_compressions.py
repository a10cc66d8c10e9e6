"""Students of `benchmarks/compressions`: a command in a process of its own, its record and its section."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_command import load_command
from toys import WORDS, save_teacher, texts, write_texts
from transformers import (
    AutoModelForTokenClassification,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainerState,
)
from typer.testing import CliRunner

from wid_hf_cli.app import app

FOLDER = Path(__file__).parents[2] / "benchmarks" / "compressions"


@pytest.fixture
def command() -> ModuleType:
    return load_command(FOLDER)


def tiny_case(folder: Path, more: str = "", **given: Any) -> Any:
    """A classifier whose rows and teacher are made once."""
    from case import Case

    made = []

    def make(cache: Path) -> None:
        made.append(save_teacher(folder / "teacher", BertForSequenceClassification))
        write_texts(cache / "tiny" / "texts.txt")

    words = (
        f"{folder / 'teacher'} --train {{cache}}/tiny/texts.txt --hidden-size 12 --intermediate-size 24 --steps 4 "
        f"--batch-size 8 --max-length 12 --validation-texts 16 --calibration-samples 24 {more}"
    )
    return Case("tiny", words, make=make, **given), made


@pytest.mark.slow
def test_a_student_of_the_command_line_is_recorded_once_with_the_figures_of_its_report(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = []

    def further(teacher: Path, student: Path) -> dict[str, dict[str, float | str]]:
        looked.append((teacher, student))
        return {"files": {"teacher": "some", "student": "more"}, "share": {"student": 0.5}}

    case, made = tiny_case(tmp_path, further=further)
    store, page = command.Store(tmp_path / "records"), tmp_path / "results.md"
    command.measure(case, store, tmp_path / "cache", page)
    student = tmp_path / "cache" / "tiny" / "student"
    report = json.loads((student / "wid_report.json").read_text())
    (record,) = (each for each in store.records("compressions") if "report" in each)
    for key, value in record["report"].items():
        assert report[key] == value
    assert record["report"]["steps"] == 4 and not record["resumed"]
    written = page.read_text()
    assert "## Compressed by one command: tiny\n" in written
    assert "--steps 4" in written and "--output .cache/compressions/tiny/student" in written
    cells = [f"{report['scores'][name]['agreement']:.4f}" for name in ("teacher", "start", "student")]
    assert f"| agreement | {' | '.join(cells)} |" in written
    assert "| files | some | more |\n| share |  | 0.5000 |" in written

    shutil.rmtree(tmp_path / "cache")
    command.measure(case, store, tmp_path / "cache", page)
    assert not student.exists() and page.read_text() == written
    assert len(made) == 1 and looked == [(tmp_path / "teacher", student)]
    assert capsys.readouterr().out.count("## Compressed") == 2


QUESTIONS = [
    {"question": f"{word} ?", "context": text, "answers": {"text": [text.split()[0]], "answer_start": [0]}}
    for word, text in zip(WORDS * 4, texts(40), strict=True)
]
KILLED = """
import os, signal
from transformers import TrainerCallback
TrainerCallback.on_save = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from wid_hf_cli.main import main
main()
"""


@pytest.mark.slow
def test_a_case_that_was_killed_goes_on_from_its_checkpoint(command: ModuleType, tmp_path: Path) -> None:
    case, _ = tiny_case(tmp_path, "--set save_steps=2")
    cache, store = tmp_path / "cache", command.Store(tmp_path / "records")
    case.make(cache)
    words = [sys.executable, "-c", KILLED, *case.command(cache)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (cache / "tiny" / "student-work" / "checkpoint-2").is_dir()
    command.measure(case, store, cache, tmp_path / "results.md")
    (record,) = store.records("compressions")
    assert record["resumed"] and record["report"]["steps"] == 4
    assert [path.name for path in (cache / "tiny").iterdir() if path.name.startswith("student")] == ["student"]


def test_every_command_is_one_that_the_command_line_takes(command: ModuleType, tmp_path: Path) -> None:
    for case in command.CASES.values():
        written = CliRunner().invoke(app, [*case.command(tmp_path), "--print-config"])
        assert written.exit_code == 0, written.output
        assert "{" not in case.shown() and str(tmp_path) not in case.shown()


def test_a_run_that_fails_says_how_its_log_ends(command: ModuleType, tmp_path: Path) -> None:
    import program

    with pytest.raises(RuntimeError, match="No such command 'compres'"):
        program.run(["compres"], tmp_path / "log.txt")


@pytest.mark.slow
def test_a_teacher_that_was_killed_in_training_is_the_one_of_a_training_without_end(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fine_tuned_teachers
    from once import write_rows

    encoder = save_teacher(tmp_path / "encoder", BertModel)
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    monkeypatch.setattr(fine_tuned_teachers, "SAVED", 2)
    tuning = replace(fine_tuned_teachers.ANSWERS, steps=5)
    tuning.train(encoder, tmp_path / "rows.jsonl", tmp_path / "whole")

    def stop(self: Any, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainerCallback, "on_step_end", stop)
        tuning.train(encoder, tmp_path / "rows.jsonl", tmp_path / "stopped")
    assert (tmp_path / "stopped-work" / "checkpoint-2").is_dir()
    tuning.train(encoder, tmp_path / "rows.jsonl", tmp_path / "stopped")
    whole, stopped = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped and not (tmp_path / "stopped-work").exists()


def test_a_teacher_of_other_classes_has_their_names(command: ModuleType, tmp_path: Path) -> None:
    from fine_tuned_teachers import PARTS_OF_SPEECH, UPOS, FineTuning
    from once import write_rows

    encoder = save_teacher(tmp_path / "encoder", BertForTokenClassification)
    write_rows(tmp_path / "rows.jsonl", [{"tokens": WORDS[:3], "tags": ["ADJ", "X", "NOUN"]}] * 8)
    tuning: FineTuning = replace(PARTS_OF_SPEECH, steps=2, batch=4)

    tuning.train(encoder, tmp_path / "rows.jsonl", tmp_path / "teacher")

    teacher = AutoModelForTokenClassification.from_pretrained(tmp_path / "teacher")
    assert tuple(teacher.config.id2label.values()) == UPOS
    assert teacher.classifier.weight.shape == (len(UPOS), 24)


def test_a_decoder_whose_heads_are_wider_than_its_stream_is_the_same_from_a_gguf_file(
    command: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from gguf_file import write_gguf

    config = LlamaConfig(
        vocab_size=40, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "stock")
    (tmp_path / "gguf").mkdir()
    file = write_gguf(tmp_path / "stock", tmp_path / "gguf" / "student.gguf")
    again = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32").eval()
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits)


@pytest.mark.slow
def test_rows_are_the_same_wherever_and_whenever_they_are_written(
    command: ModuleType, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import media
    import texts

    for name in ("TAUGHT", "ASKED", "ASKED_HELD_OUT", "TAGGED", "TAGGED_HELD_OUT", "TRAINED"):
        for module in (media, texts):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 20)
    for folder in (tmp_path / "first", tmp_path / "second"):
        texts.confused_texts(folder / "tagged")
        texts.questions(folder / "asked")
        media.digits(folder / "said")
    first, second = (
        {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        for folder in (tmp_path / "first", tmp_path / "second")
    )
    assert first == second
    assert [name for name in first if name.endswith(".jsonl")] == [
        "asked/held_out.jsonl", "asked/taught.jsonl", "asked/train.jsonl", "said/test/metadata.jsonl",
        "tagged/held_out.jsonl", "tagged/train.jsonl",
    ]  # fmt: skip
    taught, asked = (
        {json.loads(line)["question"] for line in first[f"asked/{name}.jsonl"].splitlines()}
        for name in ("taught", "train")
    )
    assert len(taught) == len(asked) == 20 and not taught & asked
    texts.questions(tmp_path / "first" / "asked")  # reads nothing


def test_digits_are_the_same_however_they_are_written(command: ModuleType) -> None:
    from further import _digits

    assert [_digits(text) for text in (" 6, 6, 4.", "66-4", "Six six 4", "sick 6 four")] == [
        ["6", "6", "4"], ["6", "6", "4"], ["6", "6", "4"], ["sick", "6", "4"],
    ]  # fmt: skip
