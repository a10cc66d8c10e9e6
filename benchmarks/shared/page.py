"""A page of docs with one section for each command, replaced when its command ran again.

Takes records, gives Markdown tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from store import Record


def write_section(page: Path, head: str, title: str, lines: Iterable[str]) -> str:
    """Put a section into `page` in the place of the one with this title, or at its end, and return it.

    A new page begins with `head`.
    """
    section = "\n".join([f"## {title}", *lines]).rstrip("\n") + "\n"
    text = page.read_text(encoding="utf-8") if page.exists() else head
    before, found, rest = text.partition(f"\n## {title}\n")
    _, more, after = rest.partition("\n## ")
    page.write_text(
        before.rstrip("\n") + "\n\n" + section + (f"\n## {after}" if found and more else ""), encoding="utf-8"
    )
    return section


def write_between(page: Path, head: str, mark: str, lines: Iterable[str]) -> None:
    """Put lines between two comments with a mark into `page`, or at its end if it has none; the rest stays.

    A new page begins with `head`.
    """
    begin, end = f"<!-- begin {mark} -->\n", f"<!-- end {mark} -->\n"
    text = page.read_text(encoding="utf-8") if page.exists() else head
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if found and not closed:
        raise ValueError(f"{page} has no `{end.strip()}` after `{begin.strip()}`.")
    body = "\n".join(lines).rstrip("\n") + "\n"
    before = before if found else before.rstrip("\n") + "\n\n"
    page.write_text(before + begin + body + end + after, encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return ["", *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)), ""]


def figures(record: Record, styles: Mapping[str, str]) -> list[str]:
    """Return the scores of a record as a table writes them."""
    return [format(record["scores"][name], style) for name, style in styles.items()]


def before_and_after(records: Sequence[Record], styles: Mapping[str, str]) -> list[str]:
    """Return for each score `mean before -> mean after ± standard deviation` over records; one has no deviation."""
    cells = []
    for name, style in styles.items():
        start, end = ([record[when][name] for record in records] for when in ("before", "scores"))
        cells.append(f"{format(mean(start), style)} → {spread(end, style)}")
    return cells


def spread(values: Sequence[float], style: str) -> str:
    """Return `mean ± standard deviation`; one value has no deviation."""
    return format(mean(values), style) + (f" ± {format(stdev(values), style)}" if len(values) > 1 else "")


def made_by(records: Iterable[Record]) -> str:
    """Return on what the records were made, and from which commits."""
    records = list(records)
    machines = "; ".join(sorted({record["hardware"] for record in records}))
    return f"{machines}; commit {', '.join(sorted({record['commit'] for record in records}))}."
