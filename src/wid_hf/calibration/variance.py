"""Index sets by the variance of activations.

Takes the teacher, its trace and batches; gives for every shrinking leaf the indices that vary most. Called by
`initialize`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..arithmetic import place_of
from ..coupling.dims import Dim, leaves
from ..coupling.index_sets import leaf_sums
from ..coupling.plan import Plan
from ..coupling.trace import Dims, Trace, quiet_forward
from ..errors import DataError
from ..progress_bar import progress_bar
from .batches import NOT_FINITE, NOTHING_BUT_PADDING, Batch, prepared, refuse_batch
from .padding import Padding
from .precision import Precision


class Variance:
    """Running first and second moments of the indices of one axis, in float64."""

    def __init__(self, size: int, device: torch.device) -> None:
        place = place_of(device)
        self.count = 0
        self.sum = torch.zeros(size, dtype=torch.float64, device=place)
        self.square = torch.zeros(size, dtype=torch.float64, device=place)

    def add(self, values: Tensor) -> None:
        """Add observations `(rows, size)`."""
        values = values.to(self.sum.device, torch.float64)
        self.count += len(values)
        self.sum += values.sum(0)
        self.square += values.square().sum(0)

    def variance(self) -> Tensor:
        """Return the variance of each index `(size,)`, zeros before any observation."""
        mean = self.sum / max(self.count, 1)
        return (self.square / max(self.count, 1) - mean.square()).clamp(min=0).cpu()


def variance_indices(
    teacher: nn.Module, trace: Trace, plan: Plan, batches: Iterable[Batch], precision: Precision
) -> dict[Dim, Tensor]:
    """Return for each shrinking leaf its indices of largest variance, in ascending order.

    Variances are summed over every module output that carries the leaf, each output scaled to a mean
    variance of one so that none outweighs the others.

    Args:
        teacher: runs on the batches as it is, in evaluation mode, without gradients.
        trace: its trace; has the tree of each module's output.
        plan: how many indices each leaf keeps.
        batches: keyword dictionaries for its forward; padding does not count.
        precision: of its forwards.

    Raises:
        DataError: there is no batch, only padding, or an activation that is not finite.
    """
    wanted = {leaf for leaf, size in plan.targets.items() if size < leaf.size}
    scores: dict[Dim, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    for dim, seen in _observe(teacher, trace, wanted, batches, precision):
        variance = seen.variance()
        if not torch.isfinite(variance).all():
            raise DataError(NOT_FINITE.format("teacher"))
        for leaf, score in leaf_sums(plan, dim, variance / variance.mean().clamp(min=1e-30)):
            scores[leaf] = scores[leaf] + score
    return {leaf: _largest(scores[leaf], leaf, plan) for leaf in wanted} | dict(plan.matched)


def _observe(
    teacher: nn.Module, trace: Trace, wanted: set[Dim], batches: Iterable[Batch], precision: Precision
) -> list[tuple[Dim, Variance]]:
    """Run the teacher; return the moments of every axis of a module output that has a shrinking leaf."""
    outputs = _ModuleOutputs(next(teacher.parameters()).device)
    holds_any = False
    with quiet_forward(teacher), ExitStack() as stack:
        for name, module in teacher.named_modules():
            dims = trace.module_outputs.get(name, ())
            if axes := [axis for axis, dim in enumerate(dims) if wanted & set(leaves(dim))]:
                stack.callback(outputs.watch(name, module, dims, axes))
        for batch in progress_bar(batches, "Calibrating"):
            given = prepared(teacher, batch)
            outputs.padding = Padding(given)
            holds_any |= outputs.padding.leaves_any
            try:
                with precision.autocast():
                    teacher(**given)
            except Exception as error:  # a forward may raise anything for arguments that it does not accept
                refuse_batch(teacher, given, error)
    if not holds_any:
        raise DataError(NOTHING_BUT_PADDING)
    return list(outputs.seen.values())


class _ModuleOutputs:
    """Gathers the moments of module outputs while a model runs.

    Attributes:
        padding: of the batch that runs now.
        seen: for each module and axis the dimension and its moments.
    """

    def __init__(self, device: torch.device) -> None:
        self.padding = Padding({})
        self.seen: dict[tuple[str, int], tuple[Dim, Variance]] = {}
        self._device = device

    def watch(self, name: str, module: nn.Module, dims: Dims, axes: list[int]) -> Callable[[], None]:
        """Add the outputs of `module` along `axes` from now on; call the result to stop that."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            for axis in axes:
                fresh = (dims[axis], Variance(dims[axis].size, self._device))
                _, moments = self.seen.setdefault((name, axis), fresh)
                moments.add(self.padding.rows(tensor.movedim(axis, -1)))

        return module.register_forward_hook(hook).remove


def _largest(score: Tensor, leaf: Dim, plan: Plan) -> Tensor:
    if not score.ndim:  # no module output has this leaf: all indices count alike
        score = torch.zeros(leaf.size, dtype=torch.float64)
    ranked = score.sort(dim=-1, descending=True, stable=True).indices
    return ranked[..., : plan.targets[leaf]].sort(dim=-1).values
