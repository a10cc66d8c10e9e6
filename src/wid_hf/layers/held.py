"""Folds that serve a whole optimizer step: one backward pass goes through them for all micro-batches.

Takes a student with folded_weights; holds and releases their folds. Called by `WidTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from .compactors import FoldedWeight
from .rows import fold_by_rows, lookups


class HeldFolds:
    """The folded weights of a student, held while several micro-batches run forward and backward.

    Gradients are linear: all micro-batches but the last see leaves, in which their gradients add up, and the backward
    pass of the last takes these along through the folds. It gives the gradients that folding in every forward would
    give, up to rounding, and the cost of the fold is paid once per optimizer step. The last forward reaches every
    parameter, as `DistributedDataParallel` needs.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._folded: list[tuple[FoldedWeight, Tensor]] = []
        self._leaves: dict[FoldedWeight, Tensor] = {}
        self._by_rows: list[Callable[[], None]] = []

    def hold(self, tokens: int | None = None, dtype: torch.dtype | None = None) -> None:
        """Fold every weight now and use it until `release` or `drop`; with gradients, unless they are disabled.

        Args:
            tokens: how many the forwards until then look up in all. Of a table with more rows, which no decoder
                shares, each forward folds the rows that it looks up, in place of holding all.
            dtype: what the folds are cast to; the teacher's if None.
        """
        most = tokens if tokens is not None else inf
        few = {table: module for table, module in lookups(self.student).items() if most < module.num_embeddings}
        self._by_rows = [fold_by_rows(table, module) for table, module in few.items()]
        for compaction, original in _originals(self.student):
            if compaction in few:
                continue
            folded = compaction.fold(original)
            # Torch picks its way through a product by this even where nothing is recorded: round as a parameter does.
            leaf = (
                folded.detach().to(dtype or folded.dtype).requires_grad_(folded.requires_grad or original.requires_grad)
            )
            compaction.held = self._leaves[compaction] = leaf
            self._folded.append((compaction, folded))

    def open(self) -> None:
        """Let the next backward pass go through the folds, with what the leaves have gathered."""
        for compaction, folded in self._folded:
            if folded.requires_grad:
                compaction.held = _Opened.apply(folded, partial(self._gathered, compaction))

    def release(self) -> None:
        """Fold anew from now on; gradients in leaves that the last forward did not use go through their folds."""
        missed = [(folded, leaf.grad) for made, folded in self._folded if (leaf := self._leaves.get(made)) is not None]
        left = [(folded, gradient) for folded, gradient in missed if gradient is not None]
        self.drop()
        if left:
            torch.autograd.backward([folded for folded, _ in left], [gradient for _, gradient in left])

    def drop(self) -> None:
        """Fold anew from now on; gradients in the leaves are lost."""
        for compaction, _ in self._folded:
            compaction.held = None
        for stop in self._by_rows:
            stop()
        self._folded, self._by_rows, self._leaves = [], [], {}

    def _gathered(self, compaction: FoldedWeight, gradient: Tensor) -> Tensor:
        leaf = self._leaves.pop(compaction, None)
        return gradient if leaf is None or leaf.grad is None else gradient + leaf.grad


class _Opened(torch.autograd.Function):
    """A fold as it is, whose gradient is changed on the way to the fold.

    A hook on the fold would also change what others ask of it by `torch.autograd.grad`.
    """

    @staticmethod
    def forward(ctx: Any, folded: Tensor, gathered: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.gathered = gathered
        return folded.view_as(folded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.gathered(gradient), None


@contextmanager
def folded_once(student: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Fold every weight once for all forwards inside, none of which may train; `dtype` as in `HeldFolds.hold`."""
    folds = HeldFolds(student)
    with torch.no_grad():
        folds.hold(dtype=dtype)
    try:
        yield
    finally:
        folds.drop()


def _originals(student: nn.Module) -> Iterator[tuple[FoldedWeight, Tensor]]:
    """Yield every compaction once with the teacher's weight that it folds."""
    seen = set()
    for module in student.modules():
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            for steps in lists.values():
                if isinstance(steps[0], FoldedWeight) and steps[0] not in seen:
                    seen.add(steps[0])
                    yield steps[0], steps.original
