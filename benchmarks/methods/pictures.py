"""Pictures of docs/results.md, drawn from records.

Takes comparisons of attention, or scores by size; writes PNGs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator
from store import Record

from wid_hf.atomic_write import atomic_write
from wid_hf.tools.evaluation.attention import AttentionComparison
from wid_hf.tools.reports.html_report.attention_plots import draw_divergence


def draw_attention(students: Mapping[str, Record], path: Path) -> None:
    """Draw the divergence of every head of each student."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comparisons = {
        name: AttentionComparison(found["divergence"], found["matched"], found["positions"])
        for name, found in students.items()
    }
    draw_divergence(comparisons, path)


def draw_curve(curves: Mapping[str, Sequence[Record]], figures: Sequence[str], path: Path) -> None:
    """Draw each figure over parameters, a line per method, dotted before training; the teacher's is a level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5.2 * len(figures), 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        sizes = sorted({record["parameters"] for records in curves.values() for record in records})
        for at, (title, records) in enumerate(curves.items()):
            x = [record["parameters"] for record in records]
            for when, line, label in (("student", "o-", title), ("start", "o:", f"{title}, before training")):
                y = [record["scores"][when][name] for record in records]
                axes.plot(x, y, line, color=f"C{at}", label=label, linewidth=1.4, markersize=5)
        whole = next(iter(curves.values()))[0]["scores"]["teacher"][name]
        axes.axhline(whole, color="0.5", linestyle="--", linewidth=1, label="teacher")
        axes.set_xscale("log")
        axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(EngFormatter(places=1))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="parameters", title=name.replace("_", " "))
        axes.grid(color="0.92", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=130)
