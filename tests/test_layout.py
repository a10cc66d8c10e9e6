"""Data flows one way and imports follow it; the public names are those that are promised."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wid_hf

SOURCE = Path(wid_hf.__file__).parent

# What each part may import of its neighbours; earlier parts never import later ones.
ALLOWED = {
    "errors": set(),
    "coupling": {"errors"},
    "fold": set(),
    "compaction": {"coupling", "errors", "fold"},
    "rows": {"compaction"},
    "held": {"compaction", "rows"},
    "whole_file": set(),
    "calibration": {"compaction", "coupling", "errors", "whole_file"},
    "schedule": {"errors"},
    "penalty": {"errors"},
    "config": {"errors", "schedule"},
    "progress": {"compaction", "coupling", "errors", "penalty", "schedule"},
    "wide": {"compaction", "coupling", "errors"},
    "shrink": {"compaction"},
    "inputs": {"coupling", "errors"},
    "student": {"config", "coupling", "errors", "inputs"},
    "fingerprint": set(),
    "adapter": {"config", "errors", "fingerprint"},
    "status": {"compaction"},
    "tuner": {
        "calibration",
        "adapter",
        "compaction",
        "config",
        "coupling",
        "errors",
        "fingerprint",
        "progress",
        "schedule",
        "shrink",
        "status",
        "student",
        "wide",
    },
    "widths": {"whole_file"},
    "callback": {"errors", "tuner", "widths"},
    "supported_peft": {"errors"},
    "peft_registration": {"config", "errors", "tuner"},
    "data": {"errors"},
    "bar": set(),
    "teachers": {"errors"},
    "labelled": {"coupling"},
    "evaluation": {"bar", "data", "errors", "labelled", "whole_file"},
    "checkpoints": {"errors"},
    "collation": set(),
    "heads": {"calibration", "coupling"},
    "distillation": {"calibration", "compaction", "coupling", "errors", "heads", "labelled"},
    "student_trainer": {"collation", "errors", "labelled"},
    "trainer": {
        "callback",
        "card",
        "checkpoints",
        "compaction",
        "distillation",
        "errors",
        "held",
        "labelled",
        "student_trainer",
        "tuner",
    },
    "following": {"errors", "evaluation", "trainer"},
    "matching": {"calibration", "coupling", "distillation", "errors", "following", "heads"},
    "baselines": {"calibration", "distillation", "errors", "matching", "student_trainer"},
    "methods": {"config", "errors", "schedule"},
    "report": {"calibration", "errors", "evaluation", "widths"},
    "eval_report": {"errors", "evaluation"},
    "evaluate": {"errors", "eval_report", "evaluation", "fingerprint", "report", "teachers"},
    "html_report": {"data", "errors", "eval_report", "evaluation", "report", "teachers", "whole_file"},
    "card": {"errors", "evaluation", "methods", "report", "student"},
    "compress": {
        "bar",
        "baselines",
        "card",
        "config",
        "data",
        "errors",
        "evaluation",
        "fingerprint",
        "following",
        "methods",
        "report",
        "schedule",
        "student_trainer",
        "teachers",
        "trainer",
        "tuner",
        "widths",
    },
    "export": {"errors", "inputs", "teachers"},
    "commands": {
        "compress",
        "config",
        "errors",
        "eval_report",
        "evaluate",
        "evaluation",
        "export",
        "html_report",
        "methods",
        "report",
        "schedule",
        "student",
        "teachers",
    },
}
LIBRARIES_KEPT_OUT = {
    "coupling": {"transformers", "peft", "datasets"},
    "compaction": {"transformers", "peft", "datasets"},
    "calibration": {"transformers", "peft", "datasets"},
}


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that the file imports."""
    package = ["wid_hf", *path.relative_to(SOURCE).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {stem} if node.module else {f"{stem}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_flow_of_data(path: Path) -> None:
    part = part_of(path)
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("wid_hf.")} - {part}
    assert inside <= ALLOWED[part]
    assert not {name.split(".")[0] for name in imported(path)} & LIBRARIES_KEPT_OUT.get(part, set())


def test_no_part_may_import_one_that_may_import_it() -> None:
    order = list(ALLOWED)
    seen: set[str] = set()
    waiting = dict(ALLOWED)
    while waiting:
        free = [part for part in order if part in waiting and waiting[part] <= seen]
        assert free, f"a cycle among {sorted(waiting)}"
        seen |= set(free)
        waiting = {part: needs for part, needs in waiting.items() if part not in seen}


def test_no_drawers() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "misc", "other", "helpers", "common"}]


def test_the_public_names_are_those_promised() -> None:
    assert sorted(wid_hf.__all__) == [
        "ConfigError", "DataError", "DistillingTrainer", "FollowingTrainer", "OutputError", "Plan", "PlanError",
        "ProofError", "StudentTrainer", "TeacherError", "TrainingError", "WidCallback", "WidConfig", "WidError",
        "WidModel", "WidSchedule", "WidTrainer", "WidTrainingArguments", "get_wid_model", "plan_student",
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
        "assert 'wid_hf.commands' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
