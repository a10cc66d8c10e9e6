"""Pictures of attention: divergences of several students side by side, and the maps themselves.

Takes comparisons, or maps of one text; writes PNGs. Called by reports and by users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ....atomic_write import atomic_write
from ....extras import extra
from ....scores.eval_mode import eval_mode
from ...evaluation.attention import AttentionComparison, attention_maps, eager_attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

SHOWN = 24  # tokens of a text: more cannot be read in a map
GRIDS_PER_ROW = 5


def draw_divergence(students: Mapping[str, AttentionComparison], path: Path) -> None:
    """Draw the divergence of each student's heads, layers x heads, to `path` (PNG); colours mean the same in all."""
    with extra("cli"):
        from matplotlib.figure import Figure

    grids = {name: student.divergence for name, student in students.items()}
    layers, heads = len(next(iter(grids.values()))), max(len(grid[0]) for grid in grids.values())
    rows = ceil(len(grids) / GRIDS_PER_ROW)
    columns = ceil(len(grids) / rows)
    size = (1.2 + columns * max(2.2, 0.28 * heads), rows * (1.4 + 0.28 * layers) + 0.2)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    most = max(value for grid in grids.values() for layer in grid for value in layer)
    for axes, (name, grid) in zip(panels.flat, grids.items(), strict=False):
        image = axes.imshow(grid, cmap="YlOrRd", vmin=0, vmax=max(most, 1e-6), aspect="auto")
        axes.set_title(f"{name}\nmean {students[name].mean:.3f}", fontsize="medium")
        axes.set(xlabel="head", xticks=range(len(grid[0])), yticks=range(layers))
        axes.tick_params(length=0, labelsize="small")
    for axes in panels[:, 0]:
        axes.set_ylabel("layer")
    for axes in panels[:, 1:].flat:
        axes.set_yticklabels([])
    for axes in panels.flat[len(grids) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=panels, label="bits from the teacher's head")
    _save(figure, path)


def draw_maps(
    teacher: PreTrainedModel,
    students: Mapping[str, tuple[PreTrainedModel, AttentionComparison]],
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    heads: Sequence[tuple[int, int]],
    path: Path,
) -> None:
    """Draw attention maps of one text to `path` (PNG): a row for the teacher and for each student.

    Args:
        teacher: its heads are shown in the first row.
        students: with the comparison that says which of their heads is which of the teacher's.
        tokenizer: of all of them.
        text: cut after a few tokens, so that they can be read.
        heads: layer and head of the teacher for each column.
        path: where to write; an existing file is replaced.
    """
    with extra("cli"):
        from matplotlib.figure import Figure

    batch = dict(tokenizer(text, truncation=True, max_length=SHOWN, return_tensors="pt"))
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    figure = Figure(figsize=(0.6 + 2.6 * len(heads), 0.6 + 2.7 * (1 + len(students))), layout="constrained")
    axes = figure.subplots(1 + len(students), len(heads), squeeze=False)
    models = {"teacher": teacher} | {name: model for name, (model, _) in students.items()}
    for row, (name, model) in enumerate(models.items()):
        with eager_attention(model), eval_mode(model) as device:
            maps = attention_maps(model, {key: tensor.to(device) for key, tensor in batch.items()})
        for column, (layer, head) in enumerate(heads):
            own = head if name == "teacher" else _own(students[name][1].matched[layer], head)
            panel = axes[row, column]
            if own is None:
                panel.set_axis_off()
                panel.text(0.5, 0.5, "no such head", ha="center", va="center", color="0.5")
                continue
            panel.imshow(maps[layer][0, own].float().sqrt().tolist(), cmap="Blues", vmin=0, vmax=1)
            panel.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=5)
            panel.set_yticks(range(len(tokens)), tokens, fontsize=5)
            panel.tick_params(length=0)
            panel.set_title(f"{name}: layer {layer}, head {own}", fontsize="small")
    _save(figure, path)


def _own(matched: Sequence[int], head: int) -> int | None:
    return list(matched).index(head) if head in matched else None


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=130)
