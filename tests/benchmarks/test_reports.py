"""`python benchmarks/reports`: outcomes are judged rightly, wrong ones fail it, and the page says what is recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_command import load_command

FOLDER = Path(__file__).parents[2] / "benchmarks" / "reports"
ROOT = FOLDER.parents[1]
QUICK = ("pruned_by_mask", "pruned_for_good", "hidden_size_that_heads_do_not_divide")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/reports/__main__.py` with three quick cases, tried in this process, whose threads a fork lacks."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    module = load_command(FOLDER)
    import case

    monkeypatch.setattr(case, "in_own_process", lambda work, *given, **_: work(*given))
    monkeypatch.setattr(case, "_tried", tried_here)
    module.EVERY = dict(case.CASES)
    monkeypatch.setattr(module, "CASES", {name: case.CASES[name] for name in QUICK})
    monkeypatch.setattr(case, "CASES", module.CASES)
    return module


def tried_here(name: str) -> dict[str, Any]:
    """What the process of a case does, without what changes this one."""
    import tempfile

    import case

    with tempfile.TemporaryDirectory() as folder:
        made, told = case.judged(case.CASES[name], Path(folder))
    return {"outcome": made, "told": told, "seconds": 0.1}


def run(command: ModuleType, folder: Path, **asked: Any) -> tuple[int, str]:
    """Run the command with records and page in a folder; return its exit status and the page."""
    page = folder / "page.md"
    with pytest.raises(SystemExit) as end:
        command.main(**asked, records=folder / "records", output=page)
    return int(end.value.code or 0), page.read_text() if page.exists() else ""


def replaced(command: ModuleType, name: str, do: Callable[[Path], None]) -> None:
    """Let a case do something else."""
    from dataclasses import replace

    command.CASES[name] = replace(command.CASES[name], run=do)


def test_right_and_refused_cases_pass_and_the_page_shows_them_between_what_else_it_holds(
    command: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text(
        "# Compatibility\n\n<!-- begin reports -->\nold\n<!-- end reports -->\n\n## Other\n"
    )
    status, page = run(command, tmp_path)
    assert status == 0
    assert page.startswith("# Compatibility\n")
    assert page.endswith("<!-- end reports -->\n\n## Other\n")
    assert "old" not in page
    assert "3 cases: 1 right, 2 refused, 0 WRONG." in page
    rows = [[cell.strip() for cell in line.split(" | ")] for line in page.splitlines() if line.startswith("| A gap")]
    assert [cells[3] for cells in rows] == [
        "refused: The teacher is pruned by mask (`bert.encoder.layer.0.output.dense.weight`).",
        "right",
    ]
    assert rows[0][1] == "transformers#43019, peft#2321"


def test_a_case_that_goes_wrong_fails_the_command_and_is_tried_again(command: ModuleType, tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise KeyError("WID")

    before = command.CASES["pruned_for_good"]
    replaced(command, "pruned_for_good", fail)
    status, page = run(command, tmp_path)
    assert status == 1
    assert "1 WRONG" in page
    assert "WRONG: KeyError: 'WID'" in page
    command.CASES["pruned_for_good"] = before
    status, page = run(command, tmp_path)
    assert status == 0
    assert "0 WRONG" in page


@pytest.mark.parametrize(
    ("name", "does", "told"),
    [
        ("pruned_for_good", "refuse", "refused, where the right value was expected: no such size. Take 12."),
        ("pruned_for_good", "fail", "AssertionError: 13 (test_reports.py, line"),
        ("pruned_by_mask", "accept", "accepted, where a refusal was expected"),
        ("pruned_by_mask", "refuse", "the refusal does not tell pruned by mask, prune"),
    ],
)
def test_refusing_what_should_work_and_accepting_what_should_not_are_wrong(
    command: ModuleType, tmp_path: Path, name: str, does: str, told: str
) -> None:
    from wid_hf import ConfigError

    def refuse(_: Path) -> None:
        raise ConfigError("no such size. Take 12.")

    def fail(_: Path) -> None:
        raise AssertionError("13")

    replaced(command, name, {"refuse": refuse, "fail": fail, "accept": lambda _: None}[does])
    import case

    outcome, text = case.judged(command.CASES[name], tmp_path)
    assert outcome == "WRONG"
    assert text.startswith(told)


def test_what_is_recorded_is_not_tried_again_unless_the_case_has_changed(command: ModuleType, tmp_path: Path) -> None:
    run(command, tmp_path)
    calls = []

    def note(_: Path) -> None:
        calls.append(1)

    command.outcome = lambda name: pytest.fail(f"{name} was tried again")
    assert run(command, tmp_path)[0] == 0
    import case

    command.outcome = case.outcome
    replaced(command, "pruned_for_good", note)
    assert run(command, tmp_path)[0] == 0
    assert calls == [1]


def test_some_cases_by_name_write_nothing(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, page = run(command, tmp_path, case=["pruned_by_mask"])
    assert (status, page) == (0, "")
    assert not list(tmp_path.iterdir())
    assert "refused pruned_by_mask" in capsys.readouterr().out
    with pytest.raises(command.typer.BadParameter, match="no_such is none of pruned_by_mask"):
        command.main(case=["no_such"])


@pytest.mark.slow
def test_cases_run_in_processes_of_their_own(tmp_path: Path) -> None:
    import subprocess
    import sys

    names = [word for name in QUICK for word in ("--case", name)]
    done = subprocess.run(
        [sys.executable, str(FOLDER), *names], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cases: 1 right, 2 refused, 0 WRONG." in done.stdout


def test_the_page_that_is_committed_shows_the_records_that_are(command: ModuleType) -> None:
    from store import Store

    command.CASES.clear()
    command.CASES.update(command.EVERY)
    records = command.recorded(Store(command.RECORDS))
    assert set(records) == set(command.EVERY), "run python benchmarks/reports"
    page = command.PAGE.read_text(encoding="utf-8")
    section = page.partition("<!-- begin reports -->\n")[2].partition("<!-- end reports -->")[0]
    assert section.rstrip() == "\n".join(command.section(records)).rstrip()
