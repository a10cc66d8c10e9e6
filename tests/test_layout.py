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
    "whole_file": {"errors"},
    "paths": set(),
    "staging": set(),
    "stops": {"errors"},
    "sentence_modules": {"errors", "paths"},
    "output_folder": {"errors", "paths", "staging"},
    "bar": set(),
    "coupling": {"errors"},
    "compaction": {"coupling", "errors"},
    "labelled": {"coupling"},
    "calibration": {"compaction", "coupling", "errors", "whole_file"},
    "progressive": {"compaction", "coupling", "errors", "whole_file"},
    "kept_examples": {"errors"},
    "config": {"errors", "kept_examples", "progressive"},
    "inputs": {"coupling", "errors"},
    "settings": {"errors"},
    "teacher_check": {"errors"},
    "tracing": {"coupling", "errors", "inputs"},
    "sizes": {"config", "errors"},
    "student": {"config", "coupling", "errors", "inputs", "kept_examples", "sizes", "teacher_check", "tracing"},
    "adapter": {
        "calibration",
        "compaction",
        "config",
        "coupling",
        "errors",
        "kept_examples",
        "progressive",
        "settings",
        "student",
        "tracing",
    },
    "data": {"errors", "paths"},
    "teachers": {"errors", "paths", "teacher_check"},
    "methods": {"config", "errors", "progressive"},
    "evaluation": {"bar", "data", "errors", "labelled", "paths", "whole_file"},
    "reports": {
        "calibration",
        "data",
        "errors",
        "evaluation",
        "methods",
        "paths",
        "progressive",
        "student",
        "teachers",
        "whole_file",
    },
    "distillation": {"calibration", "compaction", "coupling", "errors", "evaluation", "labelled"},
    "training": {
        "adapter",
        "calibration",
        "compaction",
        "coupling",
        "distillation",
        "errors",
        "evaluation",
        "labelled",
        "progressive",
        "reports",
    },
    "compress": {
        "adapter",
        "bar",
        "config",
        "data",
        "errors",
        "evaluation",
        "methods",
        "output_folder",
        "paths",
        "progressive",
        "reports",
        "sentence_modules",
        "stops",
        "student",
        "teachers",
        "training",
        "whole_file",
    },
    "evaluate": {"adapter", "errors", "evaluation", "paths", "reports", "teachers"},
    "export": {"errors", "inputs", "paths", "staging", "teachers"},
    "commands": {
        "compress",
        "config",
        "errors",
        "evaluate",
        "evaluation",
        "export",
        "methods",
        "paths",
        "progressive",
        "reports",
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


def name_of(path: Path) -> str:
    return ".".join(["wid_hf", *path.relative_to(SOURCE).with_suffix("").parts])


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
    refuse_cycles(ALLOWED)


def test_no_file_imports_one_that_imports_it() -> None:
    """The same inside of parts; a folder's `__init__.py` only gathers names, so it is no file of its own here."""
    modules = {name_of(path): path for path in FILES if path.name != "__init__.py"}
    refuse_cycles({name: imported(path) & set(modules) for name, path in modules.items()})


def refuse_cycles(needs: dict[str, set[str]]) -> None:
    """Take away what needs nothing that is left, until nothing is left."""
    waiting = dict(needs)
    while waiting:
        free = [name for name, needed in waiting.items() if not needed & set(waiting)]
        assert free, f"a cycle among {sorted(waiting)}"
        waiting = {name: needed for name, needed in waiting.items() if name not in free}


def test_no_drawers() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "misc", "other", "helpers", "common"}]


def test_the_public_names_are_those_promised() -> None:
    assert sorted(wid_hf.__all__) == [
        "ConfigError", "DataError", "DistillingTrainer", "FollowingTrainer", "OutputError", "Plan", "PlanError",
        "ProofError", "StudentTrainer", "TeacherError", "TrainingError", "WidCallback", "WidConfig", "WidError",
        "WidModel", "WidSchedule", "WidSeq2SeqTrainingArguments", "WidTrainer", "WidTrainingArguments", "get_wid_model",
        "plan_student",
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
