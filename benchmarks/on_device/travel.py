"""What must travel to a machine without network, and what the steps there must know.

Takes folders of teachers and data, gives a folder that a device tool carries; there, variables for programs. Imports
neither torch nor `datasets`, which may be missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

from steps import ROOT

CARRIED = ROOT / ".cache" / "gpu"
# The first three are missing on the machine that is lent; how old its peft is, nobody has read.
WHEELS = ("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "peft==0.21.2")
THERE = ("--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")


def environment(scratch: Path, rehearse: bool) -> dict[str, str]:
    """Return the variables of all steps: where modules lie, this one's version, no network, one thread each."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    if (site := _missing_packages(scratch / "site")) is not None:
        paths.append(str(site))
    found = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if rehearse:
        # A C++ compiler takes minutes for what the GPU's takes seconds.
        found |= {"CUDA_VISIBLE_DEVICES": "", "TORCH_COMPILE_DISABLE": "1"}
    elif (version := CARRIED / "version").exists():
        found["WID_HF_VERSION"] = version.read_text(encoding="utf-8").strip()
    return found


def _missing_packages(site: Path) -> Path | None:
    """Return a folder with the packages that are missing here; None if none is. Only carried wheels are used."""
    made: Path | None = None
    if util.find_spec("datasets") is None:
        wheels = sorted(map(str, (CARRIED / "wheels").glob("*.whl")))
        if not wheels:
            raise SystemExit(f"`datasets` is missing and no wheels are in {CARRIED}: run --prepare, and carry it.")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(site), *wheels], check=True)
        made = site
    try:
        metadata.version("wid-hf")
    except metadata.PackageNotFoundError:  # records and cards tell its version, and src alone has none
        about = site / "wid_hf-0.dist-info"
        about.mkdir(parents=True)
        lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        version = next(line.split('"')[1] for line in lines if line.startswith("version = "))
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: wid-hf\nVersion: {version}\n", encoding="utf-8")
        made = site
    return made


def prepared() -> str:
    """Make the folder that travels anew, and return what is in it."""
    from places import DATA, TEACHERS
    from store import library_version

    teacher, data = TEACHERS / "reaction-bert", DATA / "uspto50k"
    for folder, remedy in ((teacher, "run `make teachers`"), (data, "set WID_HF_DATA to the folder that holds it")):
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: {remedy}.")
    shutil.rmtree(CARRIED, ignore_errors=True)
    for source, folder, pattern in ((teacher, "teachers/reaction-bert", "*"), (data, "data/uspto50k", "*.gz")):
        (CARRIED / folder).mkdir(parents=True)
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, CARRIED / folder / file.name)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *THERE]
    subprocess.run([*pip, "-d", str(CARRIED / "wheels"), *WHEELS], check=True)
    (CARRIED / "version").write_text(library_version() + "\n", encoding="utf-8")
    files = [file for file in CARRIED.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return f"{CARRIED}: {len(files)} files, {size / 1e6:.0f} MB, of version {library_version()} of the library."


def carried_data() -> dict[str, str]:
    """Return where the teacher and its texts lie, if they were carried; else they are where benchmarks look."""
    if not CARRIED.is_dir():
        return {}
    return {"WID_HF_TEACHERS": str(CARRIED / "teachers"), "WID_HF_DATA": str(CARRIED / "data")}
