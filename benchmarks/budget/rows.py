"""The table of a contest, and the runs that it is made of.

Takes a contest and a store of records; gives lines of Markdown, and makes the runs that are not recorded. A record
belongs to the version of the library that made it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from contests import Contest
from page import figures, made_by, table
from starts import measure_teacher
from store import Record, Store, library_version
from subject import TextSubject
from ways import Way, with_tokens_of_training_texts

from wid_hf import WidError, get_wid_model
from wid_hf.budget import Target
from wid_hf.hub.model_size import model_size

OF_CORPUS = ", tokens of the training texts"


def contest_lines(
    contest: Contest, ways: Mapping[str, Way], targets: Sequence[str], store: Store, seconds: float
) -> list[str]:
    """Return a table of students of these sizes.

    Args:
        contest: the teacher and what was measured elsewhere.
        ways: to a student, by what the table calls them.
        targets: some of the contest's.
        store: of records.
        seconds: that a search may take.
    """
    subject = contest.subject
    asked = {"what": "teacher", "teacher": subject.name, "scored": subject.scored_texts, "start": "teacher"}
    whole = store.get(asked, lambda: measure_teacher(subject))
    if whole is None:
        return [f"{subject.name}: no run is finished yet.", ""]
    rows = [["", "teacher", f"{whole['parameters']:,}", *figures(whole, subject.figures), ""]]
    found: list[Record] = [whole]
    missing = 0
    for target in targets:
        for name, record in _records(contest, ways, target, store, seconds):
            missing += record is None
            if record is not None:
                found.append(record)
                rows.append(_row(target, name, record, subject))
        rows += _quoted(contest, target)
    told = f"Scored on {subject.scored_texts} held out, calibrated on {subject.calibration_texts}, one seed. "
    left = f" {missing} runs are missing." if missing else ""
    columns = ("at most", "method", "parameters", *subject.figures, "sizes, or where the figure stands")
    return [f"{told}{made_by(found)}{left}", *table(columns, rows)]


def _records(
    contest: Contest, ways: Mapping[str, Way], target: str, store: Store, seconds: float
) -> Iterator[tuple[str, Record | None]]:
    subject, most = contest.subject, Target(params=contest.targets[target])
    settings = {
        "what": "budget",
        "teacher": subject.name,
        "target": target,
        "texts": subject.calibration_texts,
        "scored": subject.scored_texts,
        "seconds": seconds,
        "library": library_version(),
    }
    for name, way in ways.items():
        record = store.get({**settings, "method": name}, lambda way=way: measured(subject, way, most, seconds))
        yield name, record
        if target in contest.of_corpus:
            title = name + OF_CORPUS
            make = lambda way=way: measured_of_corpus(subject, way, most, seconds)  # noqa: E731
            yield title, store.get({**settings, "method": title}, make)


def measured(subject: TextSubject, way: Way, target: Target, seconds: float) -> Record:
    """Return figures of the student that a way leads to, or the reason why it leads to none."""
    batches = subject.calibration(0)
    teacher = subject.teacher()
    began = time.perf_counter()
    try:
        chosen = way(teacher, target, batches, seconds)
        chosen_after = time.perf_counter() - began
        model = get_wid_model(teacher, chosen.config, calibration_data=batches)
    except WidError as refusal:
        return {"refused": str(refusal)}
    return {
        "choice_seconds": chosen_after,
        "start_seconds": time.perf_counter() - began - chosen_after,
        "told": chosen.told,
        "layers": {stack.title: list(stack.kept or ()) for stack in model.base_model.stacks},
        "scores": subject.score(model),
        "parameters": model_size(model.merge_and_unload()).total,
    }


def measured_of_corpus(subject: TextSubject, way: Way, target: Target, seconds: float) -> Record:
    """Return the same for the teacher without the tokens that its training texts lack."""
    with TemporaryDirectory() as folder:
        fewer = replace(subject, folder=with_tokens_of_training_texts(subject, Path(folder)))
        return {**measured(fewer, way, target, seconds), "tokens": len(fewer.tokenizer)}


def _row(target: str, name: str, record: Record, subject: TextSubject) -> list[str]:
    if "refused" in record:
        return [target, name, "", *[""] * len(subject.figures), f"refused: {' '.join(record['refused'].split())}"]
    kept = [f"layers {', '.join(map(str, layers))}" for layers in record["layers"].values() if layers]
    tokens = [f"{record['tokens']:,} tokens"] if "tokens" in record else []
    told = "; ".join([*tokens, *kept, record["told"]])
    return [target, name, f"{record['parameters']:,}", *figures(record, subject.figures), told]


def _quoted(contest: Contest, target: str) -> Iterator[list[str]]:
    for each in contest.quoted.get(target, ()):
        cells = [each.figure if name == contest.figure else "" for name in contest.subject.figures]
        yield [target, f"{each.method} (quoted)", each.parameters, *cells, each.source]
