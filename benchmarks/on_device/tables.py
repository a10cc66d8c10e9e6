"""What the records of a GPU say, in Markdown.

Takes the folder that `python benchmarks/gpu.py` filled, gives lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def tables(folder: Path) -> list[str]:
    """Return what the records of a folder say, in Markdown."""
    lines: list[str] = []
    for name in ("machine", "llama", "progressive", "memory"):
        if found := _read(folder / f"{name}.json"):
            lines += [f"- {name}: {'holds' if found['held'] else 'fails'}, {found['hardware']}"]
            sizes = found.get("steps", {}) | ({"calibration": found["calibration"]} if "calibration" in found else {})
            for what, each in sizes.items():
                lines += [f"  - {what}: " + ", ".join(f"{key} {size / 1e9:.2f} GB" for key, size in each.items())]
    if found := _read(folder / "tests.json"):
        lines += ["- tests: " + ", ".join(f"{count} {end}" for end, count in found["counts"].items())]
    lines += ["", "| step | teacher | what | ms | x bare |", "| --- | --- | --- | --- | --- |"]
    for record in _read(folder / "speed.json") or []:
        asked = record["settings"]
        for what, each in record.get("variants", {}).items():
            mode = asked["compile_mode"] if asked["compiled"] else "eager"
            cells = (f"{1e3 * each['seconds']:.1f}", f"{each['ratio']:.2f}") if each else ("out of memory", "")
            lines += [f"| {mode} | {asked['teacher']} | {what} | {' | '.join(cells)} |"]
        lines += [f"| once |  | {what} | {1e3 * took:.0f} |  |" for what, took in record.get("once", {}).items()]
    lines += ["", "| start | trained | steps | seeds | accuracy before | after | seconds |", "| --- " * 7 + "|"]
    rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for record in _read(folder / "trainings.json") or []:
        asked = record["settings"]
        rows.setdefault((asked["start"], asked["trained"], asked["steps"]), []).append(record)
    for (start, trained, steps), records in sorted(rows.items()):
        before, after = ([each[when]["accuracy"] for each in records] for when in ("before", "scores"))
        seconds = mean(each["training_seconds"] for each in records)
        cells = (start, trained, f"{steps:,}", str(len(records)), _spread(before), _spread(after), f"{seconds:.0f}")
        lines += [f"| {' | '.join(cells)} |"]
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
