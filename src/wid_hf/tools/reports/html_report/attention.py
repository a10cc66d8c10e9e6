"""Attention of the students of several runs, compared with their teacher's.

Takes recipes of one teacher and texts; loads the models, gives comparisons and two PNGs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorWithPadding

from ....inputs import batches, tokenize
from ....rows import load_texts
from ....scores.figures import check_installed
from ...evaluation.attention import AttentionComparison, compare_attention
from ...teachers import load_teacher, load_tokenizer
from .attention_plots import draw_divergence, draw_maps
from .recipes import Recipe


@dataclass(frozen=True)
class AttentionTexts:
    """The texts on which attention is compared.

    Attributes:
        source: text file, JSON lines or name of a dataset.
        column: which column holds the text.
        count: texts, the first of the source.
        max_length: tokens per text.
        batch_size: texts per forward.
        trust_remote_code: passed on to transformers.
    """

    source: str
    column: str | None = None
    count: int = 64
    max_length: int = 128
    batch_size: int = 8
    trust_remote_code: bool = False

    def load(self) -> Dataset:
        """Return the texts.

        Raises:
            WidError: they cannot be loaded, or a library for the comparison is not installed.
        """
        check_installed()
        texts = load_texts(self.source, column=self.column)
        return texts.select(range(min(self.count, len(texts))))


def compare_recipes(
    recipes: Sequence[Recipe], chosen: AttentionTexts, texts: Dataset, divergences: Path, maps: Path
) -> dict[str, AttentionComparison]:
    """Compare each recipe's first student with the teacher and draw what was found.

    Args:
        recipes: of one teacher, each with its student's model in the folder of its report.
        chosen: lengths and batch size.
        texts: what `chosen.load` returned.
        divergences: PNG of the divergence of all heads.
        maps: PNG of attention maps of the first text, one column for the first, middle and last layer.

    Raises:
        WidError: a model cannot be loaded, or returns no attention maps.
    """
    first = recipes[0].first
    trusted = chosen.trust_remote_code
    revision = first.text("settings", "hub", "revision")
    teacher = load_teacher(first.teacher, revision=revision, trust_remote_code=trusted)
    tokenizer = load_tokenizer(first.teacher, revision=revision, trust_remote_code=trusted)
    tokens = tokenize(texts, tokenizer, chosen.max_length).select_columns(["input_ids", "attention_mask"])
    inputs = list(batches(tokens, DataCollatorWithPadding(tokenizer), chosen.batch_size))
    students = {}
    for recipe in recipes:
        student = load_teacher(str(recipe.first.folder), trust_remote_code=trusted)
        students[recipe.label] = student, compare_attention(teacher, student, inputs)
    found = {label: comparison for label, (_, comparison) in students.items()}
    draw_divergence(found, divergences)
    draw_maps(teacher, students, tokenizer, texts["text"][0], _heads(list(found.values())), maps)
    return found


def _heads(found: Sequence[AttentionComparison]) -> list[tuple[int, int]]:
    """Return a head of the first, middle and last layer that all students have, or the first head."""
    layers = len(found[0].matched)
    shown = dict.fromkeys((0, layers // 2, layers - 1))
    shared = {layer: set.intersection(*(set(each.matched[layer]) for each in found)) for layer in shown}
    return [(layer, min(heads, default=0)) for layer, heads in shared.items()]
