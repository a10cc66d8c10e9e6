"""The page: the reports of a folder as HTML that needs no other file and no network.

Takes a folder; writes `report.html`, and the PNGs that are drawn for it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from ....atomic_write import atomic_write
from ....errors import OutputError
from ....extras import extra
from ....hub.paths import expanded
from ...evaluation.runs import write_json
from . import tables
from .attention import AttentionTexts, compare_recipes
from .found import Found, Run, read_folder
from .pictures import draw_losses, draw_quality
from .recipes import Recipe, lower_is_better, recipes, teacher_figures

with extra("cli"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

PAGE_NAME = "report.html"
GENERATOR = '<meta name="generator" content="wid-hf">'
TEMPLATE_NAME = "report.html"
TEMPLATES = Path(__file__).parents[1] / "templates"
# Pictures that other parts write beside a report; all others have their file's name.
TITLES = {"calibration": "What calibration restored", "widths": "Widths over steps"}


@dataclass(frozen=True)
class Picture:
    """A PNG in the page."""

    title: str
    source: str

    @classmethod
    def of(cls, title: str, path: Path) -> Picture:
        """Return the PNG at `path` as part of a page."""
        return cls(title, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}")


@dataclass
class Part:
    """All runs from one teacher by one objective."""

    teacher: str
    objective: str
    summary: tables.Table
    comparison: tables.Table
    other_texts: bool
    pictures: list[Picture] = field(default_factory=list)
    attention: tables.Table | None = None
    maps: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_html_report(
    folder: str | Path, output: str | Path | None = None, *, attention: AttentionTexts | None = None
) -> Path:
    """Write a page about every `wid_report.json` and `eval_report.json` in `folder` and below it.

    Args:
        folder: holds outputs of `wid-hf compress` and `wid-hf eval`, also in subfolders.
        output: folder for `report.html`, the PNGs in it and, with `attention`, `attention.json`; by default `report`
            in `folder`. Files of earlier calls are replaced; a folder that holds others and no page is refused.
        attention: texts to compare attention on; the teachers and students are loaded for it.

    Returns:
        The page's path.

    Raises:
        WidError: `folder` holds no report, `output` cannot be written, or attention cannot be compared.
    """
    folder = Path(expanded(folder))
    output = folder / "report" if output is None else Path(expanded(output))
    _check_output(output)
    found = read_folder(folder)
    texts = attention.load() if attention is not None else None
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The output {output} cannot be a folder: {error}. Name another with output=.") from error
    together: dict[tuple[str, str], list[Run]] = {}
    for run in found.runs:
        together.setdefault((run.teacher, run.text("objective") or tables.ABSENT), []).append(run)
    parts = [
        _part(teacher, objective, runs, found, output / f"{number}", attention, texts)
        for number, ((teacher, objective), runs) in enumerate(together.items(), start=1)
    ]
    page = _render(
        folder=folder.resolve().name,
        found=found,
        parts=parts,
        tasks=tables.tasks(found.evaluations, found),
        evaluations=[
            {"name": name, "commands": each.command, "facts": tables.evaluation_facts(each)}
            for name, each in found.evaluations.items()
        ],
        runs=[
            {
                "run": run,
                "anchor": tables.anchor(run),
                "facts": tables.facts(run),
                "pictures": _beside(run),
                "command": run.text("command"),
            }
            for run in found.runs
        ],
    )
    path = output / PAGE_NAME
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _check_output(output: Path) -> None:
    """Refuse a folder with files but without a page of wid-hf: pictures would replace files of the same names."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"The output {output} cannot be a folder: it is a file. Name another with output=.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    page = output / PAGE_NAME
    if not page.is_file() or GENERATOR not in page.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(
            f"The output {output} holds files and no {PAGE_NAME} of wid-hf, so nothing is written there. Name another "
            "folder with output=."
        )


def _part(
    teacher: str,
    objective: str,
    runs: Sequence[Run],
    found: Found,
    prefix: Path,
    chosen: AttentionTexts | None,
    texts: Dataset | None,
) -> Part:
    made = recipes(runs, found)
    of_teacher = teacher_figures(runs, found)
    names = list(dict.fromkeys([*of_teacher, *(name for recipe in made for each in recipe.figures for name in each)]))
    ordered = [run for recipe in made for run in recipe.runs]
    part = Part(
        teacher,
        objective,
        tables.summary(ordered),
        tables.comparison(made, of_teacher, names),
        tables.scored_on_other_texts(runs),
    )
    size = runs[0].number("sizes", "teacher", "encoder")
    shown = [name for name in names if not lower_is_better(name) and any(recipe.figure(name) for recipe in made)]
    if size and shown:
        path = prefix.with_name(f"quality-{prefix.name}.png")
        draw_quality(made, of_teacher, size, shown, path)
        part.pictures.append(Picture.of("Quality against size", path))
    if any(run.losses for run in runs):
        path = prefix.with_name(f"losses-{prefix.name}.png")
        draw_losses(made, path)
        part.pictures.append(Picture.of("Training loss", path))
    else:
        part.notes.append("No run here recorded a training loss.")
    if chosen is not None and texts is not None:
        _add_attention(part, made, chosen, texts, prefix)
    return part


def _add_attention(part: Part, made: list[Recipe], chosen: AttentionTexts, texts: Dataset, prefix: Path) -> None:
    there = [recipe for recipe in made if (recipe.first.folder / "config.json").is_file()]
    if lost := [recipe.first.name for recipe in made if recipe not in there]:
        part.notes.append(f"No attention of {', '.join(lost)}: the student is not beside its report.")
    if not there:
        return
    drawn = [prefix.with_name(f"attention-{kind}-{prefix.name}.png") for kind in ("divergence", "maps")]
    found = compare_recipes(there, chosen, texts, *drawn)
    write_json(
        prefix.with_name(f"attention-{prefix.name}.json"),
        {"teacher": part.teacher, "texts": chosen.source, "students": {k: v.to_dict() for k, v in found.items()}},
    )
    part.attention = tables.attention(found)
    part.maps = [
        Picture.of("Divergence of attention from the teacher's, head by head", drawn[0]),
        Picture.of("Attention maps of one text", drawn[1]),
    ]


def _beside(run: Run) -> list[Picture]:
    return [Picture.of(TITLES.get(path.stem, path.stem), path) for path in run.pictures]


def _render(**values: Any) -> str:
    # Autoescaping: names of models, commands and errors come from outside.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE_NAME).render(**values)
