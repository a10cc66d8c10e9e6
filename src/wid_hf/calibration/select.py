"""What the teacher alone decides: which indices stay, and how the inside of attention heads is turned.

Takes the teacher, its trace, the plan and batches; gives index sets and rotations, from which `compaction` makes
the start. `lifts` goes on from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..coupling.carrier import Carrier
from ..coupling.dims import Dim, factors_of, find, leaves
from ..coupling.index_sets import IndexSets
from ..coupling.plan import Plan
from ..coupling.trace import Trace, quiet_forward
from ..coupling.weight_inputs import WeightInput
from ..errors import DataError
from .axis_blocks import by_leaf, pieces, spread, stretch
from .column_subset import blocks, pivots
from .head_svd import context_maps, logit_maps
from .lockstep import Batch, Forward, Precision, Stop, prepared, walk
from .moments import Covariance
from .rotation import Stream

NOT_FINITE = "The {}'s activations on the calibration data are not finite; check its dtype."


@dataclass(frozen=True)
class Survey:
    """What the teacher decided.

    Attributes:
        sets: the kept indices of every leaf that shrinks.
        rotations: dense maps `(k, n)` for stretches of axes, in place of selection: inside heads, and of a stream.
        vectors: what the weights `(k,)` of the norms of a turned stream become.
        positions: positions of the data that are not padding.
    """

    sets: dict[Dim, Tensor]
    rotations: dict[Carrier, Tensor] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    positions: int = 0


@dataclass
class _Products:
    """The places where a leaf inside heads is contracted, all that is needed to turn it.

    Attributes:
        left: stretches of rows whose outputs meet those of `right` in a product (queries).
        right: the others (keys).
        written: stretches of rows that arrive, mixed over positions only, where `reads` read them (values).
        reads: numbers of those reads (output projections).
    """

    left: set[Carrier] = field(default_factory=set)
    right: set[Carrier] = field(default_factory=set)
    written: set[Carrier] = field(default_factory=set)
    reads: list[int] = field(default_factory=list)


def survey(
    teacher: nn.Module, trace: Trace, plan: Plan, batches: Sequence[Batch], *, precision: Precision,
    given: IndexSets | None = None, spectra: bool = True, stream: Stream | None = None,
) -> Survey:  # fmt: skip
    """Run the teacher over all batches and choose indices and rotations.

    Indices that remain of a leaf are pivots of the covariances of what is read along it, each weighted by the
    reading matrix; whole heads those that contribute most. Leaves inside heads that meet nothing but products
    keep combinations of indices instead, the best by singular values, and so does a stream that may be turned: the
    principal ones of what its norms make, their weights aside.

    Args:
        teacher: runs as it is, in evaluation mode, without gradients.
        trace: its trace.
        plan: how many indices each leaf keeps.
        batches: keyword dictionaries for its forward; positions whose `attention_mask` is 0 do not count.
        precision: of its forwards.
        given: index sets chosen otherwise; then only rotations are looked for.
        spectra: False keeps selection inside heads as well.
        stream: a dimension that may be turned as a whole.

    Raises:
        DataError: there is no batch or nothing but padding, fewer positions than a student's width, or an
            activation that is not finite.
    """
    return _Surveyor(teacher, trace, plan, precision, given, spectra, stream).run(batches)


class _Surveyor:
    def __init__(
        self, teacher: nn.Module, trace: Trace, plan: Plan, precision: Precision, given: IndexSets | None,
        spectra: bool, stream: Stream | None,
    ) -> None:  # fmt: skip
        self.teacher, self.trace, self.plan, self.given, self.stream = teacher, trace, plan, given, stream
        self.precision = precision
        self.shrinking = {leaf for leaf, size in plan.targets.items() if size < leaf.size}
        self.free = _free(trace, plan, self.shrinking - set(plan.matched)) if spectra else {}
        self.turned = set(self.free) | ({stream.leaf} if stream is not None else set())
        self.chosen = self.shrinking - self.turned
        read = {leaf for read in plan.weight_inputs for leaf in leaves(self._axis(read))}
        self.only_written = self.chosen - read
        self.scores: dict[Dim, Tensor] = {}
        self.heads: dict[Dim, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.made: dict[Carrier, Tensor] = {}
        self.contexts: dict[Dim, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.normed: dict[str, Tensor] = {}
        self.positions = 0

    def run(self, batches: Sequence[Batch]) -> Survey:
        stops = [at for at, read in enumerate(self.plan.weight_inputs) if self._matters(at, read)]
        if not stops:  # nothing that is read shrinks
            return Survey({leaf: self._indices(leaf) for leaf in self.chosen} | dict(self.plan.matched))
        with quiet_forward(self.teacher):
            inputs = [prepared(self.teacher, batch) for batch in batches]
            forwards = [Forward(self.teacher, each, self.plan, stops, self.precision) for each in inputs]
            for forward in forwards:
                for name, tensor in self.trace.weights.items():
                    forward.know(name, tensor)
            covariance = None
            previous: list[Stop | None] = []
            steps, screen = walk(forwards, stops), Console(stderr=True)
            for at, here in track(steps, "Looking at the teacher", len(stops), transient=True, console=screen):
                if covariance is None or not same(previous, here):
                    covariance = self._covariance(forwards, here)
                previous = here
                self._use(at, covariance)
        self._enough(stops)
        sets = {leaf: self._indices(leaf) for leaf in self.chosen} if self.given is None else dict(self.given)
        # What is turned keeps no index in particular, but as many.
        sets |= {leaf: torch.arange(self.plan.targets[leaf]) for leaf in self.turned}
        sets |= self.plan.matched
        rotations, vectors = dict(self._rotations(sets)), dict[str, Tensor]()
        if self.stream is not None:
            moments = torch.stack(list(self.normed.values())).sum(0)
            maps, vectors = self.stream.start(self.plan, self.trace.weights, moments)
            rotations |= maps
        return Survey(sets, rotations, vectors, self.positions)

    def _axis(self, read: WeightInput) -> Dim:
        return self.plan.axes[read.weight][read.axis]

    def _matters(self, at: int, read: WeightInput) -> bool:
        if self.stream is not None and (read.weight, read.axis) in self.stream.norms:
            return True
        needed = {leaf for dim in self.plan.axes[read.weight] for leaf in leaves(dim)}
        makers = {carrier.parameter for products in self.free.values() for carrier in products.left | products.right}
        return bool(self.chosen & set(leaves(self._axis(read))) or self.only_written & needed) or (
            read.weight in makers or any(at in products.reads for products in self.free.values())
        )

    def _covariance(self, forwards: Sequence[Forward], here: Sequence[Stop | None]) -> Covariance:
        first = next(stop for stop in here if stop is not None)
        covariance = Covariance(first.tensor.shape[first.axis], first.tensor.device)
        for forward, stop in zip(forwards, here, strict=True):
            if stop is not None:
                covariance.add(forward.rows(stop))
        if not covariance.about_mean.isfinite().all():
            raise DataError(NOT_FINITE.format("teacher"))
        self.positions = max(self.positions, covariance.count)
        return covariance

    def _use(self, at: int, covariance: Covariance) -> None:
        read = self.plan.weight_inputs[at]
        axis, weight = self._axis(read), self._weight(read, covariance)
        matrix = covariance.matrix(centred=read.bias is not None)
        reader = weight.T @ weight
        self._score(axis, matrix, reader)
        if self.stream is not None and (norm := self.stream.norms.get((read.weight, read.axis))) is not None:
            self._see_normed(norm, covariance)
        for leaf, products in self.free.items():
            if at in products.reads:
                both = zip(by_leaf(self.plan, axis, matrix), by_leaf(self.plan, axis, reader), strict=True)
                self.contexts[leaf] += [(s, g) for (one, s), (_, g) in both if one is leaf]
            for carrier in products.left | products.right:
                if carrier.parameter == read.weight:
                    moments = self._outputs(carrier, read, covariance, carrier in products.right)
                    self.made[carrier] = self.made.get(carrier, 0) + moments
        for other in self.plan.axes[read.weight]:
            if weight.shape[0] == other.size and self.only_written & set(leaves(other)):
                self._score(other, weight @ matrix @ weight.T, None)

    def _weight(self, read: WeightInput, like: Covariance) -> Tensor:
        """Return the reading matrix `(everything else, n)`."""
        weight = self.trace.weights[read.weight].detach().to(like.mean.device, torch.float64)
        return weight.movedim(read.axis, -1).reshape(-1, weight.shape[read.axis])

    def _score(self, axis: Dim, matrix: Tensor, reader: Tensor | None) -> None:
        """Add what one tensor says about every chosen leaf of its axis."""
        if not self.chosen & set(leaves(axis)):
            return
        if reader is not None:
            for leaf in {find(factor) for factor in factors_of(axis)[:1]} & self.chosen:
                if len(factors_of(axis)) > 1:
                    self.heads[leaf].append((matrix, reader))
            weights = reader.diagonal().sqrt()
            matrix = weights[:, None] * matrix * weights
        matrix = matrix / matrix.trace().clamp(min=torch.finfo(torch.float64).tiny)
        for leaf, block in by_leaf(self.plan, axis, matrix):
            if leaf in self.chosen:
                self.scores[leaf] = self.scores.get(leaf, 0) + block

    def _see_normed(self, norm: str, covariance: Covariance) -> None:
        """Keep the second moments of what one norm makes, its weight aside, all norms counting alike."""
        if norm not in self.normed:
            weight = self.trace.weights[norm].detach().to(covariance.mean)
            inverse = torch.where(weight == 0, 0, 1 / weight)
            moments = inverse[:, None] * covariance.matrix(centred=False) * inverse
            self.normed[norm] = (moments / moments.trace().clamp(min=torch.finfo(torch.float64).tiny)).cpu()

    def _outputs(self, carrier: Carrier, read: WeightInput, covariance: Covariance, centred: bool) -> Tensor:
        """Return second moments per head `(heads, n, n)` of what a stretch of rows writes."""
        part = slice(carrier.start, carrier.stop)
        rows = self._weight(read, covariance)[part]
        bias = self.trace.weights[read.bias].detach().to(rows)[part] if read.bias is not None else 0
        factors = stretch(self.plan.axes[carrier.parameter][carrier.axis], carrier.start, carrier.stop)
        shape, width = [factor.size for factor in factors[:-1]], factors[-1].size
        heads = rows.view(-1, width, rows.shape[1])
        moments = heads @ covariance.matrix(centred=True) @ heads.mT
        if not centred:
            means = (rows @ covariance.mean + bias).view(-1, width)
            moments = moments + means[:, :, None] * means[:, None, :]
        outer = self.plan.under.get(factors[-1])
        moments = moments.view(*shape, width, width)
        others = [at for at, factor in enumerate(factors[:-1]) if factor is not outer]
        moments = moments.sum(others) if others else moments
        return moments.view(-1, width, width)

    def _enough(self, stops: Sequence[int]) -> None:
        if not self.positions:
            raise DataError(
                "The calibration data holds no batch, or nothing but padding. Pass an iterable of keyword "
                "dictionaries for the model's forward, such as a DataLoader."
            )
        needed = max(self.plan.size(self._axis(self.plan.weight_inputs[at])) for at in stops) + 1
        if self.positions < needed:
            raise DataError(
                f"The calibration data holds {self.positions} tokens that are not padding, but the student's widest "
                f"layer input has {needed - 1} indices: at least {needed} tokens are needed, ten times as many are "
                "better. Give more texts, or raise calibration_samples."
            )

    def _indices(self, leaf: Dim) -> Tensor:
        kept = self.plan.targets[leaf]
        if leaf in self.heads:
            covariances, readers = zip(*self.heads[leaf], strict=True)
            return blocks(covariances, readers, leaf.size, kept)
        if leaf not in self.scores:  # nothing that was read or written shows this leaf: all indices count alike
            return torch.arange(kept)
        score = self.scores[leaf].cpu()
        return torch.stack([pivots(each, kept) for each in score]) if score.ndim == 3 else pivots(score, kept)

    def _rotations(self, sets: dict[Dim, Tensor]) -> Iterator[tuple[Carrier, Tensor]]:
        for leaf, products in self.free.items():
            kept, outer = self.plan.targets[leaf], self.plan.under.get(leaf)
            sides: list[tuple[Iterable[Carrier], Tensor]]
            if products.left:
                both = products.left, products.right
                left, right = (torch.stack([self.made[carrier] for carrier in side]).sum(0) for side in both)
                p, q = logit_maps(left, right, kept)
                sides = [(products.left, p), (products.right, q)]
            else:
                seen = zip(*self.contexts[leaf], strict=True)
                moments, readers = (torch.stack(each).sum(0).view(-1, leaf.size, leaf.size) for each in seen)
                rows, columns = context_maps(moments, readers, kept)
                reads = {self._whole(self.plan.weight_inputs[at]) for at in products.reads}
                sides = [(products.written, rows), (reads, columns.mT)]
            for carriers, maps in sides:
                for carrier in carriers:
                    factors = stretch(self.plan.axes[carrier.parameter][carrier.axis], carrier.start, carrier.stop)
                    yield carrier, spread(self.plan, factors, outer, sets, maps.cpu())

    def _whole(self, read: WeightInput) -> Carrier:
        return Carrier(read.weight, read.axis, 0, self._axis(read).size)


def same(before: Sequence[Stop | None], now: Sequence[Stop | None]) -> bool:
    """Return whether all forwards read again what they read before, as queries, keys and values do."""

    def identity(stop: Stop | None) -> object:
        # The tensors before are still held, so their memory is not another tensor's by now.
        if stop is None:
            return None
        tensor = stop.tensor
        return (
            tensor.data_ptr(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            tensor._version,
            stop.axis,
        )

    return list(map(identity, before)) == list(map(identity, now))


def _free(trace: Trace, plan: Plan, shrinking: set[Dim]) -> dict[Dim, _Products]:
    """Return the shrinking leaves that may be turned by any matrix, with the places where it is undone.

    Such a leaf is met by linear operations only, and stands nowhere but in rows whose outputs meet in a product,
    or are read by a weight; the biases beside these rows turn along.
    """
    found: dict[Dim, _Products] = defaultdict(_Products)
    for right, left in trace.carried_by.items():
        if (leaf := _inner(plan, left)) is not None and leaf is _inner(plan, right):
            found[leaf].left.add(left)
            found[leaf].right.add(right)
    for at, read in enumerate(plan.weight_inputs):
        if read.carrier is None or (leaf := _inner(plan, read.carrier)) is None:
            continue
        whole = Carrier(read.weight, read.axis, 0, plan.axes[read.weight][read.axis].size)
        if leaf is _inner(plan, whole):
            found[leaf].written.add(read.carrier)
            found[leaf].reads.append(at)
    turned = trace.aligned
    return {
        leaf: products
        for leaf, products in found.items()
        if leaf in shrinking and leaf not in turned and _accounted(plan, leaf, products)
    }


def _inner(plan: Plan, carrier: Carrier) -> Dim | None:
    """Return the innermost leaf of a stretch of a matrix made of leaves only."""
    axes = plan.axes[carrier.parameter]
    factors = stretch(axes[carrier.axis], carrier.start, carrier.stop)
    return factors[-1] if len(axes) == 2 and factors and all(factor.is_leaf for factor in factors) else None


def _accounted(plan: Plan, leaf: Dim, products: _Products) -> bool:
    """Return whether `leaf` stands nowhere but in the products, and on one side of each only."""
    makers = products.left | products.right | products.written
    if bool(products.left) == bool(products.written) or products.left & products.right:
        return False
    readers = {(plan.weight_inputs[at].weight, plan.weight_inputs[at].axis) for at in products.reads}
    contracted: dict[str, set[int]] = defaultdict(set)
    for read in plan.weight_inputs:
        contracted[read.weight].add(read.axis)
    for carrier in makers:
        # A maker that is looked up, or that never reads along its other axis, has rows no moments are known of.
        if carrier.parameter in plan.looked_up or contracted[carrier.parameter] != {1 - carrier.axis}:
            return False
    biases = {read.bias for read in plan.weight_inputs if read.weight in {carrier.parameter for carrier in makers}}
    for weight, axes in plan.axes.items():
        for axis, dim in enumerate(axes):
            for start, part in pieces(dim):
                if leaf not in set(leaves(part)):
                    continue
                place = Carrier(weight, axis, start, start + part.size)
                known = place in makers or ((weight, axis) in readers and contracted[weight] == {axis})
                if not known and not (weight in biases and len(axes) == 1):
                    return False
    return True
