"""What `import wid_hf` promises, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import wid_hf


def test_the_public_names_are_those_promised() -> None:
    assert sorted(wid_hf.__all__) == [
        "CalibrationConfig", "ConfigError", "DataError", "DistillingTrainer", "FollowingTrainer", "OutputError", "Plan",
        "PlanError", "ProofError", "StudentTrainer", "TeacherError", "TrainingError", "WidCallback", "WidConfig",
        "WidError", "WidModel", "WidSchedule", "WidSeq2SeqTrainingArguments", "WidTrainer", "WidTrainingArguments",
        "get_wid_model", "plan_student",
    ]  # fmt: skip
    assert all(hasattr(wid_hf, name) for name in wid_hf.__all__)


def test_importing_touches_no_network_and_sets_no_warning_filter() -> None:
    script = (
        "import socket, warnings, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import torch, transformers, peft, datasets, matplotlib\n"
        "from transformers import Trainer\n"
        "before = list(warnings.filters)\n"
        "import wid_hf\n"
        "assert warnings.filters == before, 'filters'\n"
        "assert 'wid_hf.tools.commands' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
