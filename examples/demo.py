"""Halves the width of MiniLM-L6 on this machine and shows what it cost and what it won.

Takes a folder for its results; fetches the teacher, gathers a corpus, trains the student, prints and draws a
before/after table from what was measured, and proves that the student needs no wid_hf. Called as
`python examples/demo.py`, by `make demo`; a second run takes up again what the first left in the folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from corpus import documentation_texts
from fetch_teacher import TeacherName, fetch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from wid_hf import WidConfig, WidError
from wid_hf.atomic_write import atomic_write
from wid_hf.hub.own_files import CALIBRATION_PICTURE, FILE_NAME
from wid_hf.rows import load_texts
from wid_hf.sentence_models.pooling import mean_pool
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.evaluation import latency
from wid_hf.tools.output_folder import OutputFolder, write_folder

CONFIG = WidConfig(hidden_size=192, intermediate_size=768, head_strategy="dim")
SETTINGS = CompressSettings(steps=280, batch_size=16, max_length=32)
SENTENCE = "Return the index of the first item that is equal to the given value."
TIMED_TEXTS = 32
TIMED_ROUNDS = 3  # teacher and student take turns, so that a busy moment hits both
TOLERANCE = 1e-6

# Runs in a process of its own. None in sys.modules makes every import of wid_hf fail, installed or not.
WITHOUT_WID = """
import json, sys
sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}".partition("\\n")[0], file=sys.stderr)
sys.modules["wid_hf"] = None
try:
    import wid_hf
except ImportError as error:
    refusal = str(error)
else:
    sys.exit("wid_hf could be imported, so this proves nothing")
import torch
from transformers import AutoModel, AutoTokenizer
folder, sentence = sys.argv[1:]
model = AutoModel.from_pretrained(folder)
with torch.no_grad():
    tokens = AutoTokenizer.from_pretrained(folder)(sentence, return_tensors="pt")
    states = model(**tokens).last_hidden_state
vector = torch.nn.functional.normalize(states.mean(1), dim=1)[0].tolist()
print(json.dumps({"refusal": refusal, "class": type(model).__name__, "vector": vector}))
"""


@dataclass(frozen=True)
class Row:
    """One figure of teacher and student, and of the student before training where it was measured.

    Attributes:
        label: what it is, with its unit.
        style: how a value is written, for `format`.
        values: by column: `teacher`, `start`, `student`.
        shared: whether the student's value is worth stating as a share of the teacher's.
    """

    label: str
    style: str
    values: dict[str, float]
    shared: bool = True

    def text(self, column: str) -> str:
        """Return the value of `column` as it is printed and drawn, empty where there is none."""
        return format(self.values[column], self.style) if column in self.values else ""

    def share(self) -> str:
        """Return the student's share of the teacher's value, empty where it says nothing."""
        return f"{self.values['student'] / self.values['teacher']:.1%}" if self.shared else ""


COLUMNS = {"teacher": "teacher", "start": "student before training", "student": "student"}


def demonstrate(
    teacher: Path,
    output: Path,
    texts: Callable[[], list[str]],
    config: WidConfig,
    settings: CompressSettings,
    *,
    retrain: bool = False,
    console: Console | None = None,
) -> list[Row]:
    """Make, measure and prove a student of `teacher` in `output`; print and return the rows of the table.

    Args:
        teacher: folder of a headless encoder and its tokenizer.
        output: gets `corpus/`, `student/` and `before_after.png`; what is there already is used again.
        texts: gives the corpus, when there is none yet.
        config: the student's sizes.
        settings: how to train; its held-out texts are taken from `texts`.
        retrain: train also if a student with these settings is there.
        console: where to print.

    Raises:
        WidError: something is missing or wrong, or the proof failed; its text says what to do.
    """
    console = console or Console()
    folder = write_corpus(output / "corpus", texts, settings.validation_texts, console)
    held_out = str(folder / "held_out.jsonl")
    settings = replace(settings, validation=held_out)
    student = output / "student"
    report = train_student(teacher, folder / "train.jsonl", student, config, settings, retrain, console)
    models = {"teacher": AutoModel.from_pretrained(teacher), "student": AutoModel.from_pretrained(student)}
    tokenizer = AutoTokenizer.from_pretrained(student)
    timed = load_texts(held_out)["text"][:TIMED_TEXTS]
    batch = tokenizer(timed, padding=True, truncation=True, max_length=settings.max_length, return_tensors="pt")
    found = rows(report, latencies(models, batch), len(timed))
    title = f"{teacher.name}: {report['steps']} steps, {report['seconds']:.0f} s of training on {report['hardware']}"
    console.print(table(found, title))
    draw(found, title, output / "before_after.png")
    console.print(f"Picture: {output / 'before_after.png'}")
    if (student / CALIBRATION_PICTURE).exists():
        console.print(f"What the calibrated start misses, layer by layer: {student / CALIBRATION_PICTURE}")
    console.print(prove_without_wid(student, embed_sentence(models["student"], tokenizer)))
    return found


def write_corpus(folder: Path, texts: Callable[[], list[str]], held_out: int, console: Console) -> Path:
    """Write `held_out.jsonl` and `train.jsonl` into `folder`, which appears when both are complete, and return it."""
    if folder.is_dir():
        console.print(f"Corpus: {folder} is there and used again")
        return folder
    gathered = texts()

    def write(unfinished: Path) -> None:
        for name, part in (("held_out", gathered[:held_out]), ("train", gathered[held_out:])):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
            (unfinished / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    write_folder(OutputFolder(folder), write)
    console.print(f"Corpus: {len(gathered):,} texts, {held_out} of them held out, are in {folder}")
    return folder


def train_student(
    teacher: Path,
    train: Path,
    student: Path,
    config: WidConfig,
    settings: CompressSettings,
    retrain: bool,
    console: Console,
) -> dict[str, Any]:
    """Train `student` unless one with the same settings is there, and return what its `wid_report.json` holds."""
    report = read_report(student)
    if report is not None and not retrain and was_made_with(report, teacher, train, config, settings):
        console.print(f"Student: {student} was trained with these settings and is used again (--retrain trains anew)")
        return report
    console.print(f"Student: {config.init} start, then {settings.steps} steps of {settings.batch_size} texts")
    compress(str(teacher), str(train), student, config, settings, overwrite=True)
    # Read back, so that what is shown is what the file says.
    return json.loads((student / FILE_NAME).read_text(encoding="utf-8"))


def read_report(student: Path) -> dict[str, Any] | None:
    """Return what the `wid_report.json` of `student` holds, None if there is none that can be read."""
    try:
        return json.loads((student / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def was_made_with(
    report: dict[str, Any], teacher: Path, train: Path, config: WidConfig, settings: CompressSettings
) -> bool:
    """Tell whether `report` is of a run with these very names, sizes and settings."""
    wanted = {
        "teacher": str(teacher),
        "requested": config.requested,
        "start": f"{config.init}, {config.selection}",
    }
    trained = json.loads(json.dumps(asdict(settings) | {"train": str(train)} | config.calibration_config.flat()))
    same_heads = config.head_strategy in ("auto", report.get("head_strategy"))
    return same_heads and wanted.items() <= report.items() and trained.items() <= report["settings"].items()


def latencies(models: dict[str, Any], batch: BatchEncoding) -> dict[str, float]:
    """Return the median seconds that each model takes for `batch`; they take turns."""
    rounds = [{name: latency(model, batch) for name, model in models.items()} for _ in range(TIMED_ROUNDS)]
    return {name: median(seconds[name] for seconds in rounds) for name in models}


def rows(report: dict[str, Any], seconds: dict[str, float], texts: int) -> list[Row]:
    """Return the rows of the table from a report and the measured `seconds` for a batch of `texts`."""

    def size(name: str) -> dict[str, float]:
        return {column: sizes[name] for column, sizes in report["sizes"].items()}

    def score(name: str) -> dict[str, float]:
        return {column: scores[name] for column, scores in report["scores"].items()}

    return [
        Row("parameters", ",", size("total")),
        Row("encoder parameters", ",", size("encoder")),
        Row("bytes of weights", ",", size("bytes")),
        Row(f"ms for {texts} texts, CPU", ".1f", {name: 1000 * value for name, value in seconds.items()}),
        Row("cosine correlation, held out", ".3f", score("cosine_correlation"), shared=False),
        Row("top-1 agreement, held out", ".3f", score("top1_agreement"), shared=False),
    ]


def table(found: list[Row], title: str) -> Table:
    """Return teacher and student side by side."""
    drawn = Table(title=title)
    drawn.add_column()
    widest = max(len(row.text(column)) for row in found for column in COLUMNS)
    for heading in (*COLUMNS.values(), "student / teacher"):
        drawn.add_column(heading, justify="right", min_width=widest)  # labels may wrap, figures never
    for row in found:
        drawn.add_row(row.label, *(row.text(column) for column in COLUMNS), row.share())
    return drawn


def draw(found: list[Row], title: str, path: Path) -> None:
    """Draw one panel of bars per row into the PNG `path`, which appears when it is complete."""
    figure = Figure(figsize=(12, 7), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    figure.suptitle(title)
    for axes, row in zip(figure.subplots(2, 3).flat, found, strict=True):
        draw_row(axes, row)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)


def draw_row(axes: Axes, row: Row) -> None:
    """Draw the values of `row` as bars from 0 that carry their numbers."""
    colours = {"teacher": "#4c566a", "start": "#c9ced6", "student": "#d08770"}
    columns = [column for column in COLUMNS if column in row.values]
    bars = axes.bar(
        [COLUMNS[column].replace(" before", "\nbefore") for column in columns],
        [row.values[column] for column in columns],
        color=[colours[column] for column in columns],
        width=0.6,
    )
    labels = [row.text(column) for column in columns]
    if row.shared:
        labels[-1] += f"\n({row.share()})"
    axes.bar_label(bars, labels, padding=3)
    axes.set_title(row.label, fontweight="bold")
    axes.margins(y=0.2)
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)


def embed_sentence(model: Any, tokenizer: Any) -> Tensor:
    """Return the unit vector `(h,)` of SENTENCE."""
    tokens = tokenizer(SENTENCE, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    return functional.normalize(mean_pool(states, tokens["attention_mask"]), dim=1)[0]


def prove_without_wid(student: Path, expected: Tensor) -> str:
    """Load `student` where wid_hf cannot be imported, compare its vector of SENTENCE, and say how that went.

    Raises:
        WidError: it does not load there, or its vector is not `expected`.
    """
    command = [sys.executable, "-c", WITHOUT_WID, str(student), SENTENCE]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = finished.stderr.strip().rpartition("\n")[2]
        raise WidError(f"Without wid_hf the student in {student} does not load: {reason}. Run again with --retrain.")
    found = json.loads(finished.stdout.splitlines()[-1])
    vector = torch.tensor(found["vector"])
    if vector.shape != expected.shape or not (distance := (vector - expected).abs().max().item()) <= TOLERANCE:
        raise WidError(
            f"Without wid_hf the student in {student} gives another vector than with it (more than {TOLERANCE} "
            "apart), so the folder was changed meanwhile. Run again with --retrain."
        )
    return (
        f"Proof: a process in which wid_hf cannot be imported ({found['refusal']}) loaded the student as a stock "
        f"{found['class']}; its vector differs by {distance:.1e} at most."
    )


def main(
    output: Annotated[Path, typer.Option(help="Folder for corpus, student and picture.")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = SETTINGS.steps,
    teachers: Annotated[Path, typer.Option(help="Folder of fetched teachers.")] = Path(".cache/teachers"),
    retrain: Annotated[bool, typer.Option("--retrain", help="Train again although a student is there.")] = False,
) -> None:
    """Halve the width of MiniLM-L6 and show what it cost and what it won."""
    began = time.perf_counter()
    console = Console()
    try:
        teacher = fetch(TeacherName.MINILM, teachers)
        settings = replace(SETTINGS, steps=steps)
        demonstrate(teacher, output, documentation_texts, CONFIG, settings, retrain=retrain, console=console)
    except WidError as error:
        sys.exit(str(error))
    console.print(f"Done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    typer.run(main)
