"""What is compared: teachers, with the texts that their students train on and the tasks that they are scored on.

Takes folders of teachers and data; gives arguments of `Method.compress` and `wid_hf.tools.evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from methods import METHODS, Method
from places import DATA, TEACHERS

from wid_hf import CalibrationConfig, WidConfig

SWEPT_WIDTH = "1/2"

Rates = dict[str, float]  # fields of `CompressSettings`, or the `learning_rate` of a stock student

# One grid of four for every method, so that none is better tuned.
STOCK_GRID: tuple[Rates, ...] = tuple({"learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3, 3e-3))
FOLLOWED_GRID: tuple[Rates, ...] = tuple(
    {"compactor_learning_rate": rate, "teacher_learning_rate": 0.0} for rate in (5e-5, 1e-4, 3e-4, 1e-3)
)
FOLDED_GRID: tuple[Rates, ...] = tuple(
    {"compactor_learning_rate": compactors, "teacher_learning_rate": teacher}
    for compactors, teacher in ((1e-4, 1e-4), (1e-4, 3e-4), (3e-4, 3e-4), (1e-4, 1e-3))
)


@dataclass(frozen=True)
class Contest:
    """A teacher whose students are compared.

    Attributes:
        name: what commands call it.
        title: what tables call it.
        folder: the teacher with its tokenizer.
        sizes: of students, by the name of their width.
        train: file of texts to train on.
        column: of the file that holds the text.
        validation: file of texts to score on; None for texts held out of `train`.
        looked_at: file of texts, in the same column, on which attention is compared.
        figures: of `wid_report.json`, each with how a table writes it; the first decides among learning rates.
        larger: whether a larger first figure is better.
        tasks: of `wid-hf eval`, each with the split and the figure that tables show.
        headless: whether only the methods for headless encoders apply.
        max_length: tokens per text.
        validation_texts: how many texts are scored.
        calibration_samples: texts that a start is made from.
        note: what a reader must know.
        data: folder of the tasks' data.
        compared: the widths at which all methods are compared; the first is that of the sweep.
    """

    name: str
    title: str
    folder: Path
    sizes: Mapping[str, Mapping[str, int]]
    train: Path
    column: str
    validation: Path | None
    looked_at: Path
    figures: Mapping[str, str]
    larger: bool
    tasks: Mapping[str, tuple[str, str]]
    headless: bool
    max_length: int
    validation_texts: int = 256
    calibration_samples: int = 256
    note: str = ""
    data: Path = field(default=DATA)
    compared: tuple[str, ...] = ("1/2", "1/4")

    @property
    def methods(self) -> list[Method]:
        """The methods that apply."""
        return [method for method in METHODS.values() if method.headless or not self.headless]

    def grid(self, method: Method) -> tuple[Rates, ...]:
        """Return the learning rates that are tried for `method`."""
        if not method.folds:
            return STOCK_GRID
        return FOLLOWED_GRID if self.headless or method.losses else FOLDED_GRID

    def config(self, width: str) -> WidConfig:
        """Return the student's sizes."""
        return WidConfig(**self.sizes[width], calibration_config=CalibrationConfig(samples=self.calibration_samples))


def _widths(hidden: int, intermediate: int) -> dict[str, dict[str, int]]:
    parts = {"3/4": (3, 4), "1/2": (1, 2), "3/8": (3, 8), "1/4": (1, 4), "1/8": (1, 8)}
    return {
        name: {"hidden_size": hidden * share // whole, "intermediate_size": intermediate * share // whole}
        for name, (share, whole) in parts.items()
    }


CONTESTS = {
    "reaction-bert": Contest(
        "reaction-bert",
        "Reaction BERT",
        TEACHERS / "reaction-bert",
        _widths(256, 512),
        DATA / "uspto50k" / "train.jsonl.gz",
        "rxn",
        DATA / "uspto50k" / "valid.jsonl.gz",
        DATA / "uspto50k" / "valid.jsonl.gz",
        {"masked_lm_loss": ".3f", "masked_lm_accuracy": ".1%"},
        larger=False,
        tasks={"reactions": ("test", "accuracy")},
        headless=False,
        max_length=128,
        note="The teacher was pretrained on reactions and may have seen these.",
    ),
    "minilm": Contest(
        "minilm",
        "MiniLM-L6",
        TEACHERS / "minilm",
        _widths(384, 1536),
        DATA / "agnews" / "train10k.jsonl",
        "text",
        None,
        DATA / "agnews" / "test.jsonl",
        {"cosine_correlation": ".3f", "top1_agreement": ".1%"},
        larger=True,
        tasks={
            "stsb-zero-shot": ("test", "spearman"),
            "sst2": ("dev", "accuracy"),
            "mrpc": ("test", "f1"),
            "cola": ("dev", "matthews"),
        },
        headless=True,
        max_length=64,
        note="A headless encoder: scratch, logit-kd and wid-kd do not apply.",
    ),
}
