"""Sections of docs/starts.md about whole starts of many teachers: how good they are, and how long they take.

Takes cases with starts and a store of records; gives lines of Markdown, and makes the runs that are not recorded.
A record belongs to the version of the library that made it, so that versions can stand beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from cases import CalibrationTexts, Case
from page import figures, made_by, table
from starts import Start, measure_seconds, measure_start, measure_teacher
from store import Record, Store, library_version
from subject import Sizes


def started(case: Case, starts: Mapping[str, Start], store: Store, versions: Sequence[str] = ()) -> list[str]:
    """Return a table of these starts of all students of a case from all its texts.

    Args:
        case: the students and the texts.
        starts: by what the table calls them.
        store: of records.
        versions: of the library, whose records stand beside those of this one if there are any.
    """
    subject = case.subject
    whole = store.get({**_asked(case, "teacher"), "start": "teacher"}, lambda: measure_teacher(subject))
    found: list[Record] = []
    missing = 0
    for width, sizes, texts, make in _pairs(case):
        for name, start in starts.items():
            asked = {**_settings(case, width, sizes, texts), "start": name, "calibration": dict(start.calibration)}
            here = store.get(
                {**asked, "library": library_version()},
                lambda sizes=sizes, start=start, make=make: measure_start(subject, sizes, start, make(subject)),
            )
            missing += here is None
            found += [here] if here else []
        found += [record for record in store.records("start") if _is_of(record, case, width, texts, versions)]
    if whole is None or not found:
        return [f"{subject.name}: no run is finished yet.", ""]
    rows = [["", "", "teacher", "", f"{whole['parameters']:,}", *figures(whole, subject.figures), "", ""]]
    for record in found:
        asked = record["settings"]
        rows.append(
            [
                asked["width"],
                asked["texts"],
                asked["start"],
                asked["library"],
                f"{record['parameters']:,}",
                *figures(record, subject.figures),
                f"{record['start_seconds']:.0f} ({record['start_cpu_seconds']:.0f})",
                f"{record['start_gigabytes']:.2f}",
            ]
        )
    columns = ["width", "calibrated on", "start", "library", "parameters", *subject.figures]
    return [
        f"Scored on {subject.scored_texts} held out, one seed. {made_by(found)}"
        + (f" {missing} runs are missing." if missing else ""),
        *table([*columns, "seconds (CPU)", "GB beyond the models"], rows),
    ]


def timed(case: Case, starts: Mapping[str, Start], store: Store, rounds: int) -> list[str]:
    """Return a table of the seconds of two starts that take turns, and their ratio."""
    (first, second), subject = starts, case.subject
    found = []
    for width, sizes, texts, make in _pairs(case):
        asked = {
            **_settings(case, width, sizes, texts),
            "what": "start-time",
            "starts": {name: dict(start.calibration) for name, start in starts.items()},
            "rounds": rounds,
            "library": library_version(),
        }
        made = store.get(
            asked,
            lambda sizes=sizes, make=make: measure_seconds(subject, sizes, starts, make(subject), rounds),
        )
        found += [made] if made else []
    rows = []
    for record in found:
        seconds = record["rounds"]
        ratios = [late / early for early, late in zip(seconds[first], seconds[second], strict=True)]
        rows.append(
            [
                record["settings"]["width"],
                record["settings"]["texts"],
                *(f"{median(seconds[name]):.1f}" for name in starts),
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        )
    if not rows:
        return [f"{subject.name}: no run is finished yet.", ""]
    columns = ["width", "calibrated on", f"seconds, {first}", f"seconds, {second}", "ratio (least to most)"]
    return [f"Medians of {rounds} rounds, in which both starts take turns. {made_by(found)}", *table(columns, rows)]


def _pairs(case: Case) -> Iterator[tuple[str, Sizes, str, CalibrationTexts]]:
    for width, sizes in case.sizes.items():
        for texts, make in case.texts.items():
            yield width, sizes, texts, make


def _asked(case: Case, what: str) -> Record:
    return {"what": what, "teacher": case.subject.name, "scored": case.subject.scored_texts}


def _settings(case: Case, width: str, sizes: Sizes, texts: str) -> Record:
    return {**_asked(case, "start"), "width": width, "sizes": dict(sizes), "texts": texts}


def _is_of(record: Record, case: Case, width: str, texts: str, versions: Sequence[str]) -> bool:
    asked = record["settings"]
    place = asked["teacher"], asked["width"], asked["texts"]
    return asked["library"] in set(versions) - {library_version()} and place == (case.subject.name, width, texts)
