"""The rotations inside attention heads, from the moments of weight inputs by head SVD.

Takes the leaves that may be rotated, gathers moments of queries, keys and values, and gives dense maps of parts of
axes. Called by `initialize`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..arithmetic import in_float64
from ..coupling.carrier import Carrier
from ..coupling.dims import Dim
from ..coupling.index_sets import IndexSets
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from .axis_blocks import by_leaf, part_factors, spread
from .head_products import HeadProducts, whole_axis
from .head_svd import context_maps, logit_maps
from .moment_pass import InputMoments
from .moments import as_matrix


class HeadRotation:
    """Second moments of queries, keys and values per head.

    Args:
        trace: has the weights.
        plan: how wide each head becomes.
        heads: the leaves that may be rotated.
    """

    def __init__(self, trace: Trace, plan: Plan, heads: Mapping[Dim, HeadProducts]) -> None:
        self._trace = trace
        self._plan = plan
        self._heads = heads
        self._factors = {carrier for products in heads.values() for carrier in products.left | products.right}
        self._outputs: dict[Carrier, Tensor] = {}
        self._logit_maps: dict[Dim, tuple[Tensor, Tensor]] = {}  # the same for every start
        self._contexts: dict[Dim, list[tuple[int, Tensor]]] = defaultdict(list)

    def needs(self, at: int) -> bool:
        """Return whether queries or keys are computed from the weight input, or values reach it."""
        weight = self._plan.weight_inputs[at].weight
        return any(carrier.parameter == weight for carrier in self._factors) or any(
            at in products.weight_inputs for products in self._heads.values()
        )

    def add(self, moments: InputMoments) -> None:
        """Add the moments of the outputs of queries and keys, and of the inputs of output projections."""
        for leaf, products in self._heads.items():
            if moments.at in products.weight_inputs:
                self._contexts[leaf] += [
                    (moments.at, m) for one, m in by_leaf(self._plan, moments.dim, moments.matrix) if one is leaf
                ]
            for carrier in products.left | products.right:
                if carrier.parameter == moments.weight_input.weight:
                    # A softmax does not change when the same vector is added to all keys.
                    output = self._output_moments(carrier, moments, centred=carrier in products.right)
                    self._outputs[carrier] = self._outputs.get(carrier, 0) + output

    def maps(self, sets: IndexSets, turned: Mapping[Carrier, Tensor]) -> dict[Carrier, Tensor]:
        """Return for every part of an axis with a rotated leaf its map `(k, n)`, block-diagonal over heads.

        Args:
            sets: which heads, and which indices of anything else around the leaf, are kept.
            turned: maps `(k, n)` of turned streams: of an output projection only what its stream keeps counts.
        """
        found = {}
        for leaf, products in self._heads.items():
            for carriers, maps in self._maps_per_head(leaf, products, turned):
                for carrier in carriers:
                    factors = part_factors(
                        self._plan.axes[carrier.parameter][carrier.axis], carrier.start, carrier.stop
                    )
                    found[carrier] = spread(self._plan, factors, self._plan.under.get(leaf), sets, maps.cpu())
        return found

    def _maps_per_head(
        self, leaf: Dim, products: HeadProducts, turned: Mapping[Carrier, Tensor]
    ) -> Iterator[tuple[Iterable[Carrier], Tensor]]:
        """Yield the maps `(heads, k, n)` of each side of the products, with the parts of axes that they are for."""
        count = self._plan.targets[leaf]
        if not self._saw(leaf, products):
            return
        if products.left:
            sides = products.left, products.right
            if leaf not in self._logit_maps:
                left, right = (torch.stack([self._outputs[carrier] for carrier in side]).sum(0) for side in sides)
                self._logit_maps[leaf] = logit_maps(left, right, count)
            yield from zip(sides, self._logit_maps[leaf], strict=True)
            return
        contexts = self._contexts[leaf]
        both = [matrix for _, matrix in contexts], [self._gram(leaf, at, turned) for at, _ in contexts]
        moments, grams = (torch.stack(each).sum(0).view(-1, leaf.size, leaf.size) for each in both)
        rows, columns = context_maps(moments, grams, count)
        yield products.written, rows
        yield {whole_axis(self._plan, at) for at in products.weight_inputs}, columns.mT

    def _saw(self, leaf: Dim, products: HeadProducts) -> bool:
        """Return whether data reached the leaf: a model of texts and images may be calibrated on texts alone."""
        return (products.left | products.right) <= self._outputs.keys() if products.left else bool(self._contexts[leaf])

    def _gram(self, leaf: Dim, at: int, turned: Mapping[Carrier, Tensor]) -> Tensor:
        """Return the blocks of `leaf` in `W^T W` of the weight that a context is contracted with."""
        weight_input = self._plan.weight_inputs[at]
        original = self._trace.weights[weight_input.weight].detach()
        weight = in_float64(as_matrix(original, weight_input.axis))
        outputs = Carrier(weight_input.weight, 1 - weight_input.axis, 0, len(weight))
        if (map_ := turned.get(outputs)) is not None:
            weight = map_.to(weight) @ weight
        dim = self._plan.dim_of(weight_input)
        return next(block for one, block in by_leaf(self._plan, dim, weight.T @ weight) if one is leaf)

    def _output_moments(self, carrier: Carrier, moments: InputMoments, centred: bool) -> Tensor:
        """Return second moments per head `(heads, n, n)` of the outputs of a range of rows."""
        part = slice(carrier.start, carrier.stop)
        rows = moments.weight[part]
        bias = moments.weight_input.bias
        factors = part_factors(self._plan.axes[carrier.parameter][carrier.axis], carrier.start, carrier.stop)
        shape, width = [factor.size for factor in factors[:-1]], factors[-1].size
        heads = rows.view(-1, width, rows.shape[1])
        outputs = heads @ moments.covariance.matrix(centred=True) @ heads.mT
        if not centred:
            constant = self._trace.weights[bias].detach().to(rows)[part] if bias is not None else 0
            means = (rows @ moments.covariance.mean + constant).view(-1, width)
            outputs = outputs + means[:, :, None] * means[:, None, :]
        outer = self._plan.under.get(factors[-1])
        outputs = outputs.view(*shape, width, width)
        others = [at for at, factor in enumerate(factors[:-1]) if factor is not outer]
        outputs = outputs.sum(others) if others else outputs
        return outputs.view(-1, width, width)
