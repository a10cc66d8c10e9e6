"""A file is whole or what it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from wid_hf.atomic_write import atomic_write


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="full"), atomic_write(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
