"""Make a pretrained transformer narrower by Weight-Inherited Distillation and get a stock model back.

What PEFT needs for `PeftModel.from_pretrained` is imported and registered here at once. Trainers are imported at first
use, since importing transformers' trainers takes a second, which a program without training should not spend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .adapter import compat  # noqa: F401  before the others, which import PEFT: it refuses other versions
from .adapter.get_wid_model import get_wid_model
from .adapter.output_map import load_output_map
from .adapter.registration import register
from .adapter.tuner import WidModel
from .config import CalibrationConfig, WidConfig
from .coupling import Plan
from .deprecation import find_old_modules, refuse_moved
from .errors import (
    ConfigError,
    DataError,
    FormatError,
    MissingExtraError,
    OutputError,
    PlanError,
    ProofError,
    TeacherError,
    TrainingError,
    WidError,
)
from .planning.student_plan import plan_student
from .progressive.schedule import WidSchedule

if TYPE_CHECKING:
    from .tools.compression import find_task
    from .tools.one_call import compress
    from .training.arguments import WidSeq2SeqTrainingArguments, WidTrainingArguments
    from .training.callbacks import WidCallback
    from .training.following_trainer import FollowingTrainer
    from .training.imitating_trainer import ImitatingTrainer
    from .training.merged_trainer import MergedTrainer
    from .training.student_trainer import StudentTrainer
    from .training.trainer import WidTrainer

register()
find_old_modules()

__version__ = "0.2.0.dev0"
__all__ = [
    "CalibrationConfig",
    "ConfigError",
    "DataError",
    "FollowingTrainer",
    "FormatError",
    "ImitatingTrainer",
    "MergedTrainer",
    "MissingExtraError",
    "OutputError",
    "Plan",
    "PlanError",
    "ProofError",
    "StudentTrainer",
    "TeacherError",
    "TrainingError",
    "WidCallback",
    "WidConfig",
    "WidError",
    "WidModel",
    "WidSchedule",
    "WidSeq2SeqTrainingArguments",
    "WidTrainer",
    "WidTrainingArguments",
    "compress",
    "find_task",
    "get_wid_model",
    "load_output_map",
    "plan_student",
]
_LATER = {  # modules of the names that are imported at first use
    "FollowingTrainer": "training.following_trainer",
    "ImitatingTrainer": "training.imitating_trainer",
    "MergedTrainer": "training.merged_trainer",
    "StudentTrainer": "training.student_trainer",
    "WidCallback": "training.callbacks",
    "WidSeq2SeqTrainingArguments": "training.arguments",
    "WidTrainer": "training.trainer",
    "WidTrainingArguments": "training.arguments",
    "compress": "tools.one_call",
    "find_task": "tools.compression",
}


def __getattr__(name: str) -> Any:
    """Import a name of `_LATER`, once."""
    if name not in _LATER:
        refuse_moved(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
