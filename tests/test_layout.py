"""The house: data flows one way, from the first part of this list to the last."""

from __future__ import annotations

import ast
from pathlib import Path

import wid_hf

SOURCE = Path(wid_hf.__file__).parent
# Each part may import those above it. A part is a folder or a file of src/wid_hf; those of tools/ count one by one.
FLOW = (
    "errors",
    "arithmetic",
    "deprecation",
    "extras",
    "format_version",
    "atomic_write",
    "progress_bar",
    "stored_inputs",
    "saved_dataclass",
    "coupling",
    "layers",
    "calibration",
    "progressive",
    "config",
    "planning",
    "vocabulary",
    "adapter",
    "sentence_models",
    "hub",
    "budget",
    "plots",
    "training",
    "rows",
    "inputs",
    "scores",
    "objectives",
    "tools.training_bar",
    "tools.plan_table",
    "tools.stops",
    "tools.staging",
    "tools.output_folder",
    "tools.work_folder",
    "tools.teachers",
    "tools.evaluation",
    "tools.reports",
    "tools.export",
    "tools.evaluate",
    "tools.training_settings",
    "tools.recipe",
    "tools.training_data",
    "tools.smaller_vocabulary",
    "tools.compression",
    "tools.as_is",
    "tools.find_sizes",
    "tools.forecast",
    "tools.plan_report",
    "tools.compress",
    "tools.many_sizes",
    "tools.one_call",
)
MATHEMATICS = {"coupling", "layers", "calibration", "progressive"}
LIBRARIES_OF_MODELS = {"peft", "datasets", "accelerate"}


def test_data_flows_one_way() -> None:
    wrong = []
    imports = {module: imported(path, module) for path, module in modules()}
    for module, names in imports.items():
        part = part_of(module)
        before = FLOW[: FLOW.index(part) + 1] if part in FLOW else ()
        wrong += [f"{module} imports {name}" for name in names & set(imports) if part_of(name) not in before]
        if part in MATHEMATICS:
            wrong += [f"{module} imports {name}" for name in names if name.split(".")[0] in LIBRARIES_OF_MODELS]
    waiting = {module: names & set(imports) - {module} for module, names in imports.items()}
    while free := [module for module, names in waiting.items() if not names & set(waiting)]:
        waiting = {module: names for module, names in waiting.items() if module not in free}
    assert not wrong
    assert not waiting, "modules that import each other"


def modules() -> list[tuple[Path, str]]:
    """Every file but the packages' own, which only gather names."""
    files = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    return [(path, ".".join(("wid_hf", *path.relative_to(SOURCE).with_suffix("").parts))) for path in files]


def part_of(module: str) -> str:
    """`tools.compress` of `wid_hf.tools.compress`, `layers` of `wid_hf.layers.fold`."""
    _, *parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "tools" else 1])


def imported(path: Path, module: str) -> set[str]:
    """Absolute names of all that a file imports; `from .a import b` gives `a` and `a.b`, which may be a module."""
    package = module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *([node.module] if node.module else [])]
            names |= {".".join(stem)} | {".".join([*stem, alias.name]) for alias in node.names}
    return names
