from __future__ import annotations

import inspect
import io
import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from wid_hf import WidConfig, WidError
from wid_hf.tools.compress import CompressSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import corpus
import demo

TOPICS = len(list(corpus.paragraphs(corpus.topics.values())))
CONFIG = WidConfig(hidden_size=16, intermediate_size=32, selection="variance", init="identity")
SETTINGS = CompressSettings(
    steps=2,
    batch_size=4,
    max_length=16,
    validation_texts=6,
    compactor_learning_rate=1e-3,
    teacher_learning_rate=0.0,
)
FirstRun = tuple[Path, list[demo.Row], str]  # its folder, its table's rows, what it printed
TEXTS = [f"{subject} {verb} the item" for subject in ("this", "that", "a list", "one") for verb in "abcdefg"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "tiny"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def first_run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    output = tmp_path_factory.mktemp("demo") / "out"
    rows, printed = demonstrate(teacher, output)
    return output, rows, printed


@pytest.fixture
def student(first_run: FirstRun, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(first_run[0] / "student", tmp_path / "student"))


def demonstrate(
    teacher: Path, output: Path, texts: Callable[[], list[str]] = lambda: TEXTS
) -> tuple[list[demo.Row], str]:
    console = Console(file=io.StringIO(), width=240)
    rows = demo.demonstrate(teacher, output, texts, CONFIG, SETTINGS, console=console)
    return rows, console.file.getvalue()


def gather(folders: list[Path], most: int = TOPICS + 300) -> list[str]:
    return corpus.documentation_texts(folders, most=most)


def test_the_corpus_is_the_same_in_every_run_and_its_texts_obey_the_bounds() -> None:
    texts = gather([Path(json.__file__).parent, Path(inspect.__file__).parent / "email"])
    assert texts == gather([Path(json.__file__).parent, Path(inspect.__file__).parent / "email"])
    assert len(texts) > 1000
    assert len(set(texts)) == len(texts)
    assert all(corpus.SHORTEST <= len(text) <= corpus.LONGEST and "\n" not in text for text in texts)


def test_the_corpus_takes_docstrings_without_running_the_code_and_leaves_tests_and_broken_files_out(
    tmp_path: Path,
) -> None:
    sentence = "is a sentence that is long enough to be taken into the corpus of this test."
    (tmp_path / "tests").mkdir()
    for name in ("module.py", "test_module.py", "tests/helper.py"):
        (tmp_path / name).write_text(f'"""{name} {sentence}"""\nraise SystemExit("ran")\n')
    (tmp_path / "broken.py").write_text(f'"""broken {sentence}"""\ndef (\n')
    (tmp_path / "escape.py").write_text(f'"""escape {sentence}\n\nUsed as \\d {sentence}"""\n')
    found = {text.split()[0] for text in gather([tmp_path]) if text.endswith(sentence)}
    assert found == {"module.py", "escape", "Used"}


def test_the_corpus_stops_at_its_bounds(tmp_path: Path) -> None:
    assert len(gather([], most=50)) == 50
    for number in range(3):
        (tmp_path / f"{number}.py").write_text(
            f'"""File {number} describes something that is long enough to take."""\n'
        )
    from_files = [t for t in corpus.documentation_texts([tmp_path], most_bytes=100) if "describes something" in t]
    assert len(from_files) == 2


def test_code_and_tables_are_no_prose() -> None:
    documents = [
        ">>> list(range(10)) and then some more words to fill",
        "| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 |",
    ]
    assert list(corpus.paragraphs(documents)) == []


def test_the_tables_figures_are_the_reports(first_run: FirstRun) -> None:
    output, rows, printed = first_run
    report = json.loads((output / "student" / "wid_report.json").read_text())
    for label, name in (("parameters", "total"), ("encoder parameters", "encoder"), ("bytes of weights", "bytes")):
        row = next(row for row in rows if row.label == label)
        assert row.values == {model: report["sizes"][model][name] for model in ("teacher", "student")}
    for label, name in (("cosine correlation", "cosine_correlation"), ("top-1", "top1_agreement")):
        row = next(row for row in rows if row.label.startswith(label))
        assert row.values == {model: report["scores"][model][name] for model in ("teacher", "start", "student")}
    for row in rows:
        line = next(line for line in printed.splitlines() if f" {row.label} " in line)
        assert all(row.text(column) in line for column in row.values)
    assert report["sizes"]["student"]["bytes"] == sum(
        tensor.nbytes for tensor in load_file(output / "student" / "model.safetensors").values()
    )


def test_latency_is_measured_for_both(first_run: FirstRun) -> None:
    row = next(row for row in first_run[1] if row.label == "ms for 6 texts, CPU")
    assert row.values.keys() == {"teacher", "student"}
    assert all(0 < milliseconds < 10_000 for milliseconds in row.values.values())


def test_held_out_texts_are_not_trained_on(first_run: FirstRun) -> None:
    for name, texts in (("held_out", TEXTS[:6]), ("train", TEXTS[6:])):
        lines = (first_run[0] / "corpus" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == texts


def test_the_picture_is_a_png_of_sensible_size(first_run: FirstRun) -> None:
    data = (first_run[0] / "before_after.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1200, 700)
    assert len(data) > 10_000


def test_the_proof_passes_and_says_that_the_import_failed(first_run: FirstRun) -> None:
    assert "import of wid_hf halted; None in sys.modules" in first_run[2]
    assert "loaded the student as a stock BertModel" in first_run[2]


def test_nothing_unfinished_is_left_in_the_folder(first_run: FirstRun) -> None:
    assert {path.name for path in first_run[0].iterdir()} == {"corpus", "student", "before_after.png"}


@pytest.mark.slow
def test_the_proof_fails_for_changed_weights(student: Path) -> None:
    expected = demo.embed_sentence(AutoModel.from_pretrained(student), AutoTokenizer.from_pretrained(student))
    weights = load_file(student / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"] *= 2
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WidError, match="gives another vector than with it"):
        demo.prove_without_wid(student, expected)


@pytest.mark.slow
def test_the_proof_fails_for_a_student_that_stock_transformers_does_not_know(student: Path) -> None:
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"model_type": "wid"}))
    with pytest.raises(WidError, match=r"does not load: ValueError: .*`wid`"):
        demo.prove_without_wid(student, torch.zeros(CONFIG.hidden_size))


def test_a_second_run_uses_corpus_and_student_again(
    teacher: Path, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows, _ = first_run
    weights = output / "student" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    monkeypatch.setattr(demo, "compress", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(demo, "prove_without_wid", lambda *args: "proved")  # it takes seconds, and passed before
    again, printed = demonstrate(teacher, output, texts=lambda: pytest.fail("gathered again"))
    assert weights.stat().st_mtime_ns == written
    assert "was trained with these settings and is used again" in printed
    assert [row for row in again if "ms" not in row.label] == [row for row in rows if "ms" not in row.label]


@pytest.mark.parametrize(("retrain", "steps"), [(True, SETTINGS.steps), (False, SETTINGS.steps + 1)])
def test_retrain_and_other_settings_train_again(
    teacher: Path, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, retrain: bool, steps: int
) -> None:
    trained = []
    monkeypatch.setattr(demo, "compress", lambda *args, **kwargs: trained.append(args[4].steps))
    folder, console = first_run[0], Console(file=io.StringIO())
    settings = replace(SETTINGS, steps=steps, validation=str(folder / "corpus" / "held_out.jsonl"))
    train, student = folder / "corpus" / "train.jsonl", folder / "student"
    report = demo.train_student(teacher, train, student, CONFIG, settings, retrain, console)
    assert report["steps"] == SETTINGS.steps
    assert trained == [steps]


def test_an_interrupted_corpus_leaves_nothing(tmp_path: Path) -> None:
    unwritable = [*TEXTS, object()]  # the second file fails when the first is written
    with pytest.raises(TypeError, match="not JSON serializable"):
        demo.write_corpus(tmp_path / "corpus", lambda: unwritable, 2, Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == []
