"""Any field of `WidTrainingArguments`, by name: what `compress` takes beside its own settings.

Takes names and values, as texts or as values of the field's type; gives values of that type, or a refusal before any
work. Called by `CompressSettings` and `compress`.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ..errors import ConfigError, MissingExtraError
from ..training.arguments import WidTrainingArguments

TRACKERS = "report_to"
LEARNING_RATES = "compactor_learning_rate= and teacher_learning_rate=, or learning_rate= with train_weights=merged,"
# Fields that settings of `compress` decide, and those settings.
SETTINGS = {
    "output_dir": "output=",
    "max_steps": "steps=",
    "num_train_epochs": "steps=",
    "do_train": "steps=",
    "per_device_train_batch_size": "batch_size=",
    "seed": "seed=",
    "data_seed": "seed=",
    "learning_rate": LEARNING_RATES,
    "compactor_learning_rate": "compactor_learning_rate=",
    "teacher_learning_rate": "teacher_learning_rate=",
    "distillation": "distillation=",
    "resume_from_checkpoint": "resume=True",
}
HELD_OUT = "held-out rows are scored before and after training. WidTrainer evaluates in between"
MERGED = "one process merges the student. WidTrainer trains models that are sharded"
PUSHED = "a student is pushed to the Hub when it is complete"
# Fields that no setting decides, and why.
FIXED = {
    "do_eval": HELD_OUT,
    "do_predict": HELD_OUT,
    "eval_strategy": HELD_OUT,
    "eval_on_start": HELD_OUT,
    "load_best_model_at_end": HELD_OUT,
    "fsdp": MERGED,
    "deepspeed": MERGED,
    "push_to_hub": PUSHED,
    "teacher_dtype": "the student is compared with its teacher after training, which needs the teacher as it was",
    "include_num_input_tokens_seen": "tokens are always counted, without padding",
}
HUB = "hub_"  # how names of settings of the Hub begin, a token among them


def parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training arguments by name, each text as a value of its field's type.

    Args:
        given: texts such as `"true"` or `"1e-4"`, or values, which are not changed.

    Raises:
        ConfigError: an unknown name, one that `compress` decides, or a text that is no value of the field.
        MissingExtraError: `report_to` names a tracker whose package is not installed.
    """
    for name in given:
        _refuse_name(name)
    parser = HfArgumentParser(WidTrainingArguments, exit_on_error=False)
    found = {name: _value(parser, name, value) for name, value in given.items()}
    _refuse_missing_trackers(found.get(TRACKERS))
    return found


def checked(arguments: Mapping[str, Any]) -> WidTrainingArguments:
    """Return the arguments of a training.

    Raises:
        ConfigError: they contradict each other, or this machine cannot follow them.
    """
    try:
        return WidTrainingArguments(**arguments)
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"The training settings contradict each other or this machine: {error}") from error


def stated(args: TrainingArguments) -> dict[str, Any]:
    """Return the fields of `args` that differ from their defaults, by name, but the folder."""
    usual = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict() | {"use_cpu": False}
    return {name: value for name, value in args.to_dict().items() if value != usual[name]}


def _refuse_name(name: str) -> None:
    names = [field.name for field in fields(WidTrainingArguments) if field.init]
    if name not in names:
        nearest = get_close_matches(name, names, n=1, cutoff=0)[0]
        raise ConfigError(
            f"{name} is not a training argument, the nearest is {nearest}. Legal are the fields of transformers' "
            "TrainingArguments and those of WidTrainingArguments."
        )
    if name in SETTINGS:
        raise ConfigError(f"{name} is not a training argument of compress. Pass {SETTINGS[name]} instead.")
    if (why := PUSHED if name.startswith(HUB) else FIXED.get(name)) is not None:
        raise ConfigError(f"{name} is not a training argument of compress: {why}.")


def _value(parser: HfArgumentParser, name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return getattr(parser.parse_args([f"--{name}={value}"]), name)
    except ArgumentError as error:
        raise ConfigError(f"The training argument {name} cannot be {value!r}: {error.message}.") from error


def _refuse_missing_trackers(report_to: str | list[str] | None) -> None:
    """Refuse trackers that transformers does not know, or whose package is missing."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            nearest = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1, cutoff=0)[0]
            raise ConfigError(
                f"{TRACKERS}={name} is unknown. The nearest is {nearest}. Legal: all, none, "
                f"{', '.join(INTEGRATION_TO_CALLBACK)}."
            )
        if name not in get_available_reporting_integrations():
            raise MissingExtraError(
                f"{name} is not installed here, and {TRACKERS}={name} needs it. Run: pip install {name}"
            )
