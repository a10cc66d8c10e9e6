"""The config: what calibration is given, and files and arguments of version 0.1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from wid_hf import CalibrationConfig, ConfigError, WidConfig

SAVED = Path(__file__).parent / "adapter" / "saved_adapters"  # written by version 0.1


@pytest.mark.parametrize("kind", [WidConfig, PeftConfig])
@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_a_config_of_version_0_1_loads_to_the_same_values_without_a_warning(strategy: str, kind: type) -> None:
    written = json.loads((SAVED / strategy / "adapter_config.json").read_text())
    config = kind.from_pretrained(str(SAVED / strategy))
    assert config.calibration_config.flat() == {
        "calibration_samples": written["calibration_samples"],
        "calibration_batch_size": written["calibration_batch_size"],
        "ridge": written["ridge"],
        "output": "auto",
        "refine": 0,
        "layer_choice": "greedy",
        "refine_seconds": None,
    }
    for name in ("hidden_size", "head_strategy", "init", "selection", "schedule", "teacher_fingerprint"):
        assert getattr(config, name) == written[name]


def test_other_values_of_version_0_1_are_read_too(tmp_path: Path) -> None:
    written = json.loads((SAVED / "dim" / "adapter_config.json").read_text())
    written |= {"calibration_samples": 40, "calibration_batch_size": 8, "ridge": 0.01}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    assert WidConfig.from_pretrained(str(tmp_path)).calibration_config == CalibrationConfig(40, 8, 0.01)


def test_a_saved_config_has_calibrations_settings_in_a_dictionary(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=40, ridge=0.01))
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["calibration_config"] == {
        "samples": 40,
        "batch_size": 32,
        "ridge": 0.01,
        "output": "auto",
        "refine": 0,
        "layer_choice": "greedy",
        "refine_seconds": None,
    }
    assert not written.keys() & {"calibration_samples", "calibration_batch_size"}
    assert WidConfig.from_pretrained(str(tmp_path)).calibration_config == config.calibration_config


def test_the_arguments_of_version_0_1_work_with_a_warning_that_says_what_to_write() -> None:
    message = (
        r"WidConfig\(calibration_samples=40, ridge=0.01\) is deprecated and will be removed in wid-hf 0.3: "
        r"use calibration_config=CalibrationConfig\(samples=40, ridge=0.01\)"
    )
    with pytest.warns(FutureWarning, match=message) as caught:
        config = WidConfig(hidden_size=12, calibration_samples=40, ridge=0.01)
    assert config.calibration_config == CalibrationConfig(samples=40, ridge=0.01)
    assert caught[0].filename == __file__
    assert replace(config, hidden_size=8).calibration_config == config.calibration_config  # and warns no more


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 0}, "samples=0 is not a positive integer"),
        ({"batch_size": 2.0}, r"batch_size=2\.0 is not a positive integer"),
        ({"ridge": 0}, "ridge=0 is not a number above 0"),
        ({"ridge": float("nan")}, "ridge=nan is not a number above 0"),
        ({"ridge": True}, "ridge=True is not a number above 0"),
        ({"output": "turned"}, "output='turned' is not one of 'auto', 'coordinates'"),
        ({"refine": -1}, 'refine=-1 is not a number of steps, 0 or more, or "auto"'),
        ({"refine": "most"}, "refine='most' is not a number of steps"),
        ({"refine_seconds": 0}, "refine_seconds=0 is not a number above 0; None is for no limit"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^CalibrationConfig: {message}"):
        CalibrationConfig(**given)


def test_what_is_no_calibration_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="calibration_config=256 is not a CalibrationConfig; leave it out"):
        WidConfig(hidden_size=12, calibration_config=256)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="CalibrationConfig has no rows; it has samples, batch_size, ridge, output, refine"
    ):
        WidConfig(hidden_size=12, calibration_config={"rows": 8})  # type: ignore[arg-type]


def test_a_tie_that_is_no_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="tie_word_embeddings='no' is not True, False or None"):
        WidConfig(hidden_size=8, tie_word_embeddings="no")  # type: ignore[arg-type]
