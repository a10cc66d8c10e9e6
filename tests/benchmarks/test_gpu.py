"""`python benchmarks/gpu.py`: programs are ended at their limits, what they left is kept, and all of it can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "on_device"
ROOT = FOLDER.parents[1]
LEAVES = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(exist_ok=True); p.write_text(sys.argv[2])"


def a_run(folder: Path, seconds: float = 60) -> Any:
    from steps import Run

    (folder / "scratch").mkdir()
    return Run(folder, folder / "scratch", time.monotonic() + seconds, {"WID_HF_TEST": "told"})


def test_a_program_that_takes_too_long_is_ended_and_what_it_left_is_kept(tmp_path: Path) -> None:
    from steps import Step

    run = a_run(tmp_path)
    record = str(tmp_path / "scratch" / "trainings" / "a.json")
    runs_on = f"{LEAVES}\nprint('left it', flush=True)\nimport time; time.sleep(60)"
    steps = [Step("trainings, late", ["-c", runs_on, record, '{"a": 1}'], 3), Step("quick", ["-c", "print(6 * 7)"], 30)]
    began = time.monotonic()
    run.side_by_side(steps, 2)
    assert time.monotonic() - began < 30
    ends = {end["step"]: end for end in json.loads((tmp_path / "steps.json").read_text())}
    assert (ends["quick"]["end"], ends["quick"]["printed"]) == ("done", "42\n")
    assert (ends["trainings, late"]["end"], ends["trainings, late"]["printed"]) == ("cut off", "left it\n")
    assert json.loads((tmp_path / "trainings.json").read_text()) == [{"a": 1}]


def test_nothing_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steps import Run, Step

    def interrupted(run: Any) -> None:
        if mark.exists():
            raise KeyboardInterrupt

    mark = tmp_path / "pid"
    run = a_run(tmp_path)
    monkeypatch.setattr(Run, "gather", interrupted)
    writes = "import os, pathlib, sys, time; p = pathlib.Path(sys.argv[1]); q = p.with_suffix('.new')"
    writes += "; q.write_text(str(os.getpid())); q.rename(p); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run.side_by_side([Step("goes on", ["-c", writes, str(mark)], 60)], 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_program_that_fails_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    from steps import Step

    run = a_run(tmp_path)
    told = "import os; assert os.environ['WID_HF_TEST'] == 'told' and os.environ['OWN'] == 'own'"
    run.side_by_side(
        [Step("bad", ["-c", "raise SystemExit(3)"], 30), Step("good", ["-c", told], 30, {"OWN": "own"})], 1
    )
    assert [end["end"] for end in run.ends] == ["exit 3", "done"]


def test_nothing_begins_out_of_time(tmp_path: Path) -> None:
    from steps import Step

    run = a_run(tmp_path, seconds=-1)
    run.side_by_side([Step("late", ["-c", "raise SystemExit(3)"], 30)], 1)
    assert [end["end"] for end in run.ends] == ["no time"]


def test_a_report_of_tests_says_what_failed_and_why(tmp_path: Path) -> None:
    from steps import tests_told

    (tmp_path / "test_some.py").write_text("def test_a():\n    pass\n\ndef test_b():\n    assert 1 == 2\n")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    subprocess.run([sys.executable, *words, "--junitxml", "report.xml", "."], cwd=tmp_path, check=False)
    told = tests_told(tmp_path / "report.xml")
    assert told["counts"] == {"failure": 1, "passed": 1}
    assert "assert 1 == 2" in told["said"]["test_some::test_b"]


def test_packages_that_are_missing_come_from_carried_wheels_and_the_sources_have_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import travel

    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    monkeypatch.setattr(travel, "CARRIED", tmp_path / "carried")
    with pytest.raises(SystemExit, match="run --prepare"):
        travel.environment(tmp_path, rehearse=False)
    monkeypatch.setattr(util, "find_spec", lambda name: name)
    monkeypatch.setattr(metadata, "version", unknown)
    made = travel.environment(tmp_path, rehearse=False)
    there = subprocess.run(
        [sys.executable, "-S", "-c", "from importlib.metadata import version; print(version('wid-hf'))"],
        env={**os.environ, **made},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [each for each in (ROOT / "pyproject.toml").read_text().splitlines() if each.startswith("version = ")]
    assert there.stdout.strip() == line.split('"')[1]


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_in_tiny_sizes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["benchmarks/gpu.py", "--rehearse", "--minutes", "20", "--output", str(out)]
    told = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert len(list(out.iterdir())) == 8  # as many as come back from a machine that is lent
    for name in ("machine", "llama", "progressive", "memory"):
        assert json.loads((out / f"{name}.json").read_text())["held"]
    assert set(json.loads((out / "tests.json").read_text())["counts"]) == {"passed"}
    speed = [record["settings"] for record in json.loads((out / "speed.json").read_text()) if "variants" in record]
    assert {(each["compiled"], each["compile_mode"]) for each in speed} == {
        (False, "default"),
        (True, "default"),
        (True, "reduce-overhead"),
    }
    trained = {record["settings"]["trained"] for record in json.loads((out / "trainings.json").read_text())}
    assert trained == {"compactors", "merged student"}
    assert "| turned | compactors | 2 | 1 |" in told.stdout
