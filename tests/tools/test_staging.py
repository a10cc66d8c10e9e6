"""Folders to work in: deleted at the end, found by the next run after a kill, and nobody else's ever touched."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from forked import forked

from wid_hf.tools.staging import OWNER, clear_stale, let_go, staging_folder, stale_folders


def killed(parent: Path, name: str) -> None:
    """Leave the folder of a process that was killed while it worked in it."""

    def work() -> None:
        with staging_folder(parent, name) as folder:
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(work) == -signal.SIGKILL


def test_a_folder_is_deleted_at_the_end_with_what_is_in_it(tmp_path: Path) -> None:
    with staging_folder(tmp_path, "out") as folder:
        (folder / "half").write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_let_go_stays(tmp_path: Path) -> None:
    with staging_folder(tmp_path, "out") as folder:
        (folder / "whole").write_text("whole")
        let_go(folder)
    assert (folder / "whole").read_text() == "whole"
    clear_stale(tmp_path, "out")
    assert (folder / "whole").read_text() == "whole"


def test_the_folder_of_a_killed_run_is_found_by_the_next_one_for_the_same_output_only(tmp_path: Path) -> None:
    killed(tmp_path, "out[1]")
    (left,) = tmp_path.iterdir()
    clear_stale(tmp_path, "out")
    clear_stale(tmp_path, "out[1]x")
    assert (left / "half").exists()
    clear_stale(tmp_path, "out[1]")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_stale(tmp_path: Path) -> None:
    with staging_folder(tmp_path, "out") as folder, stale_folders(tmp_path, "out") as found:
        assert found == []
        assert folder.is_dir()


@pytest.mark.parametrize(
    "owner",
    [
        None,
        "",
        "[]",
        "not json",
        "{}",
        json.dumps({"program": "wid-hf", "makes": "another"}),
        json.dumps({"program": "other", "makes": "out"}),
    ],
)
def test_a_folder_that_does_not_say_what_it_was_made_for_is_left_alone(tmp_path: Path, owner: str | None) -> None:
    folder = tmp_path / ".out.wid-hf-12345678"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    if owner is not None:
        (folder / OWNER).write_text(owner)
    clear_stale(tmp_path, "out")
    assert (folder / "mine").read_text() == "mine"


def test_a_link_with_such_a_name_is_left_alone(tmp_path: Path) -> None:
    killed(tmp_path, "out")
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / "elsewhere")
    left.symlink_to("elsewhere")
    clear_stale(tmp_path, "out")
    assert (tmp_path / "elsewhere" / "half").exists() and left.is_symlink()


@pytest.mark.parametrize("files", [[], [OWNER]])
def test_a_folder_killed_before_it_held_anything_is_cleared(tmp_path: Path, files: list[str]) -> None:
    folder = tmp_path / ".out.wid-hf-12345678"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    clear_stale(tmp_path, "out")
    assert list(tmp_path.iterdir()) == []
