"""Every method that benchmarks compare: a stock student of one shape, of one budget, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHODS
from toys import save_teacher, write_texts
from transformers import AutoModel, AutoModelForMaskedLM, BertForMaskedLM, BertModel, PreTrainedModel

from wid_hf import CalibrationConfig, ConfigError, StudentTrainer, TeacherError, TrainingError, WidConfig, WidSchedule
from wid_hf.tools.compress import CompressSettings
from wid_hf.tools.reports.wid_report import Report
from wid_hf.tools.teachers import load_teacher

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

SIZES: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 24}
CONFIG = WidConfig(**SIZES, calibration_config=CalibrationConfig(samples=40))
QUICK = CompressSettings(steps=30, batch_size=16, max_length=12, validation_texts=32)
# A schedule whose shares of 30 steps come to an end; the paper's shares are of many more.
SOON = WidSchedule(mask_interval=1, mask_increments=4, decay_to_zero_steps=2)
RATES = {
    True: {"compactor_learning_rate": 1e-2, "teacher_learning_rate": 1e-2},
    False: {"learning_rate": 1e-2},
}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "encoder", BertModel)


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "train.txt", count=160)


def made(
    name: str,
    teacher: Path,
    train_file: Path,
    output: Path,
    config: WidConfig = CONFIG,
    rate: float | None = None,
    **given: Any,
) -> Report:
    """A student with the settings `given`, by default learning rates."""
    settings = replace(QUICK, **given)
    return METHODS[name].compress(str(teacher), str(train_file), output, config, settings, rate)


def run(
    name: str,
    teacher: Path,
    train_file: Path,
    output: Path,
    *,
    head_strategy: str = "dim",
    headless: bool = False,
    **given: Any,
) -> Report:
    """A student that learns fast."""
    method = METHODS[name]
    schedule = {"schedule": SOON} if name == "wid-progressive" else {}
    config = WidConfig(
        **SIZES, calibration_config=CalibrationConfig(samples=40), head_strategy=head_strategy, **schedule
    )
    rates: dict[str, Any] = dict(RATES[method.folds])
    if method.folds and (method.losses or headless):
        rates["teacher_learning_rate"] = 0.0
    return made(name, teacher, train_file, output, config, rates.pop("learning_rate", None), **rates, **given)


@pytest.mark.parametrize("strategy", ["dim", "head"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_the_loss_of_a_stock_student(
    name: str, strategy: str, masked_teacher: Path, train_file: Path, tmp_path: Path
) -> None:
    report = run(name, masked_teacher, train_file, tmp_path / "student", head_strategy=strategy)
    assert report.method == name
    loss = "masked_lm_loss"
    assert report.scores["student"][loss] < report.scores["start"][loss]
    first, last = (sum(value for _, value in part) for part in (report.losses[:5], report.losses[-5:]))
    assert last < first
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert type(student) is BertForMaskedLM
    config = student.config
    assert (config.hidden_size, config.intermediate_size) == (12, 24)
    assert config.num_attention_heads == (4 if strategy == "dim" else 2)
    told = json.loads((tmp_path / "student" / "wid_report.json").read_text())
    assert told["method"] == name and told["settings"]["method"] == name
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"**Method**: {METHODS[name].title}\n" in card
    assert ("every weight is a linear function of the teacher's" in card) is METHODS[name].folds


def test_all_methods_see_the_same_batches_and_make_the_same_shape(
    masked_teacher: Path, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    before = StudentTrainer.training_step

    def watch(trainer: StudentTrainer, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        seen.append({name: tensor.clone() for name, tensor in inputs.items()})
        return before(trainer, model, inputs, *rest)

    monkeypatch.setattr(StudentTrainer, "training_step", watch)
    budgets, shapes, batches = {}, {}, {}
    for name in METHODS:
        seen.clear()
        report = run(name, masked_teacher, train_file, tmp_path / name, steps=12)
        budgets[name] = (report.steps, report.tokens)
        batches[name] = list(seen)
        student = AutoModelForMaskedLM.from_pretrained(tmp_path / name)
        shapes[name] = {key: tensor.shape for key, tensor in student.state_dict().items()}
    assert set(budgets.values()) == {budgets["wid"]} and budgets["wid"][0] == 12
    assert all(shape == shapes["wid"] for shape in shapes.values())
    for name, others in batches.items():
        assert len(others) == 12, name
        for mine, wanted in zip(others, batches["wid"], strict=True):  # masks too: input ids and labels
            assert mine.keys() == wanted.keys()
            assert all(torch.equal(mine[key], wanted[key]) for key in mine), name


def test_what_is_cut_is_the_teachers_and_what_is_random_is_not(
    masked_teacher: Path, train_file: Path, tmp_path: Path
) -> None:
    tables = {}
    for name in ("slice", "variance", "scratch"):
        made(name, masked_teacher, train_file, tmp_path / name, steps=0)
        tables[name] = AutoModelForMaskedLM.from_pretrained(tmp_path / name).bert.embeddings.word_embeddings.weight
    whole = AutoModelForMaskedLM.from_pretrained(masked_teacher).bert.embeddings.word_embeddings.weight
    assert torch.equal(tables["slice"], whole[:, :12])
    kept = [(whole == column[:, None]).all(0).nonzero().item() for column in tables["variance"].T]
    assert kept == sorted(kept) and kept != list(range(12))
    assert not any((whole == column[:, None]).all(0).any() for column in tables["scratch"].T)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.folds])
def test_the_same_seed_gives_the_same_student_and_another_seed_another(
    name: str, masked_teacher: Path, train_file: Path, tmp_path: Path
) -> None:
    weights = []
    for at, seed in enumerate((0, 0, 1)):
        run(name, masked_teacher, train_file, tmp_path / str(at), steps=3, seed=seed)
        weights.append(AutoModelForMaskedLM.from_pretrained(tmp_path / str(at)).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_a_baseline_loads_where_wid_hf_cannot_be_imported(
    masked_teacher: Path, train_file: Path, tmp_path: Path
) -> None:
    run("tinybert", masked_teacher, train_file, tmp_path / "student", steps=2)
    script = (
        "import sys; sys.modules['wid_hf'] = None\n"
        "from transformers import AutoModelForMaskedLM\n"
        f"model, info = AutoModelForMaskedLM.from_pretrained({str(tmp_path / 'student')!r}, output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "print(type(model).__name__)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "BertForMaskedLM"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.headless])
def test_a_headless_encoder_has_the_methods_that_apply(
    name: str, encoder: Path, train_file: Path, tmp_path: Path
) -> None:
    report = run(name, encoder, train_file, tmp_path / "student", headless=True)
    assert report.objective == "features"
    losses = [value for step, value in report.losses if step > (report.narrow_from or 0)]  # a wide one starts at 0
    assert len(losses) > 20 and sum(losses[-5:]) < sum(losses[:5])
    assert type(AutoModel.from_pretrained(tmp_path / "student")) is BertModel


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.headless])
def test_methods_that_need_logits_or_a_loss_are_refused_for_a_headless_encoder(
    name: str, encoder: Path, train_file: Path, tmp_path: Path
) -> None:
    told = {"wid-kd": "distillation=logits,hidden,relations adds to a training loss .* BertModel is a headless encoder"}
    own = rf"{name} needs logits .* BertModel is a headless .*apply: slice, variance"
    with pytest.raises(TeacherError, match=told.get(name, own)):
        run(name, encoder, train_file, tmp_path / "student", headless=True)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("slice", {"compactor_learning_rate": 1e-3}, "Give learning_rate= instead"),
        ("slice", {"teacher_learning_rate": 0.0}, "Give learning_rate= instead"),
        ("slice", {"distillation": ("logits",)}, "leave distillation= out"),
        ("wid", {"rate": 1e-3}, "Give compactor_learning_rate= and teacher_learning_rate="),
        ("wid-kd", {"teacher_learning_rate": 1e-3}, "pass teacher_learning_rate=0"),
        ("minilm", {"config": WidConfig(**SIZES, schedule=SOON)}, "leave the progressive schedule out"),
    ],
)
def test_settings_that_contradict_the_method_are_refused(
    name: str, given: dict[str, Any], words: str, masked_teacher: Path, train_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        made(name, masked_teacher, train_file, tmp_path / "student", **given)
    assert not (tmp_path / "student").exists()


def test_progressive_wid_has_a_schedule(
    masked_teacher: Path, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules = []
    monkeypatch.setattr("methods.compress", lambda *given, **_: schedules.append(given[3].schedule))
    for config in (CONFIG, WidConfig(**SIZES, schedule=SOON)):
        made("wid-progressive", masked_teacher, train_file, tmp_path / "student", config)
    assert schedules == [WidSchedule(), SOON]


def test_a_baseline_that_diverges_leaves_its_last_good_student(
    masked_teacher: Path, train_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"The loss became .*Lower learning_rate.*student-last-good"):
        made("scratch", masked_teacher, train_file, tmp_path / "student", rate=1e30)
    kept = AutoModelForMaskedLM.from_pretrained(tmp_path / "student-last-good")
    assert all(torch.isfinite(p).all() for p in kept.parameters())


def test_a_student_has_its_own_learning_rate(masked_teacher: Path, train_file: Path, tmp_path: Path) -> None:
    for name, rate, used in (("minilm", 0.002, 0.002), ("minilm", None, 1e-3), ("slice", None, 3e-4)):
        report = made(name, masked_teacher, train_file, tmp_path / f"{name}-{rate}", rate=rate, steps=2)
        assert report.settings["learning_rates"] == {"student": used}
    assert report.start == "identity, first"


def test_the_teacher_stays_as_it_was(
    masked_teacher: Path, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = AutoModelForMaskedLM.from_pretrained(masked_teacher).state_dict()
    made: list[PreTrainedModel] = []

    def load(name: str, **given: Any) -> PreTrainedModel:
        made.append(load_teacher(name, **given))
        return made[-1]

    monkeypatch.setattr("wid_hf.tools.compress.load_teacher", load)
    run("tinybert", masked_teacher, train_file, tmp_path / "a", steps=3)
    run("slice", masked_teacher, train_file, tmp_path / "b", steps=3)
    assert len(made) == 2
    for model in made:
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
