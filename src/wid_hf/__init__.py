"""Make a pretrained transformer narrower by Weight-Inherited Distillation and get a stock model back."""

from .adapter import compat  # noqa: F401  before the others: it refuses a PEFT that they cannot import
from .adapter.get_wid_model import get_wid_model
from .adapter.registration import register
from .adapter.tuner import WidModel
from .config import CalibrationConfig, WidConfig
from .coupling import Plan
from .errors import (
    ConfigError,
    DataError,
    OutputError,
    PlanError,
    ProofError,
    TeacherError,
    TrainingError,
    WidError,
)
from .planning.student_plan import plan_student
from .progressive.schedule import WidSchedule
from .training.arguments import WidSeq2SeqTrainingArguments, WidTrainingArguments
from .training.baselines import DistillingTrainer
from .training.callbacks import WidCallback
from .training.following_trainer import FollowingTrainer
from .training.student_trainer import StudentTrainer
from .training.trainer import WidTrainer

register()

__version__ = "0.1.0"
__all__ = [
    "CalibrationConfig",
    "ConfigError",
    "DataError",
    "DistillingTrainer",
    "FollowingTrainer",
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
    "get_wid_model",
    "plan_student",
]
