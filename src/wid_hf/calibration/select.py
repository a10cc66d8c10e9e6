"""Column subset selection: which indices of every dimension the student keeps.

Takes moments of weight inputs, gathers a score for every leaf, and gives index sets. Called by `initialize`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import torch
from torch import Tensor

from ..coupling.dims import Dim, factors_of, find, leaves
from ..coupling.index_sets import IndexSets
from ..coupling.plan import Plan
from .axis_blocks import by_leaf
from .column_subset import block_subset, column_subset
from .moment_pass import InputMoments

SMALLEST = torch.finfo(torch.float64).tiny


class SubsetSelection:
    """Scores of the indices of every leaf that shrinks by selection.

    The indices that a leaf keeps are the column subset of the covariances of weight inputs along it, each weighted by
    the norms of the weight's columns and scaled to a trace of one. Of whole heads, those stay that contribute most to
    the outputs of the next weights. A leaf that is no weight's input is scored by the outputs along it.

    Args:
        plan: how many indices each leaf keeps.
        rotated: leaves that keep combinations of their indices instead.
    """

    def __init__(self, plan: Plan, rotated: Collection[Dim]) -> None:
        self._plan = plan
        self._rotated = set(rotated)
        shrinking = {leaf for leaf, size in plan.targets.items() if size < leaf.size}
        self._chosen = shrinking - self._rotated
        contracted = {leaf for each in plan.weight_inputs for leaf in leaves(plan.dim_of(each))}
        self._only_written = self._chosen - contracted
        self._scores: dict[Dim, Tensor] = {}
        self._heads: dict[Dim, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._kept: dict[Dim, Tensor] = {}
        last = {leaf: at for at in range(len(plan.weight_inputs)) for leaf in self._scored_by(at)}
        self._complete = {at: [leaf for leaf in last if last[leaf] == at] for at in set(last.values())}

    def needs(self, at: int) -> bool:
        """Return whether a leaf is scored by the weight input or by an output of its weight."""
        return bool(self._scored_by(at))

    def add(self, moments: InputMoments) -> None:
        """Add the scores from one weight input: for the leaves of its axis, and for those of its weight's outputs.

        The indices of leaves that no later weight input scores are chosen at once: scores are large.
        """
        if self._chosen & set(leaves(moments.dim)):
            self._keep_heads(moments)
            norms = moments.weight.norm(dim=0)
            self._score(moments.dim, (norms[:, None] * moments.matrix).mul_(norms))
        for other in self._plan.axes[moments.weight_input.weight]:
            if moments.weight.shape[0] == other.size and self._only_written & set(leaves(other)):
                self._score(other, moments.weight @ moments.matrix @ moments.weight.T)
        for leaf in self._complete.get(moments.at, ()):
            self._kept[leaf] = self._indices(leaf)

    def _scored_by(self, at: int) -> set[Dim]:
        weight_input = self._plan.weight_inputs[at]
        axes = self._plan.axes[weight_input.weight]
        written = {leaf for dim in axes for leaf in leaves(dim)}
        return self._chosen & set(leaves(axes[weight_input.axis])) | self._only_written & written

    def index_sets(self, given: IndexSets | None) -> dict[Dim, Tensor]:
        """Return the index set of every leaf that shrinks.

        Args:
            given: index sets of a simpler rule, in place of column subsets.
        """
        chosen = given
        if chosen is None:  # of some leaves no data reached the last weight input
            chosen = {leaf: self._kept[leaf] if leaf in self._kept else self._indices(leaf) for leaf in self._chosen}
        # A rotated leaf keeps combinations; only their number counts.
        rotated = {leaf: torch.arange(self._plan.targets[leaf]) for leaf in self._rotated}
        return {**chosen, **rotated, **self._plan.matched}

    def _keep_heads(self, moments: InputMoments) -> None:
        """Keep the moments of a weight input if its outermost factor shrinks by selection: whole heads."""
        outermost = factors_of(moments.dim)
        if len(outermost) > 1 and (leaf := find(outermost[0])) in self._chosen:
            self._heads[leaf].append((moments.matrix, moments.gram))

    def _score(self, dim: Dim, matrix: Tensor) -> None:
        """Add a covariance `(n, n)` along an axis, which is scaled in place, to the scores of its leaves."""
        matrix.div_(matrix.trace().clamp(min=SMALLEST))
        for leaf, block in by_leaf(self._plan, dim, matrix):
            if leaf in self._chosen:
                self._scores[leaf] = self._scores[leaf] + block if leaf in self._scores else block

    def _indices(self, leaf: Dim) -> Tensor:
        count = self._plan.targets[leaf]
        if leaf in self._heads:
            covariances, grams = zip(*self._heads.pop(leaf), strict=True)
            self._scores.pop(leaf, None)
            return block_subset(covariances, grams, leaf.size, count)
        if leaf not in self._scores:  # no weight input and no output has this leaf: all indices count alike
            return torch.arange(count)
        score = self._scores.pop(leaf).cpu()
        return (
            torch.stack([column_subset(each, count) for each in score])
            if score.ndim == 3
            else column_subset(score, count)
        )
