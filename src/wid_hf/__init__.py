"""Make a pretrained transformer narrower by Weight-Inherited Distillation and get a stock model back."""

from . import supported_peft  # noqa: F401  before the others: it refuses a PEFT that they cannot import
from .baselines import DistillingTrainer
from .callback import WidCallback
from .config import WidConfig
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
from .following import FollowingTrainer
from .peft_registration import register
from .schedule import WidSchedule
from .student import plan_student
from .student_trainer import StudentTrainer
from .trainer import WidTrainer, WidTrainingArguments
from .tuner import WidModel, get_wid_model

register()

__version__ = "0.1.0"
__all__ = [
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
    "WidTrainer",
    "WidTrainingArguments",
    "get_wid_model",
    "plan_student",
]
