"""Modules of benchmarks import each other by name, as `python benchmarks/NAME` lets them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the modules in `FOLDER` of the test's module and `BESIDE` it importable by name, in that module alone."""
    folder: Path | None = getattr(request.module, "FOLDER", None)
    if folder is None:  # needs only what pytest's own path has: benchmarks/baselines
        yield
        return
    before, folders = (
        list(sys.path),
        [folder, *map(folder.with_name, ("shared", *getattr(request.module, "BESIDE", ())))],
    )
    names = {file.stem for each in folders for file in each.glob("*.py")}
    sys.path[:0] = map(str, folders)
    yield
    sys.path[:] = before
    for name in names - {"__main__"}:
        sys.modules.pop(name, None)
