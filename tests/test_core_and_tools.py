"""What the core needs: it loads none of the packages of extras, works without them, and declares what it imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tomllib
from toys import save_teacher, write_texts
from transformers import BertForMaskedLM

ROOT = Path(__file__).parents[1]
EXTRAS = ("typer", "rich", "jinja2", "matplotlib", "sklearn", "onnx", "onnxruntime", "onnxscript")
BROUGHT = "import torch, transformers, peft, accelerate, datasets\nfrom transformers import Trainer\n"
# As where they are not installed: nobody finds them.
BLOCK = f"""
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
absent = {(*EXTRAS, "scipy")}
PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] in absent else find(name, path, target)
)
"""
# A progressive training, which has a picture to draw in the end, and a student that is saved and read back.
TRAIN = """
import warnings, torch
from wid_hf import WidConfig, WidTrainer, WidTrainingArguments, get_wid_model
from transformers import AutoModelForMaskedLM
schedule = {"mask_interval": 1, "mask_increments": 1, "decay_to_zero_steps": 1}
rows = [{"input_ids": [2, 5, 6, 3], "attention_mask": [1] * 4, "labels": [2, 5, 6, 3]}] * 8
for given in ({}, {"schedule": schedule}):
    config = WidConfig(hidden_size=12, intermediate_size=24, calibration_samples=8, ridge=1.0, **given)
    model = get_wid_model(AutoModelForMaskedLM.from_pretrained(sys.argv[1]), config)
    data = [{name: torch.tensor([row[name] for row in rows * 4]) for name in ("input_ids", "attention_mask")}]
    data[0]["input_ids"] = torch.randint(5, 15, (32, 4))
    if not given:
        model.base_model.calibrate(data)
    args = WidTrainingArguments("out", max_steps=3, report_to="none", save_strategy="no", use_cpu=True, logging_steps=1)
    WidTrainer(model=model, args=args, train_dataset=rows).train()
    model.merge_and_unload().save_pretrained("student")
"""
COMPRESS = """
from wid_hf.tools.compress import CompressSettings, compress
settings = CompressSettings(steps=2, batch_size=8, max_length=12, validation_texts=8)
compress(sys.argv[1], sys.argv[2], "compressed", WidConfig(hidden_size=12, intermediate_size=24), settings)
"""
NEEDING = """
def refusal(call, *given):
    try:
        call(*given)
    except (ImportError, SystemExit) as error:
        print("refused:", error)
from importlib import import_module
from wid_hf.hub.cards import student_card
from wid_hf.tools.evaluate import evaluate
from wid_hf.tools.export import export_onnx
from wid_hf_cli.main import main
refusal(student_card, "compressed")
refusal(import_module, "wid_hf.tools.reports.html_report")
refusal(export_onnx, "x", "y")
refusal(evaluate, "x", ["sst2"], "y")
refusal(main)
"""


def python(script: str, *words: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_and_training_load_no_package_of_an_extra(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    script = (
        f"import sys\n{BROUGHT}before = set(sys.modules)\nimport wid_hf\n"
        f"found = lambda: print('loaded', [n for n in {EXTRAS} if n in set(sys.modules) - before])\n"
        "found()\n" + TRAIN.replace('({}, {"schedule": schedule})', "({},)") + "found()\n"
    )
    told = python(script, str(teacher), folder=tmp_path)
    assert re.findall(r"loaded (.*)", told) == ["[]", "[]"]


@pytest.mark.slow
def test_importing_leaves_trainers_and_tools_alone(tmp_path: Path) -> None:
    script = (
        "import sys, wid_hf\n"
        "print([n for n in sys.modules if n.startswith(('wid_hf.training.', 'wid_hf.tools', 'datasets', 'onnx'))])\n"
        "assert set(wid_hf.__all__) <= set(dir(wid_hf)) and wid_hf.WidTrainer is wid_hf.WidTrainer\n"
    )
    assert python(script, folder=tmp_path).startswith("[]")


@pytest.mark.slow
def test_all_but_what_needs_them_works_where_no_extra_is_installed(tmp_path: Path) -> None:
    teacher, texts = save_teacher(tmp_path / "teacher", BertForMaskedLM), write_texts(tmp_path / "texts.txt")
    told = python(BLOCK + TRAIN + COMPRESS + NEEDING, str(teacher), str(texts), folder=tmp_path)
    for what in ("widths.png could not be drawn: matplotlib", "pictures could not be made: matplotlib"):
        assert re.search(rf'{what} is not installed .* pip install "wid-hf\[cli\]"', told)
    assert (tmp_path / "student" / "config.json").is_file() and not (tmp_path / "out" / "widths.png").exists()
    assert (tmp_path / "compressed" / "wid_report.json").is_file()
    assert re.findall(r"refused: (\w+) is not .* pip install \"wid-hf(.*)\"", told) == [
        ("jinja2", "[cli]"),
        ("matplotlib", "[cli]"),
        ("onnx", "[onnx]"),
        ("scipy", "[eval]"),
        ("typer", "[cli]"),
    ]


OF_CALLERS = {"deepspeed"}  # imported only to ask for parts of tensors that it made itself


def test_everything_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = project["dependencies"] + [line for name in ("cli", "eval", "onnx") for line in extras[name]]
    declared = {re.split(r"[<>=\[]", line)[0].replace("_", "-").lower() for line in listed}
    of_module = packages_distributions()
    wanted = {
        of_module[name][0].replace("_", "-").lower()
        for path in (ROOT / "src").rglob("*.py")
        for name in imported(path)
        if name not in sys.stdlib_module_names | OF_CALLERS and not name.startswith("wid_hf")
    }
    assert wanted - declared == set()
    assert declared - wanted == set()


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.slow
def test_the_wheel_holds_all_and_works_where_no_extra_is_installed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "root" / "src")  # a copy: setuptools leaves its work beside what it builds
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "root")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "root")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    sources = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    sources |= {Path("wid_hf", *parts) for parts in (("py.typed",), ("hub", "templates", "card.md"))}
    assert all((tmp_path / "site" / path).is_file() for path in sources)
    teacher = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    script = BLOCK + TRAIN + "import wid_hf; print(wid_hf.__file__)"
    told = python(script, str(teacher), folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert str(tmp_path / "site" / "wid_hf" / "__init__.py") in told
