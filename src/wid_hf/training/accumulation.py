"""One loss for an optimizer step, however it is split into micro-batches.

Takes a model and a batch; gives how the model's loss is reduced, found by trying: the loss of two rows is compared with
that of each row. Then a micro-batch's part of the step is known, and the parts add up to the loss of one large batch.
Called by `StudentTrainer`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..arithmetic import full_float32
from ..coupling.trace import quiet_forward
from .labelled_positions import NO_LABEL
from .losses.counting import counted_positions, rows_of

# "items": the model itself divides by the `num_items_in_batch` that it is given; "labels", "rows": a mean over labels
# or over rows; "sum": a sum over rows.
Reduction = Literal["items", "labels", "rows", "sum"]

ROUNDING = 1e-4  # of losses in float32, relative

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSize:
    """The size of a micro-batch, or of a whole optimizer step.

    Attributes:
        rows: examples.
        counted: positions with labels, or attended ones if there are no labels; None if there is neither.
    """

    rows: Tensor | int
    counted: Tensor | int | None

    @classmethod
    def of(cls, model: PreTrainedModel, batch: Mapping[str, Any]) -> StepSize:
        """Return the size of one batch for `model`."""
        counted = counted_positions(model, batch)
        return cls(rows_of(batch), None if counted is None else counted.sum())

    def __add__(self, other: StepSize) -> StepSize:
        counted = None if self.counted is None or other.counted is None else self.counted + other.counted
        return StepSize(self.rows + other.rows, counted)

    def share(self, step: StepSize, reduction: Reduction = "labels") -> Tensor | float:
        """Return the factor of a micro-batch's loss with which the losses of a step add up to that of one batch.

        Args:
            step: the size of the whole step.
            reduction: of the loss; not "items".
        """
        if reduction == "sum":
            return 1.0
        if reduction == "labels" and self.counted is not None and step.counted is not None:
            return torch.as_tensor(self.counted) / torch.as_tensor(step.counted).clamp(min=1)
        return torch.as_tensor(self.rows) / torch.as_tensor(step.rows).clamp(min=1)


def has_no_label(model: PreTrainedModel, batch: Mapping[str, Any]) -> bool:
    """Return whether a batch has nothing that counts for the loss: no label, or no answer within its text."""
    if batch.get("labels") is not None:
        counted = counted_positions(model, batch)
        return counted is not None and not bool(counted.any())
    spans = [batch[name] for name in ("start_positions", "end_positions") if isinstance(batch.get(name), Tensor)]
    length = next((v.shape[1] for v in batch.values() if isinstance(v, Tensor) and v.ndim > 1), 0)
    return bool(spans) and not any(bool(((span >= 0) & (span < length)).any()) for span in spans)


def find_reduction(
    model: nn.Module, stock: PreTrainedModel, batch: Mapping[str, Any], *, takes_items: bool
) -> Reduction:
    """Return how the loss of `model` is reduced, by forwards on one or two rows of `batch` in evaluation mode.

    If a loss is none of these (contrastive losses compare rows with each other), the nearest is returned; if the trial
    fails, a mean over labels if there are any, else over rows.

    Args:
        model: the model that trains, called unchanged.
        stock: the stock model inside; its class decides how labels are counted.
        batch: keyword arguments of the forward, on its device.
        takes_items: whether the forward may be given `num_items_in_batch`.
    """
    try:
        with (
            quiet_forward(model),
            full_float32(),
            torch.autocast(next(model.parameters()).device.type, enabled=False),
        ):
            return _tried(model, stock, batch, takes_items)
    except Exception as error:  # an unknown model may raise anything
        _log.warning(
            "How the loss of %s adds up over micro-batches could not be tested (%s: %s); it is treated as a mean over "
            "%s.",
            type(stock).__name__,
            type(error).__name__,
            error,
            usual := _usual(batch),
        )
        return usual


def _tried(model: nn.Module, stock: PreTrainedModel, batch: Mapping[str, Any], takes_items: bool) -> Reduction:
    one = _row(batch)
    other = _with_fewer_labels(one)

    def loss(rows: Mapping[str, Any], times: int = 1) -> float:
        counted: Any = StepSize.of(stock, rows).counted
        takes = takes_items and "labels" in rows and counted is not None
        items = {"num_items_in_batch": counted * times} if takes else {}
        output = model(**rows, **items)
        return float(output["loss"] if isinstance(output, Mapping) else output[0])

    of_one = loss(one)
    of_thrice = loss(one, 3)
    if not _same(of_thrice, of_one):  # other parts of it (losses of a router) are not divided
        return "items" if _same(3 * of_thrice, of_one) else "labels"
    of_other, together = loss(other), loss(_both(one, other))
    sizes = [StepSize.of(stock, rows) for rows in (one, other)]
    step = sizes[0] + sizes[1]
    kinds: list[Reduction] = ["labels", "rows", "sum"] if _usual(batch) == "labels" else ["rows", "sum"]

    def added_up(kind: Reduction) -> float:
        return sum(float(size.share(step, kind)) * part for size, part in zip(sizes, (of_one, of_other), strict=True))

    misses = {kind: abs(added_up(kind) - together) for kind in kinds}
    if not all(miss < float("inf") for miss in misses.values()):
        raise ValueError(f"the losses are {of_one}, {of_other} and {together}")
    near = min(misses.values()) + ROUNDING * abs(together)
    return next(kind for kind, miss in misses.items() if miss <= near)


def _usual(batch: Mapping[str, Any]) -> Reduction:
    labels = batch.get("labels")
    return "labels" if isinstance(labels, Tensor) and not labels.is_floating_point() else "rows"


def _row(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with the most labels, as a batch of one."""
    rows = rows_of(batch)
    labels: Any = batch.get("labels")
    counted = isinstance(labels, Tensor) and len(labels) == rows
    at = int(labels.ne(NO_LABEL).reshape(rows, -1).sum(1).argmax()) if counted else 0
    return {name: value[at : at + 1] if _per_row(value, rows) else value for name, value in batch.items()}


def _with_fewer_labels(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `row` with the first half of its labels, if it has labels by position."""
    labels = row.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return row
    places = labels[0].ne(NO_LABEL).nonzero()[:, 0]
    fewer = labels.clone()
    fewer[0, places[(len(places) + 1) // 2 :]] = NO_LABEL
    return {**row, "labels": fewer}


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two batches of one row as one of two."""

    def joined(name: str, value: Any) -> Any:
        if not _per_row(value, 1):
            return value
        return torch.cat([value, other[name]]) if isinstance(value, Tensor) else [*value, *other[name]]

    return {name: joined(name, value) for name, value in one.items()}


def _per_row(value: Any, rows: int) -> bool:
    has_length = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim > 0)
    return has_length and len(value) == rows


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= ROUNDING * abs(b)
