"""The maps of turned streams, from the moments of weight inputs.

Takes streams that may be turned, gathers their moments, and gives the maps of every weight along them. Called by
`initialize`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..coupling.carrier import Carrier
from ..coupling.dims import Dim
from ..coupling.landmark_record import Scaling
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from .moment_pass import InputMoments
from .moments import as_matrix
from .stream import Stream
from .stream_moments import TINY, StreamMoments
from .stream_span import Place
from .tied_table import fit_table
from .turned_map import TurnedMap, centred_map, outlying, principal_map


@dataclass(frozen=True)
class Turned:
    """Everything about turned streams that a start is made of.

    Attributes:
        maps: T `(k, n)` of each turned leaf.
        rotations: for each matrix along one, the map `(k, n)` of the axis.
        vectors: the student's value `(k,)` of each vector along one that belongs to no matrix.
        index_sets: for each leaf the teacher's indices that the student's are nearest to: of a head between the stream
            and a tied table.
    """

    maps: Mapping[Dim, Tensor] = field(default_factory=dict)
    rotations: Mapping[Carrier, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    index_sets: Mapping[Dim, Tensor] = field(default_factory=dict)


class StreamRotation:
    """Second moments of streams after each of their norms; a norm counts by the positions at which it is read.

    Where a norm's vector goes into the next matrices, moments are those before the vector. If a bias can hold a
    constant, the variation about the mean counts as one and the direction of the mean as one: its length, which may be
    many times the variation's, is needed to divide by, but an error of it is no error of the result. Where the stream
    goes on after the vector, only the variation counts.

    Args:
        trace: has the weights.
        plan: how wide each stream becomes.
        streams: those to turn.
    """

    def __init__(self, trace: Trace, plan: Plan, streams: Sequence[Stream]) -> None:
        self._trace = trace
        self._plan = plan
        self._streams = streams
        self._spaces = {space: stream for stream in streams for space in stream.spaces}
        self._moments: dict[int, StreamMoments] = {}
        self._first: dict[int, str] = {}
        self._grams: dict[int, Tensor] = {}  # W^T W of all weights that read a space

    def needs(self, at: int) -> bool:
        """Return whether the weight input lies in one of the streams."""
        return self._space(at) in self._spaces

    def add(self, moments: InputMoments) -> None:
        """Add what the weight reads, and the moments of its input if it is the first weight in the space."""
        space, weight_input = self._space(moments.at), moments.weight_input
        if space not in self._spaces:
            return
        scaling = self._spaces[space].readers.get((weight_input.weight, weight_input.axis))
        self._add_gram(space, scaling, moments.gram.cpu())
        if self._first.setdefault(space, weight_input.weight) != weight_input.weight:
            return
        covariance, mean = moments.covariance.matrix(centred=True), torch.zeros_like(moments.covariance.mean)
        if scaling is not None:
            covariance, mean = self._before(scaling, moments)
        centred = scaling is None or scaling.bias is not None
        found = StreamMoments.of(covariance, mean, centred, moments.covariance.count)
        old = self._moments.get(space)
        self._moments[space] = found if old is None else old + found

    def _add_gram(self, space: int, scaling: Scaling | None, gram: Tensor) -> None:
        if scaling is not None:  # in the coordinates before the vector
            factors = self._factors(scaling).to(gram)
            gram = factors[:, None] * gram * factors
        self._grams[space] = gram + self._grams.get(space, 0)

    def turned(self, keep_outliers: bool = False) -> Turned:
        """Return the maps of all streams.

        Args:
            keep_outliers: whether indices with outlying weights of norms stay as they are.
        """
        parts = [self._turn(stream, keep_outliers) for stream in self._streams]
        return Turned(
            {stream.leaf: part.maps[stream.leaf] for stream, part in zip(self._streams, parts, strict=True)},
            {carrier: map_ for part in parts for carrier, map_ in part.rotations.items()},
            {name: value for part in parts for name, value in part.vectors.items()},
            {leaf: indices for part in parts for leaf, indices in part.index_sets.items()},
        )

    @property
    def has_outliers(self) -> bool:
        """Whether a stream has indices with outlying weights of norms that stay in the stream."""
        return any(self._outliers(stream) for stream in self._streams)

    def _turn(self, stream: Stream, keep_outliers: bool) -> Turned:
        found = self._map(stream, self._outliers(stream) if keep_outliers else ())
        matrix, leaf = found.matrix, stream.leaf
        rotations: dict[Carrier, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        for name, axis in stream.axes:
            scaling = stream.readers.get((name, axis))
            folds = scaling is not None and name not in stream.tied
            map_ = matrix * self._factors(scaling).to(matrix) if scaling is not None and folds else matrix
            if sum(size > 1 for size in self._trace.weights[name].shape) > 1:
                rotations[Carrier(name, axis, 0, leaf.size)] = map_
            else:
                vectors[name] = matrix @ self._value(name).to(matrix)
        for scaling in stream.folded:
            vectors |= self._constant(scaling, matrix, matrix * self._factors(scaling).to(matrix))
        for scaling in stream.fitted:
            vectors[scaling.vector] = torch.full_like(matrix[:, 0], 1 - scaling.offset)
            if scaling.bias is not None:
                vectors[scaling.bias] = torch.zeros_like(matrix[:, 0])
        for name in stream.tied:
            self._tie(stream, name, matrix, rotations, vectors)
        return Turned({leaf: matrix}, rotations, vectors, {leaf: found.nearest})

    def _constant(self, scaling: Scaling, matrix: Tensor, through: Tensor) -> dict[str, Tensor]:
        """Return the student's vectors where the teacher's go into the next matrices.

        The student's norm divides by the mean of k squares, the teacher's by that of n. Its bias gives through the
        matrices' columns, `through (k, n)` transposed, what the teacher's does.
        """
        vectors = {scaling.vector: torch.full_like(matrix[:, 0], self._same_norm(matrix) - scaling.offset)}
        if scaling.bias is not None:
            bias = self._value(scaling.bias).to(matrix)
            # The shortest solution: images of a centred map have a mean of zero, so there are many.
            inverse = torch.linalg.pinv(through @ through.T, rtol=1e-10, hermitian=True)
            vectors[scaling.bias] = inverse @ (through @ bias)
        return vectors

    def _tie(
        self,
        stream: Stream,
        table: str,
        matrix: Tensor,
        rotations: dict[Carrier, Tensor],
        vectors: dict[str, Tensor],
    ) -> None:
        """Fit the columns of a table that is looked up and scores, and the vectors before its scores."""
        axis, scaling = next((axis, each) for (name, axis), each in stream.readers.items() if name == table)
        rows = as_matrix(self._value_of(table), axis).to(matrix)
        rows = rows - rows.mean(0)
        gram = rows.T @ rows
        group = next((group for group in self._plan.tables if table in group), {table})
        looked_up = self._looked_up(stream) if len(group) > 1 else gram  # few rows are looked up: one table counts all
        scored = self._moments[scaling.after]
        found = fit_table(
            matrix,
            self._factors(scaling).to(matrix),
            self._value(scaling.bias).to(matrix) if scaling.bias is not None else torch.zeros_like(matrix[0]),
            scored.mean / scored.count,
            scored.inner,
            looked_up,
            gram,
        )
        for name, place in stream.axes:
            if name in group and Carrier(name, place, 0, stream.leaf.size) in rotations:
                rotations[Carrier(name, place, 0, stream.leaf.size)] = found.columns.T
        vectors[scaling.vector] = found.vector * self._same_norm(matrix) - scaling.offset
        if scaling.bias is not None:
            vectors[scaling.bias] = found.bias

    def _looked_up(self, stream: Stream) -> Tensor:
        """Return the moments of sums of tables' rows `(n, n)`: after the first norm the stream is still that sum."""
        landmarks, known = self._plan.landmarks, stream.spaces & set(self._moments)
        return self._moments[next(each.after for each in landmarks.scalings if each.after in known)].inner

    @staticmethod
    def _same_norm(matrix: Tensor) -> float:
        k, n = matrix.shape
        return float((n / k) ** 0.5)

    def _map(self, stream: Stream, outliers: Sequence[int]) -> TurnedMap:
        k = self._plan.targets[stream.leaf]
        # Of a norm whose result is read at few positions (by a pooler) little is known.
        known = stream.spaces & set(self._moments)
        places = [Place(self._moments[space].basis, self._needs(stream, space)) for space in sorted(known)]
        if not places:
            same = torch.eye(stream.leaf.size, dtype=torch.float64)
            places = [Place(same, same)]
        return centred_map(places, k, outliers) if stream.centred else principal_map(places, k)

    def _needs(self, stream: Stream, space: int) -> Tensor:
        """Return what is needed of the stream in a space `(n, n)`: what weights read, or all that callers see."""
        gram = self._grams[space]
        if stream.is_output:
            gram = torch.eye(len(gram)).to(gram)
        return gram / gram.trace().clamp(min=TINY)

    def _outliers(self, stream: Stream) -> list[int]:
        if not stream.centred:
            return []
        return outlying([self._factors(each).double() for each in stream.fitted], self._plan.targets[stream.leaf])

    def _before(self, scaling: Scaling, moments: InputMoments) -> tuple[Tensor, Tensor]:
        """Return covariance and mean of a weight input, as it was before its multiplication by a vector."""
        factors = self._factors(scaling).to(moments.covariance.mean)
        inverse = torch.where(factors == 0, 0, 1 / factors)
        mean = moments.covariance.mean
        if scaling.bias is not None:
            mean = mean - self._value(scaling.bias).to(mean)
        return inverse[:, None] * moments.covariance.matrix(centred=True) * inverse, mean * inverse

    def _factors(self, scaling: Scaling) -> Tensor:
        return self._value(scaling.vector) + scaling.offset

    def _value(self, vector: str) -> Tensor:
        return self._value_of(vector).flatten().double()

    def _value_of(self, weight: str) -> Tensor:
        return self._trace.weights[weight].detach().cpu()

    def _space(self, at: int) -> int | None:
        weight_input = self._plan.weight_inputs[at]
        return self._plan.landmarks.spaces.get((weight_input.weight, weight_input.axis, True))
