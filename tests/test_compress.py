"""From a teacher's name to a student's folder, and everything that must be refused on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from toys import save_teacher, write_texts
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from wid_hf import (
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
from wid_hf.compress import CompressSettings, compress, whole_folder
from wid_hf.coupling.trace import named_weights

HALF = WidConfig(hidden_size=12, intermediate_size=24, selection="variance", init="identity")
CALIBRATED = WidConfig(hidden_size=12, intermediate_size=24, calibration_samples=40, calibration_batch_size=16)
QUICK = CompressSettings(steps=3, batch_size=8, max_length=12, validation_texts=16)
UNTRAINED = replace(QUICK, steps=0)


@pytest.fixture
def masked_teacher(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "teacher", BertForMaskedLM)


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
        compress("nowhere", "nothing.txt", tmp_path / "student", config, QUICK)
    with pytest.raises(ConfigError, match=r"training has only 0"):
        compress("nowhere", "nothing.txt", tmp_path / "student", config, UNTRAINED)


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
    assert report.objective == "following"
    assert report.scores["teacher"] == {"cosine_correlation": pytest.approx(1.0), "top1_agreement": 1.0}
    assert -1 <= report.scores["student"]["cosine_correlation"] < 1
    assert type(AutoModel.from_pretrained(tmp_path / "student")) is BertModel


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
    assert written["settings"]["calibration_samples"] == 40 and written["settings"]["ridge"] == CALIBRATED.ridge
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

    def watch(model: WidModel, batches: Iterable[dict[str, torch.Tensor]]) -> None:
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
    with pytest.raises(DataError, match=r"the 40 texts do not tokenize: .* special and unknown tokens"):
        compress(str(masked_teacher), str(tmp_path / "train.txt"), tmp_path / "student", CALIBRATED, UNTRAINED)
    assert entries(tmp_path) == {"teacher", "train.txt"}


def test_too_few_texts_for_the_students_width_are_refused(tmp_path: Path, masked_teacher: Path) -> None:
    train = write_texts(tmp_path / "train.txt", count=4)
    with pytest.raises(DataError, match=r"widest layer input has 24 indices: at least 25 tokens .* Give more texts"):
        compress(str(masked_teacher), str(train), tmp_path / "student", replace(CALIBRATED, calibration_samples=2),
                 UNTRAINED)  # fmt: skip
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
    assert len(report.calibration.sites) == 74  # 73 reads, and what the tied decoder reads


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
    ("content", "words"), [(None, "there is no file"), ("", "holds no text"), ("\0\1\2", "cannot be read")]
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
    teacher = save_teacher(tmp_path / "teacher", BertForSequenceClassification)
    with pytest.raises(TeacherError, match="BertForSequenceClassification is neither"):
        compress(str(teacher), str(train_file), tmp_path / "student", HALF, QUICK)


def test_an_output_that_exists_is_refused_before_work_and_replaced_when_asked(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    output = tmp_path / "student"
    output.mkdir()
    (output / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="exists already"):
        compress("no-such/teacher", "no-such-file", output, HALF, QUICK)
    assert (output / "mine.txt").read_text() == "keep me"
    compress(str(masked_teacher), str(train_file), output, HALF, QUICK, overwrite=True)
    assert "mine.txt" not in entries(output)
    assert "model.safetensors" in entries(output)
    assert entries(tmp_path) == {"teacher", "student", "train.txt"}


def test_a_folder_that_fails_half_way_leaves_the_old_one_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")

    def write_half() -> None:
        with whole_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "new.txt").write_text("new")
            raise KeyboardInterrupt("the user lost patience")

    with pytest.raises(KeyboardInterrupt, match="patience"):
        write_half()
    assert entries(tmp_path) == {"out"}
    assert entries(tmp_path / "out") == {"old.txt"}


def test_a_diverged_run_writes_no_output_but_keeps_the_last_good_student(
    tmp_path: Path, masked_teacher: Path, train_file: Path
) -> None:
    hot = CompressSettings(
        steps=20, batch_size=8, max_length=12, validation_texts=16,
        compactor_learning_rate=1e30, teacher_learning_rate=0,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"The loss became .* student at those weights is in .*student-last-good"):
        compress(str(masked_teacher), str(train_file), tmp_path / "student", HALF, hot)
    assert entries(tmp_path) == {"teacher", "student-last-good", "train.txt"}
    kept = AutoModelForMaskedLM.from_pretrained(tmp_path / "student-last-good")
    assert all(torch.isfinite(p).all() for p in kept.parameters())
