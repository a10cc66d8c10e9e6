"""The weights that write into a turned stream, fitted to what the student's stream still lacks.

At a residual sum the student's stream should be `T x`, with x the teacher's; what the weights before the sum have to
add is the rest. They are fitted to it by ridge regression on their inputs in the student; a position counts by the
inverse of its energy. Called by `reconstruction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..coupling.landmark_record import Landmark, Sum
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from ..layers import Compactor, FoldedWeight
from .forward_thread import Operand
from .lockstep import Operands
from .moments import TINY, Regression, full
from .residual_writer import Writer, write
from .stream import Stream

SHORTEST = 0.01  # of the mean energy of positions: those with less count as if they had this

Pair = tuple[Operand, Operand]
Batch = tuple[Operand, Operand, list[Pair]]


class ResidualFit:
    """Fits the weights before residual sums.

    Args:
        trace: has the teacher's weights.
        plan: sizes and landmarks.
        folded: the student's folded weights.
        streams: each turned stream with its map T `(k, n)`.
        ridge: least ridge strength towards what the weights are, relative to the mean variance of the inputs.

    Attributes:
        sums: the sums before which weights are fitted.
        inputs: numbers of the weight inputs that these need.
    """

    def __init__(
        self,
        trace: Trace,
        plan: Plan,
        folded: Mapping[str, FoldedWeight],
        streams: Sequence[tuple[Stream, Tensor]],
        ridge: float,
    ) -> None:
        self._weights = {name: weight.detach() for name, weight in trace.weights.items()}
        self._plan = plan
        self._folded = folded
        self._ridge = ridge
        self._maps = {space: (stream, map_) for stream, map_ in streams for space in stream.spaces}
        self._kept: dict[int, tuple[Operands, Operands]] = {}
        self._so_far: dict[tuple[str, ...], Regression] = {}  # of weights that are used several times
        writers = {
            place: self._writers(plan.landmarks.sums[place.number])
            for place in plan.landmarks.of("sum")
            if plan.landmarks.sums[place.number].space in self._maps
        }
        self._writers_before = {place: found for place, found in writers.items() if found}
        self.sums = frozenset(self._writers_before)
        self.inputs = frozenset(each.at for found in self._writers_before.values() for each in found)

    def keep(self, at: int, teacher: Operands, student: Operands) -> None:
        """Keep the inputs of a weight until the sum of its output."""
        if at in self.inputs:
            self._kept[at] = teacher, student

    @torch.no_grad()
    def fit(self, place: Landmark, teacher: Operands, student: Operands) -> tuple[str, ...]:
        """Fit the weights before a sum, correct the student's stream in place, and return what changed.

        Nothing is done where positions of teacher and student cannot be paired.
        """
        writers = self._writers_before[place]
        space = self._plan.landmarks.sums[place.number].space
        stream, map_ = self._maps[space]
        follows_norm = any(scaling.after == space for scaling in stream.fitted)
        batches = self._paired(writers, teacher, student)
        if batches is None:
            return ()
        regression = self._regression(writers, map_)
        before = [writer.affine() for writer in writers]
        for mine, theirs, pairs in batches:
            regression.add(
                *self._observations(writers, before, map_, stream.centred, follows_norm, mine, theirs, pairs)
            )
        write(writers, regression, max(self._ridge, _ridge_of_few(regression)))
        change = [
            (new - old, shift - was)
            for (new, shift), (old, was) in zip(map(Writer.affine, writers), before, strict=True)
        ]
        for _, theirs, pairs in batches:
            for writer, (matrix, bias), (_, own) in zip(writers, change, pairs, strict=True):
                inner = own.tensor.movedim(own.axis, -1).flatten(0, -2).to(matrix.dtype)
                added = writer.factor * (inner @ matrix.T + bias)
                theirs.tensor.add_(added.view(theirs.tensor.shape).to(theirs.tensor))
        return tuple(
            name for each in writers for name in (each.weight_input.weight, each.weight_input.bias) if name is not None
        )

    def _paired(self, writers: Sequence[Writer], teacher: Operands, student: Operands) -> list[Batch] | None:
        """Return for each batch both sums with the inputs of all weights; None where positions cannot be paired."""
        kept = [both for writer in writers if (both := self._kept.pop(writer.at, None)) is not None]
        if len(kept) < len(writers):
            return None
        batches = []
        for number, (mine, theirs) in enumerate(zip(teacher, student, strict=True)):
            if mine is None and theirs is None:
                continue
            batch = _batch(mine, theirs, [(one[number], other[number]) for one, other in kept])
            if batch is None:
                return None
            batches.append(batch)
        return batches or None

    def _writers(self, found: Sum) -> list[Writer]:
        """Return the weights before a sum; none unless all of them can be fitted."""
        writers = [self._writer(at, factor) for at, factor in found.terms]
        return [each for each in writers if each is not None] if all(writers) else []

    def _writer(self, at: int, factor: float) -> Writer | None:
        weight_input = self._plan.weight_inputs[at]
        name = weight_input.weight
        if name not in self._folded or len(self._plan.axes[name]) != 2 or weight_input.routed or not factor:
            return None
        modules = dict(self._folded[name].maps.items())
        rows = modules.get(str(1 - weight_input.axis))
        columns = modules.get(str(weight_input.axis))
        if not isinstance(rows, Compactor) or not (columns is None or isinstance(columns, Compactor)):
            return None
        bias = weight_input.bias
        return Writer(
            at,
            factor,
            weight_input,
            self._weights[name],
            self._folded[name],
            rows,
            columns,
            self._weights[bias] if bias is not None else None,
            self._folded.get(bias) if bias is not None else None,
        )

    def _regression(self, writers: Sequence[Writer], map_: Tensor) -> Regression:
        """Return moments to add to: new ones, or those of the earlier uses of shared weights."""
        names = tuple(each.weight_input.weight for each in writers)
        uses = sum(other.weight == names[0] for other in self._plan.weight_inputs)
        fresh = Regression(len(map_), sum(each.width for each in writers), self._weights[names[0]].device)
        return self._so_far.setdefault(names, fresh) if uses > 1 else fresh

    def _observations(
        self,
        writers: Sequence[Writer],
        now: Sequence[tuple[Tensor, Tensor]],
        map_: Tensor,
        centred: bool,
        follows_norm: bool,
        mine: Operand,
        theirs: Operand,
        pairs: Sequence[Pair],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the weights should add `(rows, k)`, their inputs `(rows, features)` and weights of positions.

        What reads the stream divides it by its length, so an error counts by its share of that.
        """
        wanted, found = full(mine.rows), full(theirs.rows)
        map_ = map_.to(wanted)
        wanted = wanted @ map_.T
        features = []
        for writer, (matrix, bias), (_, own) in zip(writers, now, pairs, strict=True):
            rows = full(own.rows)
            found = found - writer.factor * (rows @ matrix.to(rows).T + bias.to(rows))
            inner = rows if writer.columns is not None else rows @ full(writer.original).T
            features.append(writer.factor * inner)
        if follows_norm:
            wanted = wanted * self._scale(writers, map_, wanted, found, pairs)
        missing = wanted - found
        if centred:  # norms do not see the mean over indices, and rows of a centred map cannot make one
            missing = missing - missing.mean(1, keepdim=True)
            wanted = wanted - wanted.mean(1, keepdim=True)
        energy = wanted.square().mean(1)
        least = (SHORTEST * energy.mean()).clamp(min=TINY)
        return missing, torch.cat(features, 1), 1 / energy.clamp(min=least)

    def _scale(
        self, writers: Sequence[Writer], map_: Tensor, wanted: Tensor, found: Tensor, pairs: Sequence[Pair]
    ) -> Tensor:
        """Return for each position how much larger the student's residual is than the turned teacher's `(rows, 1)`.

        The next norm divides by the length of the sum, so the sum may have any scale.
        """
        residual = wanted
        for writer, (own, _) in zip(writers, pairs, strict=True):
            output = full(own.rows) @ (map_ @ full(writer.original).to(map_)).T
            if writer.original_bias is not None:
                output = output + map_ @ writer.original_bias.to(map_)
            residual = residual - writer.factor * output
        residual = residual - residual.mean(1, keepdim=True)
        found = found - found.mean(1, keepdim=True)
        energy = residual.square().sum(1, keepdim=True)
        scale = (residual * found).sum(1, keepdim=True) / energy.clamp(min=torch.finfo(energy.dtype).tiny)
        return torch.where(energy > 0, scale, 1.0)


def _ridge_of_few(regression: Regression) -> float:
    """Return the square of the features per position: with one position a feature the ridge is as strong as the data.

    Measured on MiniLM, see docs/design.md; from 30 positions a feature it is weaker than the least one, 0.001.
    """
    return (len(regression.student) / max(regression.count, 1)) ** 2


def _batch(
    mine: Operand | None, theirs: Operand | None, inputs: Sequence[tuple[Operand | None, Operand | None]]
) -> Batch | None:
    """Return both sums with the inputs of all weights; None if one is missing or has other positions."""
    pairs = [(own, its) for own, its in inputs if own is not None and its is not None]
    if mine is None or theirs is None or len(pairs) < len(inputs):
        return None
    return (mine, theirs, pairs) if _same_positions(mine, theirs, pairs) else None


def _same_positions(mine: Operand, theirs: Operand, pairs: Sequence[Pair]) -> bool:
    """Return whether sums and inputs of teacher and student have the same positions, in memory as in order."""
    everything = [mine, theirs, *(operand for pair in pairs for operand in pair)]
    return len({operand.positions for operand in everything}) == 1 and theirs.held.is_contiguous()
