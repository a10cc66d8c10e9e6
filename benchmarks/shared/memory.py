"""The resident memory of this process at its peak (Linux)."""

from __future__ import annotations

from pathlib import Path


def reset_peak() -> float:
    """Forget this process's peak of resident memory and return what it holds now, in GB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Return the peak of resident memory since the start or the last `reset_peak`, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9
