"""Sections of docs/starts.md about single pieces of the start and about short trainings.

Takes a subject with starts and a store of records; gives lines of Markdown, and makes the runs that are not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from curves import draw_curves
from page import before_and_after, figures, made_by, table
from starts import SCHEDULES, STARTS, Start, measure_start, measure_teacher
from store import Record, Store
from subject import TextSubject
from training import train

ALL = STARTS | SCHEDULES


def untrained(subject: TextSubject, store: Store, widths: list[str] | None, starts: Mapping[str, Start]) -> list[str]:
    """Return lines about these starts of all students of a subject, or of those of these widths."""
    data = {"calibration": subject.calibration_texts, "scored": subject.scored_texts, "length": subject.max_length}
    ask = {"what": "untrained", "teacher": subject.name}
    whole = store.get({**ask, "start": "teacher", **data}, lambda: measure_teacher(subject))
    records: dict[tuple[str, str], Record] = {}
    wanted = {width: sizes for width, sizes in subject.sizes.items() if not widths or width in widths}
    for width, sizes in wanted.items():
        for name, start in starts.items():
            made = store.get(
                {**ask, "start": name, "sizes": dict(sizes), **data},
                lambda sizes=sizes, start=start: measure_start(subject, sizes, start, subject.calibration(seed=0)),
            )
            if made is not None:
                records[width, name] = made
    rows = [["", "teacher", f"{whole['parameters']:,}", *figures(whole, subject.figures), "", ""]] if whole else []
    rows += [
        [
            width,
            name,
            f"{made['parameters']:,}",
            *figures(made, subject.figures),
            f"{made['start_seconds']:.0f} ({made['start_cpu_seconds']:.0f})",
            f"{made['start_gigabytes']:.2f}",
        ]
        for (width, name), made in records.items()
    ]
    if not rows:
        return [f"{subject.name}: no run is finished yet.", ""]
    missing = len(wanted) * len(starts) - len(records)
    head = ["width", "start", "parameters", *subject.figures, "seconds (CPU)", "GB beyond the models"]
    return [
        f"**{subject.name}**, calibrated on {subject.calibration_texts} texts and scored on {subject.scored_texts} "
        f"others of at most {subject.max_length} tokens, one seed. {made_by(records.values())}"
        + (f" {missing} runs are missing." if missing else ""),
        *table(head, rows),
    ]


def trained(
    command: str,
    told: str,
    subject: TextSubject,
    store: Store,
    runs: Mapping[str, tuple[str, tuple[float, float]]],
    steps: int,
    seeds: int,
    batch_size: int,
    picture: Path | None = None,
) -> list[str]:
    """Return lines about trainings: `runs` are starts with learning rates, by the name that the table has for them.

    The first line is the whole `command` and what is `told` of it.
    Losses and widths of the first seed's runs are drawn to `picture`.
    """
    head = [
        f"`python benchmarks/calibration {command} --steps {steps} --seeds {seeds} --batch-size {batch_size}`: {told}",
        "",
    ]
    sizes = subject.sizes["1/2"]
    found: dict[str, list[Record]] = {name: [] for name in runs}
    for seed in range(seeds):  # first all with one seed, so that what a short time allows can be compared
        for name, (start, rates) in runs.items():
            settings = {
                "what": "trained",
                "teacher": subject.name,
                "start": start,
                "sizes": dict(sizes),
                "steps": steps,
                "batch_size": batch_size,
                "rates": list(rates),
                "seed": seed,
                "calibration": subject.calibration_texts,
                "scored": subject.scored_texts,
                "length": subject.max_length,
            }
            made = store.get(
                settings,
                lambda start=start, rates=rates, seed=seed: train(
                    subject, sizes, ALL[start], steps=steps, batch_size=batch_size, rates=rates, seed=seed
                ),
            )
            if made is not None:
                found[name].append(made)
    done = [made for records in found.values() for made in records]
    if not done:
        return [*head, f"{subject.name}: no run is finished yet.", ""]
    missing = len(runs) * seeds - len(done)
    if picture is not None:
        draw_curves({name: records[0] for name, records in found.items() if records}, picture)
    became = any(made.get("narrow_from") for made in done)
    rows = [
        [
            name,
            str(len(records)),
            *before_and_after(records, subject.figures),
            f"{records[0]['training_seconds']:.0f}",
            *([str(records[0]["narrow_from"] or "")] if became else []),
        ]
        for name, records in found.items()
        if records
    ]
    return [
        *head,
        f"**{subject.name}**, {steps} steps of {batch_size} texts of at most {subject.max_length} tokens, scored on "
        f"{subject.scored_texts} others; before → after. {made_by(done)}"
        + (f" {missing} runs are missing." if missing else ""),
        *table(["run", "seeds", *subject.figures, "seconds", *(["narrow from step"] if became else [])], rows),
    ]
