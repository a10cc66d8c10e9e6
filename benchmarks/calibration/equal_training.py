"""Sections of docs/results.md about equal training from whole starts: compactors, or the student they merge to.

Takes a subject, starts, steps and a store of records; gives lines of Markdown, and makes the runs that are not
recorded. A record belongs to the version of the library that made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from page import before_and_after, made_by, table
from starts import Start
from store import Record, Store, library_version
from subject import Sizes, TextSubject
from training import train

TRAINED = COMPACTORS, MERGED = "compactors", "merged student"
# Learning rates with linear decay, by objective: the first of compactors or of a stock student, the second of the
# teacher's weights, which stay where students imitate them.
RATES = {
    "masked-lm": {COMPACTORS: (3e-4, 1e-4), MERGED: (1e-3, 1e-3)},
    "features": {COMPACTORS: (5e-5, 0.0), MERGED: (1e-4, 1e-4)},
    "token-classification": {COMPACTORS: (1e-4, 0.0), MERGED: (1e-4, 1e-4)},
}


@dataclass(frozen=True)
class Training:
    """How a student trains: from which start, what of it, for how many steps of how many texts."""

    start: str
    trained: str
    steps: int
    batch_size: int


def equally_trained(
    subject: TextSubject,
    sizes: Mapping[str, Sizes],
    starts: Mapping[str, Start],
    store: Store,
    *,
    steps: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    trained: Sequence[str] = TRAINED,
) -> list[str]:
    """Return a table of students after equally many steps, and of merged ones after as many seconds as compactors had.

    How many steps these are follows from the seconds per step of the first seed's runs; without both there is no row
    of equal seconds.
    """

    def runs(width: str, training: Training) -> list[Record]:
        made = (_run(subject, sizes[width], starts, store, training, seed) for seed in seeds)
        return [record for record in made if record is not None]

    rows: list[list[str]] = []
    done: list[Record] = []
    for width in sizes:
        for start in starts:
            for count in steps:
                found = {
                    each: runs(width, Training(start, each, count, batch_size)) for each in TRAINED if each in trained
                }
                if len(found) == len(TRAINED) and all(found.values()):
                    again = _as_many_seconds(*(records[0] for records in found.values()))
                    found["merged student, equal seconds"] = runs(width, Training(start, MERGED, again, batch_size))
                rows += [_row(subject, width, start, each, records) for each, records in found.items() if records]
                done += [record for records in found.values() for record in records]
    if not rows:
        return [f"{subject.name}: no run is finished yet.", ""]
    columns = ["width", "start", "trained", "steps", "seeds", *subject.figures, "seconds", "seconds per step"]
    return [
        f"Steps of {batch_size} texts of at most {subject.max_length} tokens, scored on {subject.scored_texts} others; "
        f"before → after. Learning rates with linear decay: {_told_rates(subject)}. {made_by(done)}",
        *table(columns, rows),
    ]


def _run(
    subject: TextSubject, sizes: Sizes, starts: Mapping[str, Start], store: Store, training: Training, seed: int
) -> Record | None:
    start, rates = starts[training.start], RATES[subject.objective][training.trained]
    settings = {
        "what": "equal-training",
        "teacher": subject.name,
        "start": training.start,
        "calibration": dict(start.calibration),
        "trained": training.trained,
        "sizes": dict(sizes),
        "steps": training.steps,
        "batch_size": training.batch_size,
        "rates": list(rates),
        "seed": seed,
        "library": library_version(),
    }
    return store.get(
        settings,
        lambda: train(
            subject,
            sizes,
            start,
            steps=training.steps,
            batch_size=training.batch_size,
            rates=rates,
            seed=seed,
            merged=training.trained == MERGED,
        ),
    )


def _as_many_seconds(compactors: Record, student: Record) -> int:
    """Return the steps for which a student trains in the seconds that compactors had."""
    return round(compactors["training_seconds"] / _per_step(student))


def _per_step(record: Record) -> float:
    return record["training_seconds"] / record["settings"]["steps"]


def _row(subject: TextSubject, width: str, start: str, trained: str, records: Sequence[Record]) -> list[str]:
    return [
        width,
        start,
        trained,
        f"{records[0]['settings']['steps']:,}",
        str(len(records)),
        *before_and_after(records, subject.figures),
        f"{mean(record['training_seconds'] for record in records):.0f}",
        f"{mean(_per_step(record) for record in records):.3f}",
    ]


def _told_rates(subject: TextSubject) -> str:
    rates = RATES[subject.objective].items()
    return "; ".join(f"{trained} {first:g} / {second:g}" for trained, (first, second) in rates)
