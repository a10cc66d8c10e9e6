"""Fields of `TrainingArguments` by name: their types, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from wid_hf import ConfigError, MissingExtraError
from wid_hf.tools import training_settings
from wid_hf.tools.training_settings import FIXED, SETTINGS, checked, parsed, stated
from wid_hf.training.arguments import WidTrainingArguments


def test_texts_become_values_of_the_fields_types() -> None:
    given = {
        "bf16": "true",
        "tf32": "no",
        "gradient_accumulation_steps": "4",
        "warmup_steps": "1e-1",
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "label_names": "labels",
        "distillation_temperature": "3",
        "full_logits": "1",
    }
    expected = given | {
        "bf16": True,
        "tf32": False,
        "gradient_accumulation_steps": 4,
        "warmup_steps": 0.1,
        "label_names": ["labels"],
        "distillation_temperature": 3.0,
        "full_logits": True,
    }
    assert parsed(given) == expected


def test_values_are_not_changed() -> None:
    given = {"bf16": True, "report_to": [], "lr_scheduler_kwargs": {"num_cycles": 2}, "run_name": None}
    assert parsed(given) == given


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bf16", "maybe", "bf16 cannot be 'maybe'"),
        ("gradient_accumulation_steps", "2.5", "invalid int value: '2.5'"),
        ("lr_scheduler_type", "cosin", "choose from 'linear', 'cosine'"),
        ("warmup_step", "3", "warmup_step is not a training argument, the nearest is warmup_steps"),
        ("seed", "3", "Pass seed= instead"),
        ("num_train_epochs", "3", "Pass steps= instead"),
        ("learning_rate", "1e-3", "Pass compactor_learning_rate= and teacher_learning_rate=, or learning_rate= with"),
        ("eval_strategy", "steps", "held-out rows are scored before and after"),
        ("hub_token", "secret", "pushed to the Hub when it is complete"),
        ("report_to", "tensorbord", "The nearest is tensorboard"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed({name: text})


def test_a_tracker_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_settings, "get_available_reporting_integrations", lambda: ["tensorboard"])
    assert parsed({"report_to": "tensorboard"}) == {"report_to": "tensorboard"}
    with pytest.raises(MissingExtraError, match=r"trackio is not installed here.* Run: pip install trackio"):
        parsed({"report_to": ["tensorboard", "trackio"]})


def test_names_that_are_refused_are_fields() -> None:
    assert {*SETTINGS, *FIXED} <= set(WidTrainingArguments.__dataclass_fields__)


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True}
    assert checked({**quiet, "max_grad_norm": 2.0}).max_grad_norm == 2.0
    with pytest.raises(ConfigError, match=r"contradict each other or this machine: .*bf16"):
        checked({**quiet, "bf16": True, "fp16": True})


def test_arguments_state_what_is_not_usual(tmp_path: Path) -> None:
    assert stated(TrainingArguments(str(tmp_path))) == {}
    args = TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, lr_scheduler_type="cosine", weight_decay=0.1)
    assert stated(args) == {"max_steps": 3, "use_cpu": True, "lr_scheduler_type": "cosine", "weight_decay": 0.1}
    own = WidTrainingArguments(str(tmp_path), compactor_learning_rate=1e-3)
    assert stated(own) == {"compactor_learning_rate": 1e-3}
