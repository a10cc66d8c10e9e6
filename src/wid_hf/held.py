"""Folds that serve a whole optimizer step: micro-batches see leaves, one backward pass goes through the folds.

Takes a student with compactions; holds and releases their folds. Called by `WidTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .compaction import Compaction
from .rows import fold_by_rows, lookups


class HeldFolds:
    """The folded weights of a student, held as leaves while several micro-batches run forward and backward.

    Gradients are linear: those that micro-batches add up in the leaves go through the fold once, to the gradients
    that folding in every forward would give, up to rounding. The cost of the fold is then paid once per optimizer step.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._folded: list[tuple[Compaction, Tensor]] = []
        self._by_rows: list[Callable[[], None]] = []

    def hold(self, tokens: int | None = None) -> None:
        """Fold every weight now and use it until `release` or `drop`; with gradients, unless they are disabled.

        Args:
            tokens: how many the forwards until then look up in all. Of a table with more rows, which no decoder
                shares, each forward folds the rows that it looks up, in place of holding all.
        """
        most = tokens if tokens is not None else inf
        few = {table: module for table, module in lookups(self.student).items() if most < module.num_embeddings}
        self._by_rows = [fold_by_rows(table, module) for table, module in few.items()]
        for compaction, original in _originals(self.student):
            if compaction in few:
                continue
            folded = compaction.fold(original)
            # Torch picks its way through a product by this even where nothing is recorded: round as a parameter does.
            compaction.held = folded.detach().requires_grad_(folded.requires_grad or original.requires_grad)
            self._folded.append((compaction, folded))

    def release(self) -> None:
        """Send the gradients that the leaves have through the folds, and fold anew from now on."""
        folds, gradients = [], []
        for compaction, folded in self._folded:
            if compaction.held is not None and compaction.held.grad is not None:
                folds.append(folded)
                gradients.append(compaction.held.grad)
        self.drop()
        if folds:
            torch.autograd.backward(folds, gradients)

    def drop(self) -> None:
        """Fold anew from now on; gradients in the leaves are lost."""
        for compaction, _ in self._folded:
            compaction.held = None
        for stop in self._by_rows:
            stop()
        self._folded, self._by_rows = [], []


@contextmanager
def folded_once(student: nn.Module) -> Iterator[None]:
    """Fold every weight once for all forwards inside, none of which may train."""
    folds = HeldFolds(student)
    with torch.no_grad():
        folds.hold()
    try:
        yield
    finally:
        folds.drop()


def _originals(student: nn.Module) -> Iterator[tuple[Compaction, Tensor]]:
    """Yield every compaction once with the teacher's weight that it folds."""
    seen = set()
    for module in student.modules():
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            for steps in lists.values():
                if isinstance(steps[0], Compaction) and steps[0] not in seen:
                    seen.add(steps[0])
                    yield steps[0], steps.original
