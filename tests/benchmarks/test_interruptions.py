"""The random stops of `benchmarks/interruptions`, a few of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_few_random_stops_lose_nothing_and_are_written_down(tmp_path: Path) -> None:
    words = ["--stops", "16", "--records", str(tmp_path / "records"), "--page", str(tmp_path / "page.md")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "interruptions"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = (tmp_path / "records" / "interruptions").iterdir()
    found = json.loads(record.read_text())["found"]
    assert len(found) == 16 and not any(each["lost"] or each["left"] or each["broken"] for each in found)
    assert "| SIGTERM | " in (tmp_path / "page.md").read_text()
