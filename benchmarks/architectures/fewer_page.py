"""The section of docs/coverage.md on fewer layers and fewer tokens, and the records it is made of.

Takes what was found for all families, gives lines of Markdown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import transformers
from fewer import Fewer, Found
from page import table

MARK = "fewer layers and tokens"
CHECKS = {"layers": "counts layers", "tokens": "has a vocabulary"}
STATUSES = ("works", "partly", "refused", "wrong")


def read_fewer(line: str) -> tuple[Fewer, str]:
    """Return what was found, and by which version of the library."""
    fields = json.loads(line)
    library = fields.pop("library")
    for check in CHECKS:
        fields[check] = Found(**{**fields[check], "entries": tuple(fields[check]["entries"])})
    return Fewer(**fields), library


def is_settled(found: Fewer) -> bool:
    """Return whether nothing is left to mend."""
    return all(getattr(found, check).status in ("works", "none") for check in CHECKS)


def shares(found: Sequence[Fewer]) -> list[str]:
    """Return a line for layers and one for tokens: of how many pairs they work."""
    lines = []
    for check, has in CHECKS.items():
        counts = Counter(getattr(each, check).status for each in found)
        of = sum(counts[status] for status in STATUSES)
        share = f"{100 * counts['works'] / of:.0f} %" if of else "none"
        listed = ", ".join(f"{counts[status]} {status}" for status in STATUSES[1:])
        left = f"{counts['not built']} not built" if counts["not built"] else "all built"
        lines.append(
            f"fewer {check}: works for {counts['works']} of {of} whose config {has} ({share}); {listed}; {left}"
        )
    return lines


def fewer_lines(found: Sequence[Fewer], tasks: Sequence[str]) -> Iterator[str]:
    """Yield the section: shares, and one table per task."""
    yield from (
        "## Fewer layers, fewer tokens",
        f"Written by `python benchmarks/architectures --fewer` with transformers {transformers.__version__}; do not "
        "edit. *Layers*: a tiny model of each family lost one layer of every stack that its config counts. The student "
        "without calibration is the teacher past the layers that data chose; with calibration it merges with "
        "difference 0; the stock class saves and loads it. *Tokens*: a model with half of them, and all special ones, "
        "gives the same outputs for these, also once it is saved and loaded. *Partly* means that some of its stacks "
        "can be shorter; an empty cell, that there is nothing to have fewer of.",
        "",
        *(f"- {line}" for line in shares(found)),
    )
    for task in tasks:
        rows = [
            (
                each.family,
                _word(each.layers),
                ", ".join(f"`{entry}`" for entry in each.layers.entries),
                _word(each.tokens),
                cell("; ".join(dict.fromkeys(reason for reason in (each.layers.reason, each.tokens.reason) if reason))),
            )
            for each in found
            if each.task == task
        ]
        if rows:
            yield from ("", f"### {task}: layers and tokens")
            yield from table(("family", "layers", "counted by", "tokens", "reason"), rows)


def cell(text: str) -> str:
    """Return a text as a cell of a table may hold it."""
    return text.replace("|", "\\|").replace("\n", " ")


def _word(found: Found) -> str:
    return "" if found.status == "none" else found.status
