"""From a teacher's name to a student's folder, and everything that must be refused on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from forked import forked
from toys import save_teacher, word_tokenizer, write_texts
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from wid_hf import (
    CalibrationConfig,
    ConfigError,
    DataError,
    OutputError,
    PlanError,
    TeacherError,
    TrainingError,
    WidConfig,
    WidModel,
    WidSchedule,
)
from wid_hf.adapter.fingerprint import weights_fingerprint
from wid_hf.coupling.trace import named_weights
from wid_hf.errors import Stopped, WidWarning
from wid_hf.hub.own_files import why_not_ours
from wid_hf.objectives import find_objective
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.reports.wid_report import Report
from wid_hf.training.student_trainer import StudentTrainer

HALF = WidConfig(hidden_size=12, intermediate_size=24, selection="variance", init="identity")
FEWER = replace(HALF, num_hidden_layers=1, vocabulary="corpus")
CALIBRATED = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=CalibrationConfig(40, 16))
QUICK = CompressSettings(steps=3, batch_size=8, max_length=12, validation_texts=16, train_weights="compactors")
UNTRAINED = replace(QUICK, steps=0)


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "train.txt")


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_masked_language_model_becomes_a_folder_that_stock_classes_load(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    output = tmp_path / "student"
    report = compress(str(masked_teacher), str(train_file), output, HALF, QUICK)
    student = AutoModelForMaskedLM.from_pretrained(output)
    assert type(student) is BertForMaskedLM
    assert (student.config.hidden_size, student.config.intermediate_size) == (12, 24)
    assert AutoTokenizer.from_pretrained(output)("one two")["input_ids"] == [2, 5, 6, 3]
    written = json.loads((output / "wid_report.json").read_text())
    assert written["objective"] == "masked-lm"
    assert written["steps"] == report.steps == 3
    assert written["sizes"]["student"]["total"] == sum(p.numel() for p in student.parameters())
    assert written["sizes"]["student"]["bytes"] == sum(
        t.numel() * t.element_size() for t in named_weights(student).values()
    )
    assert set(written["scores"]) == {"teacher", "start", "student"}
    assert written["scores"]["student"]["masked_lm_loss"] > 0
    assert 3 * 3 * 8 <= written["tokens"] <= 3 * 12 * 8  # steps x tokens per text x texts, padding not counted
    assert written["seconds"] > 0
    assert [step for step, _ in written["losses"]] == [1, 2, 3]
    assert written["versions"]["torch"] == torch.__version__
    assert written["fingerprints"] == {
        "teacher": weights_fingerprint(AutoModelForMaskedLM.from_pretrained(masked_teacher)),
        "student": weights_fingerprint(student),
    }
    assert set(written["latency"]["seconds"]) == {"teacher", "student"}
    assert min(written["latency"]["seconds"].values()) > 0
    assert written["latency"]["batch"][0] == 8 and 5 <= written["latency"]["batch"][1] <= 12
    assert written["command"] is None
    assert entries(tmp_path) == {"teacher", "student", "train.txt"}


@pytest.mark.slow
def test_a_progressive_run_reports_its_widths_and_draws_them(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    schedule = WidSchedule(mask_interval=1, mask_increments=4, decay_to_zero_steps=2)
    config = WidConfig(hidden_size=12, intermediate_size=24, schedule=schedule)
    output = tmp_path / "student"
    compress(str(masked_teacher), str(train_file), output, config, replace(QUICK, steps=8))
    written = json.loads((output / "wid_report.json").read_text())
    stream = written["widths"]["bert.embeddings.word_embeddings.weight[1]"]
    assert dict(map(tuple, stream)) == {1: 21, 2: 18, 3: 15, 4: 12, 5: 12, 6: 12, 7: 12, 8: 12}
    assert written["narrow_from"] == 6
    assert [step for step, _ in written["losses"]] == list(range(1, 9))
    assert written["schedule"] == asdict(schedule)
    assert (output / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert AutoModelForMaskedLM.from_pretrained(output).config.hidden_size == 12


def test_a_schedule_that_does_not_end_within_the_steps_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, schedule=WidSchedule.paper())
    with pytest.raises(ConfigError, match=r"ends at step 16000 .* only 3"):
        compress("nowhere", "nothing", tmp_path / "student", config, QUICK)
    with pytest.raises(ConfigError, match=r"training has only 0"):
        compress("nowhere", "nothing", tmp_path / "student", config, UNTRAINED)


@pytest.mark.slow
def test_the_student_loads_where_wid_hf_cannot_be_imported(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    output = tmp_path / "student"
    compress(str(masked_teacher), str(train_file), output, HALF, QUICK)
    script = (
        "import sys; sys.modules['wid_hf'] = None\n"
        "import torch; from transformers import AutoModelForMaskedLM\n"
        f"model = AutoModelForMaskedLM.from_pretrained({str(output)!r}).eval()\n"
        "print(model(torch.tensor([[2, 5, 6, 3]])).logits.double().sum().item())\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    here = AutoModelForMaskedLM.from_pretrained(output).eval()(torch.tensor([[2, 5, 6, 3]])).logits.double().sum()
    assert float(told) == pytest.approx(here.item(), abs=1e-6)


def test_a_headless_encoder_follows_its_own_originals(tmp_path: Path, train_file: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", BertModel)
    report = compress(str(teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    assert report.objective == "features"
    assert report.scores["teacher"] == {"cosine_correlation": pytest.approx(1.0), "top1_agreement": 1.0}
    assert -1 <= report.scores["student"]["cosine_correlation"] < 1
    assert type(AutoModel.from_pretrained(tmp_path / "student")) is BertModel


@pytest.mark.slow
def test_the_same_seed_gives_the_same_student(tmp_path: Path, masked_teacher: Path, train_file: Path) -> None:
    for name in ("a", "b"):
        compress(str(masked_teacher), str(train_file), tmp_path / name, HALF, QUICK)
    a, b = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_no_steps_leave_the_student_at_its_start(tmp_path: Path, masked_teacher: Path, train_file: Path) -> None:
    report = compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED)
    assert report.scores["student"] == report.scores["start"]
    assert (report.steps, report.tokens, report.seconds) == (0, 0, 0.0)
    assert report.calibration is None
    # An identity start only selects rows and columns: every entry of the student is one of the teacher's.
    teacher, student = (
        AutoModelForMaskedLM.from_pretrained(f).bert.embeddings.word_embeddings.weight
        for f in (masked_teacher, tmp_path / "student")
    )
    assert all((teacher == column[:, None]).all(0).any() for column in student.T)
    assert not (tmp_path / "student" / "calibration.png").exists()


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_a_calibrated_start_is_the_default_and_told_in_report_and_picture(
    tmp_path: Path, train_file: Path, model_class: type[PreTrainedModel]
) -> None:
    teacher = save_teacher(tmp_path / "teacher", model_class)
    report = compress(str(teacher), str(train_file), tmp_path / "student", CALIBRATED, UNTRAINED)
    written = json.loads((tmp_path / "student" / "wid_report.json").read_text())
    sites = written["calibration"]["sites"]
    assert written["start"] == "calibrated, pivots"
    assert sites[0]["weight"].endswith("encoder.layer.0.attention.self.query.weight")
    # Six in each of two layers, and the pooler, or the head's transform and its tied table.
    assert len(sites) == 12 + (1 if model_class is BertModel else 2)
    assert all(site["after"] < site["before"] for site in sites)
    assert report.calibration is not None and written["calibration"]["seconds"] == report.calibration.seconds > 0
    # 40 of the 64 texts that are not held out, each of 5 to 12 tokens
    assert 5 * 40 <= written["calibration"]["positions"] <= 12 * 40
    assert written["settings"]["calibration_samples"] == 40 and written["settings"]["ridge"] == 1e-4
    assert (tmp_path / "student" / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_calibrated_start_is_better_than_selection(tmp_path: Path, train_file: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", BertModel)
    selected = replace(CALIBRATED, init="identity")
    scores = {
        config.init: compress(str(teacher), str(train_file), tmp_path / config.init, config, UNTRAINED).scores[
            "student"
        ]
        for config in (CALIBRATED, selected)
    }
    assert scores["calibrated"]["cosine_correlation"] > scores["identity"]["cosine_correlation"]


def test_calibration_sees_texts_of_the_whole_file_masked_as_in_training(
    tmp_path: Path, masked_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "train.txt"  # sorted, as files of labelled texts often are
    train.write_text("one one one one one one\n" * 300 + "nine nine nine nine nine nine\n" * 300)
    seen: list[dict[str, torch.Tensor]] = []
    calibrate = WidModel.calibrate

    def watch(model: WidModel, batches: Iterable[dict[str, torch.Tensor]], **_: object) -> None:
        seen.extend(batches)
        calibrate(model, seen)

    monkeypatch.setattr(WidModel, "calibrate", watch)
    for steps in (0, 1):
        seen.clear()
        settings = replace(UNTRAINED, steps=steps)
        compress(str(masked_teacher), str(train), tmp_path / f"student{steps}", CALIBRATED, settings)
        ids = torch.cat([batch["input_ids"] for batch in seen])
        assert ids.shape == (40, 8) and len(seen[0]["input_ids"]) == 16
        assert (ids == 5).any(1).sum() > 5 and (ids == 13).any(1).sum() > 5
        assert 0.03 < (ids == 4).float().mean() < 0.3  # [MASK]


@pytest.mark.parametrize("content", ["\N{SNOWMAN} \N{SNOWMAN}\n" * 50, "uno dos tres\n" * 50])
def test_texts_that_do_not_tokenize_are_refused_before_any_work(
    tmp_path: Path, masked_teacher: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WidModel, "calibrate", lambda *_: pytest.fail("calibrated"))
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(DataError, match=r"The 40 texts contain only special or unknown tokens after tokenization"):
        compress(str(masked_teacher), str(tmp_path / "train.txt"), tmp_path / "student", CALIBRATED, UNTRAINED)
    assert entries(tmp_path) == {"teacher", "train.txt"}


def test_too_few_texts_for_the_students_width_are_refused(tmp_path: Path, masked_teacher: Path) -> None:
    train = write_texts(tmp_path / "train.txt", count=4)
    config = replace(CALIBRATED, calibration_config=CalibrationConfig(samples=2))
    with pytest.raises(DataError, match=r"widest layer input has 24 indices: at least 25 tokens .* Give more texts"):
        compress(str(masked_teacher), str(train), tmp_path / "student", config, UNTRAINED)
    assert entries(tmp_path) == {"teacher", "train.txt"}


@pytest.mark.slow
def test_a_reaction_bert_of_half_width_needs_no_training(
    tmp_path: Path, reaction_bert_dir: Path, uspto50k: Path
) -> None:
    config = WidConfig(hidden_size=128, intermediate_size=256)
    settings = CompressSettings(
        steps=0, column="rxn", validation=str(uspto50k / "valid.jsonl.gz"), validation_texts=256
    )
    train, output = str(uspto50k / "train.jsonl.gz"), tmp_path / "student"
    report = compress(str(reaction_bert_dir), train, output, config, settings)
    assert report.scores["student"]["masked_lm_accuracy"] > 0.86
    assert report.calibration is not None
    assert len(report.calibration.inputs) == 74  # 73 reads, and what the tied decoder reads


@pytest.mark.slow
def test_learning_rates_depend_on_the_start_unless_they_are_given(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    def rates(name: str, config: WidConfig, settings: CompressSettings) -> dict[str, float]:
        return compress(str(masked_teacher), str(train_file), tmp_path / name, config, settings).settings[
            "learning_rates"
        ]

    assert rates("a", HALF, UNTRAINED) == {"compactors": 3e-4, "teacher": 3e-4}
    assert rates("b", CALIBRATED, UNTRAINED) == {"compactors": 1e-4, "teacher": 3e-4}
    given = replace(UNTRAINED, teacher_learning_rate=0.0)
    assert rates("c", CALIBRATED, given) == {"compactors": 1e-4, "teacher": 0.0}


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (WidConfig(hidden_size=24, intermediate_size=48), ConfigError, "every size equals the teacher's"),
        (WidConfig(hidden_size=48), ConfigError, "wider than the teacher's 24"),
        (WidConfig(hidden_size=13, head_strategy="dim"), ConfigError, "4 heads; nearest legal: 12, 16"),
        (WidConfig(overrides={"vocab_size": 10}), PlanError, "15 cannot become 10, because it is looked up by number"),
    ],
)
def test_sizes_that_cannot_be_are_refused_and_nothing_is_written(
    tmp_path: Path, masked_teacher: Path, train_file: Path, config: WidConfig, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", config, QUICK)
    assert entries(tmp_path) == {"teacher", "train.txt"}


@pytest.mark.parametrize(
    ("content", "words"), [(None, "there is no file"), ("", "holds no row"), ("\0\1\2", "cannot be read")]
)
def test_training_texts_that_are_missing_empty_or_unreadable_are_refused(
    tmp_path: Path, masked_teacher: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "train.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=words):
        compress(str(masked_teacher), str(path), tmp_path / "student", HALF, QUICK)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(("task", "how"), [("auto", ", found from its class"), ("masked-lm", "")])
def test_what_the_teacher_is_taken_for_is_told_first_and_before_rows_are_read(
    tmp_path: Path, masked_teacher: Path, task: str, how: str
) -> None:
    told: list[str] = []
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError):
        settings = replace(QUICK, task=task)
        compress(
            str(masked_teacher), str(tmp_path / "empty.txt"), tmp_path / "student", HALF, settings, tell=told.append
        )
    assert told == [
        f"{masked_teacher}: a masked language model (task=masked-lm{how}). "
        "Method: WID; learning rates: compactors 0.0003, teacher 0.0003."
    ]


def test_a_stream_calibrates_trains_and_scores_without_being_read_to_its_end(
    tmp_path: Path, masked_teacher: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wid_hf.tools.training_data.SHUFFLED", 100)
    told: list[str] = []
    settings = replace(QUICK, streaming=True)
    report = compress(str(masked_teacher), "endless", tmp_path / "student", CALIBRATED, settings, tell=told.append)
    assert max(read) < 5000
    assert told[1:] == ["endless: text from 'text'. None of 1,016 rows read so far is left out."]
    written = json.loads((tmp_path / "student" / "wid_report.json").read_text())["rows"]["endless"]
    assert written == report.rows["endless"]
    assert written["read"] == max(read) + 1
    assert report.calibration is not None and report.calibration.positions > 100
    assert (report.steps, set(report.scores)) == (3, {"teacher", "start", "student"})
    assert report.settings["hub"]["dataset"] == "endless"


def test_a_stream_gives_the_student_of_the_same_rows_in_a_table(tmp_path: Path, masked_teacher: Path) -> None:
    """Calibrated on all rows that are not held out, which are the same ones: all rows are alike."""
    train = tmp_path / "train.txt"
    train.write_text("one two three four five six\n" * 50)
    students = []
    for streaming in (False, True):
        output = tmp_path / f"student{streaming}"
        compress(str(masked_teacher), str(train), output, HALF, replace(QUICK, streaming=streaming))
        students.append(AutoModelForMaskedLM.from_pretrained(output).state_dict())
    for name, tensor in students[0].items():
        torch.testing.assert_close(students[1][name], tensor)


@pytest.mark.parametrize(
    ("files", "settings", "words"),
    [
        ({"a.csv": "text\none", "b.jsonl": '{"text": "one"}'}, {}, "files of several kinds"),
        ({"a.csv": "head,tail\none,two"}, {}, "no column for text"),
        ({"a.csv": "head,tail\none,two"}, {"column": "rxn"}, "no column 'rxn' for text"),
        ({"a.csv": "text\none"}, {"column": "label=text"}, "names no role of this task"),
        ({"train.csv": "text\none"}, {"split": "test"}, r"no split 'test'\. Its splits: train"),
        ({"train.csv": "text\none\ntwo", "test.csv": "text\n"}, {"split": "test"}, "holds no row|cannot be read"),
        ({"a/1.png": "no image", "b/1.png": "none"}, {}, "no column for text"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, masked_teacher: Path, files: dict[str, str], settings: dict[str, Any], words: str
) -> None:
    for name, content in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(content)
    with pytest.raises(DataError, match=words):
        compress(str(masked_teacher), str(tmp_path / "data"), tmp_path / "student", HALF, replace(QUICK, **settings))
    assert entries(tmp_path) == {"teacher", "data"}


def test_several_files_train_and_an_output_may_not_hold_one_of_them(tmp_path: Path, masked_teacher: Path) -> None:
    train = [str(write_texts(tmp_path / name / "t.txt", 30, seed)) for seed, name in enumerate(("one", "two"))]
    report = compress(str(masked_teacher), train, tmp_path / "student", HALF, UNTRAINED)
    assert report.settings["train"] == train
    assert report.rows[", ".join(train)]["read"] == 60
    with pytest.raises(OutputError, match="holds the training rows"):
        compress(str(masked_teacher), train, tmp_path / "two", HALF, UNTRAINED, overwrite=True)


def test_a_missing_teacher_is_refused(tmp_path: Path, train_file: Path) -> None:
    with pytest.raises(TeacherError, match="There is no folder"):
        compress(str(tmp_path / "nowhere"), str(train_file), tmp_path / "student", HALF, QUICK)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, train_file: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match=r"has no config\.json"):
        compress(str(tmp_path / "empty"), str(train_file), tmp_path / "student", HALF, QUICK)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_weights_are_refused(tmp_path: Path, masked_teacher: Path, train_file: Path, keep: int) -> None:
    weights = masked_teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(TeacherError, match="cannot be loaded as BertForMaskedLM"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    assert entries(tmp_path) == {"teacher", "train.txt"}


def test_a_corrupt_config_is_refused(tmp_path: Path, masked_teacher: Path, train_file: Path) -> None:
    (masked_teacher / "config.json").write_text("{not json")
    with pytest.raises(TeacherError, match="that can be read"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path, train_file: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", BertModel)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(TeacherError, match=r"lacks \d+ weights of BertForMaskedLM"):
        compress(str(teacher), str(train_file), tmp_path / "student", HALF, QUICK)


def test_a_teacher_without_tokenizer_is_refused(tmp_path: Path, masked_teacher: Path, train_file: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (masked_teacher / name).unlink()
    with pytest.raises(TeacherError, match="no usable tokenizer"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)


def test_a_head_without_an_objective_is_refused(tmp_path: Path, train_file: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", BertForNextSentencePrediction)
    with pytest.raises(TeacherError, match="BertForNextSentencePrediction is none of these"):
        compress(str(teacher), str(train_file), tmp_path / "student", HALF, QUICK)


def test_a_task_that_the_teacher_cannot_do_is_refused(tmp_path: Path, masked_teacher: Path, train_file: Path) -> None:
    with pytest.raises(TeacherError, match=r"task=token-classification is for taggers .*fits task=masked-lm"):
        compress(
            str(masked_teacher),
            str(train_file),
            tmp_path / "student",
            HALF,
            replace(QUICK, task="token-classification"),
        )
    assert entries(tmp_path) == {"teacher", "train.txt"}


@pytest.mark.parametrize(
    ("kind", "objective", "figures"),
    [
        (BertForSequenceClassification, "sequence-classification", {"agreement": 1, "divergence": 0}),
        (
            BertForTokenClassification,
            "token-classification",
            {"agreement": 1, "agreement_on_rarer_classes": 1, "divergence": 0},
        ),
    ],
)
def test_classifiers_and_taggers_learn_from_texts_without_labels(
    tmp_path: Path, train_file: Path, kind: type[PreTrainedModel], objective: str, figures: dict[str, float]
) -> None:
    teacher = save_teacher(tmp_path / "teacher", kind)
    report = compress(str(teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    assert report.objective == objective
    assert report.scores["teacher"] == pytest.approx(figures, abs=1e-6)
    assert report.scores["student"]["divergence"] > 0
    assert report.settings["learning_rates"]["teacher"] == 0
    assert kind.from_pretrained(tmp_path / "student").config.hidden_size == 12


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForMaskedLM, BertModel])
def test_a_merged_student_trains_by_itself(tmp_path: Path, train_file: Path, kind: type[PreTrainedModel]) -> None:
    teacher = save_teacher(tmp_path / "teacher", kind)
    merged = replace(QUICK, train_weights="merged", learning_rate=1e-3)
    report = compress(str(teacher), str(train_file), tmp_path / "student", HALF, merged)
    assert (report.method, report.weights, report.settings["learning_rates"]) == (
        "wid-merged",
        "merged",
        {"student": 1e-3},
    )
    assert report.scores["student"] != report.scores["start"]
    assert "started as a linear function" in (tmp_path / "student" / "README.md").read_text()
    student = kind.from_pretrained(tmp_path / "student")
    assert weights_fingerprint(student) == report.fingerprints["student"]


def test_a_decoder_trains_on_its_own_loss(tmp_path: Path, train_file: Path) -> None:
    config = GPT2Config(vocab_size=15, n_positions=32, n_embd=24, n_layer=2, n_head=4, bos_token_id=3, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "teacher")
    word_tokenizer().save_pretrained(tmp_path / "teacher")
    sizes = WidConfig(hidden_size=12, init="identity")
    report = compress(str(tmp_path / "teacher"), str(train_file), tmp_path / "student", sizes, QUICK)
    assert report.objective == "causal-lm"
    assert report.scores["teacher"]["agreement"] == 1
    assert report.scores["student"].keys() == {"loss", "perplexity", "agreement"}
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert student.generate(torch.tensor([[2, 5]]), max_new_tokens=3, pad_token_id=0).shape == (1, 5)


@pytest.mark.slow
def test_a_diverged_run_writes_no_output_but_keeps_the_last_good_student(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    hot = CompressSettings(
        steps=20,
        batch_size=8,
        max_length=12,
        validation_texts=16,
        compactor_learning_rate=1e30,
        teacher_learning_rate=0,
    )
    with pytest.raises(TrainingError, match=r"The loss became .* after \d+ steps is in .*student-last-good"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, hot)
    assert entries(tmp_path) == {"teacher", "student-last-good", "train.txt"}
    kept = AutoModelForMaskedLM.from_pretrained(tmp_path / "student-last-good")
    assert all(torch.isfinite(p).all() for p in kept.parameters())


@pytest.mark.slow
def test_a_diverged_run_that_keeps_no_copy_says_so_and_saves_nothing(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    hot = replace(QUICK, steps=20, compactor_learning_rate=1e30, teacher_learning_rate=0, keep_last_good=None)
    with pytest.raises(TrainingError, match=r"No copy of better weights was kept.*not finite, so nothing was kept"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, hot)
    assert entries(tmp_path) == {"teacher", "train.txt"}


# Stops, failures and what is left of them.
LONG = replace(QUICK, steps=500)
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def stopping(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], after: int = 2) -> None:
    """Have something happen in the step after some steps of training."""
    step = StudentTrainer.training_step

    def training_step(self: StudentTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == after:
            action()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StudentTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))]
)
def test_a_signal_during_training_keeps_the_student_as_it_stands(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    stopping(monkeypatch, lambda: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"Stopped by {name}. .* after 3 steps is in .*student-last-good") as told:
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, LONG)
    assert told.value.signal == number and 128 + number == SIGNALS[name]
    assert signal.getsignal(number) == before
    assert entries(tmp_path) == {"teacher", "student-last-good", "student-work", "train.txt"}
    assert why_not_ours(tmp_path / "student-last-good") is None
    written = json.loads((tmp_path / "student-last-good" / "wid_report.json").read_text())
    assert written["steps"] == 3 and written["stopped"].startswith(f"Stopped by {name}")
    assert [step for step, _ in written["losses"]] == []  # logged every tenth step
    kept = AutoModelForMaskedLM.from_pretrained(tmp_path / "student-last-good")
    monkeypatch.undo()
    with pytest.raises(OutputError, match="student-last-good exists already and holds the last state"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED)
    compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED, overwrite=True)
    start = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert not torch.equal(kept.cls.predictions.bias, start.cls.predictions.bias)  # it has learned


def test_a_signal_while_a_progressive_student_is_wide_keeps_it_narrow(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = WidSchedule(mask_interval=100, mask_increments=2, decay_to_zero_steps=100)
    config = WidConfig(hidden_size=12, intermediate_size=24, schedule=schedule)
    stopping(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="student-last-good"), pytest.warns(UserWarning, match="."):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", config, LONG)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "student-last-good").config.hidden_size == 12


def test_an_error_during_training_keeps_the_student_and_stays_the_same_error(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("out of memory")

    stopping(monkeypatch, fail)
    told = pytest.warns(WidWarning, match=r"after 2 steps is in .*student-last-good")
    with told, pytest.raises(torch.OutOfMemoryError):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    report = json.loads((tmp_path / "student-last-good" / "wid_report.json").read_text())
    assert report["stopped"] == "out of memory (2 of 3 steps done)"


def test_an_error_in_the_first_step_keeps_nothing(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a batch that does not fit")

    stopping(monkeypatch, fail, after=0)
    with pytest.warns(WidWarning, match="No step was done"), pytest.raises(RuntimeError, match="does not fit"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    assert entries(tmp_path) == {"teacher", "train.txt"}


@pytest.mark.parametrize(
    ("place", "words", "missing"),
    [
        ("wid_hf.tools.compress.student_card", "The model card could not be made: no card", "README.md"),
        ("wid_hf.tools.reports.wid_report.draw", "The pictures could not be made: no card", "calibration.png"),
        ("wid_hf.tools.compression.latency", "The student's scores could not be made", None),
    ],
)
def test_what_goes_wrong_after_training_costs_a_warning_and_not_the_student(
    tmp_path: Path,
    masked_teacher: Path,
    train_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    words: str,
    missing: str | None,
) -> None:
    calls = []

    def fail(*_: object, **__: object) -> float:
        calls.append(1)
        if "latency" in place and len(calls) == 1:  # the teacher's
            return 1.0
        raise RuntimeError("no card")

    monkeypatch.setattr(place, fail)
    with pytest.warns(WidWarning, match=words):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", CALIBRATED, UNTRAINED)
    expected = {"README.md", "calibration.png", "config.json", "model.safetensors", "tokenizer.json"} - {missing}
    assert expected <= entries(tmp_path / "student") and missing not in entries(tmp_path / "student")
    assert why_not_ours(tmp_path / "student") is None
    AutoModelForMaskedLM.from_pretrained(tmp_path / "student")


def test_a_signal_after_training_ends_scoring_and_the_student_takes_its_place(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def late(*_: object, **__: object) -> float:
        calls.append(1)
        if len(calls) == 2:  # of the student
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    monkeypatch.setattr("wid_hf.tools.compression.latency", late)
    with pytest.raises(Stopped, match=r"Training had ended: the student is complete, in .*student\."):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    assert entries(tmp_path) == {"teacher", "student", "train.txt"}
    assert json.loads((tmp_path / "student" / "wid_report.json").read_text())["steps"] == 3


def test_a_signal_before_training_leaves_nothing(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WidModel, "calibrate", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="Nothing was written"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", CALIBRATED, QUICK)
    assert entries(tmp_path) == {"teacher", "train.txt"}


def die(*_: object, **__: object) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


@pytest.mark.slow
def test_a_run_killed_in_training_is_cleared_away_by_the_next_one(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, die)
        work = partial(compress, str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
        assert forked(work) == -signal.SIGKILL
    (left,) = entries(tmp_path) - {"teacher", "student-work", "train.txt"}
    assert left.startswith(".student.wid-hf-")
    compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED, overwrite=True)
    assert entries(tmp_path) == {"teacher", "student", "train.txt"}


def test_a_student_whose_run_was_killed_after_training_is_brought_to_its_place_by_the_next_one(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Report, "draw", die)
        work = partial(compress, str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
        assert forked(work) == -signal.SIGKILL
    assert "student" not in entries(tmp_path)
    told = pytest.warns(WidWarning, match=r"A run that was killed had finished: its result is in .*student\.")
    with told, pytest.raises(OutputError, match="exists already"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    assert entries(tmp_path) == {"teacher", "student", "train.txt"}
    assert json.loads((tmp_path / "student" / "wid_report.json").read_text())["steps"] == 3
    assert why_not_ours(tmp_path / "student") is None
    AutoModelForMaskedLM.from_pretrained(tmp_path / "student")


SAVING = CompressSettings(
    steps=9,
    batch_size=4,
    max_length=12,
    validation_texts=8,
    dropout=True,
    training={"save_steps": 4, "logging_steps": 1},
)


def stop_here(*_: object, **__: object) -> None:
    raise AssertionError("this was done already")


@pytest.mark.parametrize(
    ("config", "killed_after"),
    [(HALF, 2), (HALF, 6), pytest.param(CALIBRATED, 6, marks=pytest.mark.slow)],
    ids=["before a checkpoint", "after one", "of a reconstruction"],
)
def test_a_killed_run_goes_on_from_its_start_or_its_last_checkpoint_and_ends_the_same(
    tmp_path: Path,
    masked_teacher: Path,
    train_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: WidConfig,
    killed_after: int,
) -> None:
    run = partial(compress, str(masked_teacher), str(train_file), config=config, settings=SAVING)
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping(patch, die, after=killed_after)
        assert forked(partial(run, tmp_path / "student")) == -signal.SIGKILL
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(WidModel, "calibrate", stop_here)
        step = StudentTrainer.training_step
        patch.setattr(
            StudentTrainer,
            "training_step",
            lambda self, *given, **named: (done.append(self.state.global_step), step(self, *given, **named))[1],
        )
        resumed = run(tmp_path / "student", resume=True)
    assert done == list(range(4 if killed_after > 4 else 0, 9))
    assert resumed.losses == whole.losses and len(whole.losses) == 9
    assert resumed.scores == whole.scores and resumed.tokens == whole.tokens
    assert getattr(resumed.calibration, "inputs", None) == getattr(whole.calibration, "inputs", None)
    assert resumed.fingerprints == whole.fingerprints  # of the weights
    assert entries(tmp_path) == {"teacher", "train.txt", "whole", "student"}
    assert entries(tmp_path / "student") == entries(tmp_path / "whole")


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (HALF, {"train_weights": "merged"}),
        (HALF, {"streaming": True, "batch_size": 16}),
        (FEWER, {"train_weights": "merged"}),
        (FEWER, {}),
    ],
    ids=["merged", "stream of two epochs", "merged with fewer layers and tokens", "fewer layers and tokens"],
)
def test_the_training_of_a_merged_student_or_on_a_stream_goes_on(
    tmp_path: Path,
    masked_teacher: Path,
    train_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: WidConfig,
    more: dict[str, Any],
) -> None:
    settings = replace(SAVING, **more)
    run = partial(compress, str(masked_teacher), str(train_file), config=config, settings=settings)
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping(patch, die, after=6)
        assert forked(partial(run, tmp_path / "student")) == -signal.SIGKILL
    monkeypatch.setattr(WidModel, "calibrate", stop_here)
    resumed = run(tmp_path / "student", resume=True)
    assert resumed.losses == whole.losses and resumed.fingerprints == whole.fingerprints


def test_a_stopped_run_loses_nothing_and_its_last_state_goes_when_it_is_done(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(compress, str(masked_teacher), str(train_file), config=HALF, settings=SAVING)
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping(patch, lambda: signal.raise_signal(signal.SIGTERM), after=5)
        with pytest.raises(Stopped, match=r"after 6 steps is in .*student-last-good\. Pass resume=True to go on"):
            run(tmp_path / "student")
    assert entries(tmp_path / "student-work") == {"checkpoint-6", "lock", "start", "wid_run.json"}
    with pytest.raises(OutputError, match="Pass resume=True to go on from there"):
        run(tmp_path / "student")
    resumed = run(tmp_path / "student", resume=True)
    assert resumed.losses == whole.losses and resumed.fingerprints == whole.fingerprints
    assert resumed.seconds > 0
    assert entries(tmp_path) == {"teacher", "train.txt", "whole", "student"}


def test_a_run_with_other_settings_cannot_go_on(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(compress, str(masked_teacher), str(train_file), tmp_path / "student", HALF)
    with monkeypatch.context() as patch:
        stopping(patch, die)
        assert forked(partial(run, SAVING)) == -signal.SIGKILL
    kept = (tmp_path / "student-work" / "wid_run.json").read_text()
    with pytest.raises(OutputError, match=r"holds a run that was stopped\. Pass resume=True to continue it"):
        run(SAVING)
    other = replace(SAVING, batch_size=8, training=dict(SAVING.training) | {"max_grad_norm": 2.0})
    with pytest.raises(OutputError, match="cannot be resumed: ") as told:
        run(other, resume=True)
    assert "settings.batch_size: 4 there, 8 here" in str(told.value)
    assert "settings.training.max_grad_norm: None there, 2.0 here" in str(told.value)
    assert (tmp_path / "student-work" / "wid_run.json").read_text() == kept
    report = run(other, overwrite=True)
    assert report.settings["batch_size"] == 8 and entries(tmp_path) == {"teacher", "train.txt", "student"}


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_a_run_whose_rows_were_changed_cannot_go_on(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    settings = replace(SAVING, streaming=streaming)
    run = partial(compress, str(masked_teacher), str(train_file), tmp_path / "student", HALF, settings)
    with monkeypatch.context() as patch:
        stopping(patch, die)
        assert forked(run) == -signal.SIGKILL
    first, *others = lines = train_file.read_text().splitlines()
    train_file.write_text("\n".join([f"{first} one", *others]) + "\n")
    with pytest.raises(OutputError, match=r"the content of .*train\.txt: \w{16} there, \w{16} here\. Repeat"):
        run(resume=True)
    train_file.write_text("\n".join(lines) + "\n")  # another time of writing
    assert run(resume=True).steps == SAVING.steps


def test_a_run_to_resume_that_never_began_begins(tmp_path: Path, masked_teacher: Path, train_file: Path) -> None:
    with pytest.warns(WidWarning, match=r"There is no folder .*student-work to resume from: this run begins anew"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED, resume=True)
    assert entries(tmp_path) == {"teacher", "train.txt", "student"}


def test_our_own_student_is_replaced_when_asked_and_nothing_else_ever(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    output = tmp_path / "student"

    def again(settings: CompressSettings, overwrite: bool) -> None:
        compress(str(masked_teacher), str(train_file), output, HALF, settings, overwrite=overwrite)

    again(UNTRAINED, overwrite=False)
    old = (output / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"exists already and holds an earlier result.*overwrite=True"):
        again(QUICK, overwrite=False)
    assert (output / "model.safetensors").read_bytes() == old
    again(QUICK, overwrite=True)
    new = (output / "model.safetensors").read_bytes()
    assert new != old and entries(tmp_path) == {"teacher", "student", "train.txt"}
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"changed since \(notes\.txt\)"):
        again(QUICK, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine" and (output / "model.safetensors").read_bytes() == new


def test_a_disk_that_is_too_small_is_refused_before_training(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="has 1,000 bytes left, and the student needs"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)


def test_the_home_folder_is_expanded_in_every_path(
    tmp_path: Path, masked_teacher: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = replace(UNTRAINED, validation="~/train.txt")
    report = compress("~/teacher", "~/train.txt", "~/student", HALF, settings)
    assert (tmp_path / "student" / "config.json").exists() and report.teacher == str(masked_teacher)
    assert report.settings["hub"] == {"teacher": None, "revision": None, "dataset": None}


# Teachers.
def test_texts_are_cut_to_the_positions_of_the_teacher_with_a_word(tmp_path: Path, masked_teacher: Path) -> None:
    (tmp_path / "train.txt").write_text(("one two three four five " * 20 + "\n") * 40)
    with pytest.warns(WidWarning, match=r"max_length=64 is more than BertForMaskedLM has positions for: .* after 32"):
        report = compress(
            str(masked_teacher),
            str(tmp_path / "train.txt"),
            tmp_path / "student",
            HALF,
            replace(QUICK, max_length=64),
        )
    assert report.settings["max_length"] == 32 and report.tokens == 3 * 8 * 32


@pytest.mark.parametrize("family", ["Bart", "MBart", "Mvp"])
def test_an_encoder_decoder_is_no_masked_language_model(family: str) -> None:
    """Their classes are in transformers' mapping of masked language models as well."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=15,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=32,
    )
    teacher = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    assert find_objective(teacher).name == "seq2seq"
    with pytest.raises(TeacherError, match=r"task=masked-lm is for .*It fits task=seq2seq"):
        find_objective(teacher, "masked-lm")


def test_a_decoder_under_a_masked_head_is_no_masked_language_model(masked_teacher: Path, train_file: Path) -> None:
    model = BertForMaskedLM.from_pretrained(masked_teacher, is_decoder=True)
    model.save_pretrained(masked_teacher)
    with pytest.raises(TeacherError, match="reads from left to right"):
        compress(str(masked_teacher), str(train_file), masked_teacher.parent / "student", HALF, QUICK)


def test_a_model_without_a_processor_of_its_inputs_is_refused(tmp_path: Path, train_file: Path) -> None:
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=16)
    ViTModel(config).save_pretrained(tmp_path / "teacher")
    with pytest.raises(TeacherError, match="has no usable processor of images"):
        compress(str(tmp_path / "teacher"), str(train_file), tmp_path / "student", HALF, QUICK)


def test_the_tokenizer_files_of_the_student_are_those_of_the_teacher(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    for name, content in {
        "special_tokens_map.json": '{ "pad_token":"[PAD]" }',
        "tokenizer.model": "pieces",
        "chat_template.jinja": "{{ messages }}",
    }.items():
        (masked_teacher / name).write_text(content)
    config = json.loads((masked_teacher / "tokenizer_config.json").read_text()) | {"mine": 1}
    (masked_teacher / "tokenizer_config.json").write_text(json.dumps(config))
    compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, QUICK)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "chat_template.jinja",
    ):
        assert (tmp_path / "student" / name).read_bytes() == (masked_teacher / name).read_bytes()


@pytest.mark.parametrize(
    "numbers",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"max_length": 0},
        {"validation_texts": 0},
        {"compactor_learning_rate": -1.0},
        {"teacher_learning_rate": float("nan")},
    ],
)
def test_numbers_that_mean_nothing_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(numbers))}=.* is too small"):
        CompressSettings(**numbers)
