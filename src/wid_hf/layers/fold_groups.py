"""Which weights of a student are folded together: those of equal shapes in one list of layers.

Takes an installed student, gives `FoldGroup`s; `FoldCache` decides when they fold.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .compactor import Compactor, IndexSelect
from .folded_weight import FoldedWeight, Place, asks_for_gradients_later, places
from .stacked_fold import Stack, stacked_fold, stacked_selection

MOST = {"cpu": 2**24}  # elements of a stack, by device; where a launch costs little, more would only take memory
MOST_ELSEWHERE = 2**26
IN_A_LIST = re.compile(r"(.*?)\.\d+(\.|$)")


class Source:
    """A folded weight and where its teacher's tensor is.

    Args:
        place: one of the places where the weight is used.

    Attributes:
        weight: the folded weight.
        maps: its maps by axis.
        layers: path of the list of layers that it stands in, or "".
    """

    def __init__(self, place: Place) -> None:
        inside = IN_A_LIST.match(place.path)
        lists: Any = place.module.parametrizations
        self._holder = lists[place.attribute]
        self.weight = place.weight
        self.layers = inside[1] if inside else ""
        self.maps: dict[int, Any] = {int(axis): map_ for axis, map_ in place.weight.maps.items()}

    @property
    def original(self) -> Tensor:
        """The teacher's tensor, as it is now: moving a model may replace it."""
        tensor: Tensor = self._holder.original
        return tensor

    @property
    def is_matrix(self) -> bool:
        """Whether this is a matrix that learned maps alone make smaller."""
        learned = all(isinstance(map_, Compactor) for map_ in self.maps.values())
        return self.original.ndim == 2 and bool(self.maps) and learned and self.weight.shift is None

    @property
    def is_selected(self) -> bool:
        """Whether this is a vector of which a selection stays."""
        return self.original.ndim == 1 and isinstance(self.maps.get(0), IndexSelect)

    @property
    def is_mapped_vector(self) -> bool:
        """Whether this is a vector with a learned map."""
        return self.original.ndim == 1 and isinstance(self.maps.get(0), Compactor)

    @property
    def form(self) -> Hashable:
        """What is equal for weights that are folded together."""
        sizes = tuple((axis, len(_tensor(map_))) for axis, map_ in sorted(self.maps.items()))
        original = self.original
        return original.shape, original.dtype, original.device, sizes, self.weight.shift is not None, self.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the student's weight."""
        return self.weight.dtype or self.original.dtype

    @property
    def largest(self) -> int:
        """Elements of the largest tensor that is stacked."""
        return max(tensor.numel() for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Return the teacher's tensor, those of the maps, and the shift."""
        shift = [] if self.weight.shift is None else [self.weight.shift]
        return [self.original, *[_tensor(map_) for map_ in self.maps.values()], *shift]


class FoldGroup(ABC):
    """Weights that are folded together.

    Args:
        members: each a weight, and the vectors that have one of its maps; all of one form.
    """

    def __init__(self, members: Sequence[Sequence[Source]]) -> None:
        self.columns = [*zip(*members, strict=True)]
        self.weights = [source.weight for column in self.columns for source in column]
        self._shapes = [tensor.shape for tensor in self._tensors()]

    def fold(self) -> dict[FoldedWeight, Tensor] | None:
        """Fold all weights: what each is in the student, `(k_out, k_in)` or `(k,)`, in the student's dtype.

        Returns:
            None if they cannot be stacked now: their tensors are sharded, quantized, or on several devices.
        """
        tensors = self._tensors()
        device = tensors[0].device
        if not (_can_be_stacked(tensors, self._shapes, device) and self._has_one_dtype()):
            return None
        dtype = _dtype_of_products(device.type)
        with torch.autocast(device.type, enabled=False):
            folds = [fold for column in self._folds(dtype) for fold in column]
        return dict(zip(self.weights, folds, strict=True))

    def fold_like_parameters(self) -> dict[FoldedWeight, Tensor] | None:
        """Fold all; see `FoldedWeight.fold_like_a_parameter`."""
        folds = self.fold()
        if folds is not None and asks_for_gradients_later():
            for column in self.columns:
                for source in column:
                    folds[source.weight].requires_grad_(source.original.requires_grad)
        return folds

    @abstractmethod
    def _folds(self, dtype: torch.dtype | None) -> Iterable[Sequence[Tensor]]:
        """Return the folds of each column, by products in `dtype`; None for that of the maps."""

    def _has_one_dtype(self) -> bool:
        """Return whether results are alike, and what is stacked: single weights may have been cast."""
        first = self.columns[0][0]
        for column in self.columns:
            own = [tensor.dtype for tensor in column[0].tensors()]
            for source in column:
                if source.dtype != first.dtype or [tensor.dtype for tensor in source.tensors()] != own:
                    return False
        return True

    def _tensors(self) -> list[Tensor]:
        return [tensor for column in self.columns for source in column for tensor in source.tensors()]


class MatrixGroup(FoldGroup):
    """Matrices and the vectors that have one of their maps.

    Args:
        members: see `FoldGroup`.
        beside: for each vector of a member the axis of the matrix whose map it has.
    """

    def __init__(self, members: Sequence[Sequence[Source]], beside: tuple[int, ...]) -> None:
        super().__init__(members)
        self._beside = beside

    def _folds(self, dtype: torch.dtype | None) -> Iterable[Sequence[Tensor]]:
        matrices, *vectors = self.columns
        stack = Stack(
            [each.original for each in matrices],
            {axis: [each.maps[axis].matrix for each in matrices] for axis in matrices[0].maps},
            self._beside,
            [[each.original for each in column] for column in vectors],
            [_shifts(column) for column in vectors if column[0].weight.shift is not None],
            matrices[0].dtype,
        )
        return stacked_fold(stack, dtype or next(iter(matrices[0].maps.values())).matrix.dtype)


class SelectionGroup(FoldGroup):
    """Vectors of which a selection stays."""

    def _folds(self, dtype: torch.dtype | None) -> Iterable[Sequence[Tensor]]:
        (vectors,) = self.columns
        maps = [each.maps[0] for each in vectors]
        originals = [each.original for each in vectors]
        return [stacked_selection(originals, [m.indices for m in maps], [m.factors for m in maps], _shifts(vectors))]


def fold_groups(student: nn.Module, apart: Collection[FoldedWeight] = ()) -> list[FoldGroup]:
    """Return the groups of an installed student; weights in none of them are folded one by one.

    Weights of different lists of layers are in different groups, since a forward may leave a whole list out, as an
    encoder's in generation.

    Args:
        student: an installed student.
        apart: weights that shall be in no group.
    """
    sources = [*{place.weight: Source(place) for place in places(student) if place.weight not in apart}.values()]
    return [*_matrix_groups(sources), *_selection_groups(sources)]


def _matrix_groups(sources: Sequence[Source]) -> Iterator[FoldGroup]:
    matrices = [source for source in sources if source.is_matrix]
    by_form: dict[Hashable, list[tuple[Source, ...]]] = defaultdict(list)
    axes_of: dict[Hashable, tuple[int, ...]] = {}
    for matrix, (axes, vectors) in _vectors_beside(matrices, sources).items():
        own: Hashable = axes, tuple(each.form for each in (matrix, *vectors))
        by_form[own].append((matrix, *vectors))
        axes_of[own] = axes
    for form, members in by_form.items():
        yield from (MatrixGroup(some, axes_of[form]) for some in _parted(members))


def _selection_groups(sources: Sequence[Source]) -> Iterator[FoldGroup]:
    by_form: dict[Hashable, list[tuple[Source, ...]]] = defaultdict(list)
    for source in sources:
        if source.is_selected:
            by_form[source.form].append((source,))
    for members in by_form.values():
        yield from map(SelectionGroup, _parted(members))


def _vectors_beside(
    matrices: Sequence[Source], sources: Sequence[Source]
) -> dict[Source, tuple[tuple[int, ...], list[Source]]]:
    """Return for each matrix the axes whose maps vectors have, and these vectors; all or none have shifts."""
    owners = {map_: (matrix, axis) for matrix in reversed(matrices) for axis, map_ in matrix.maps.items()}
    found: dict[Source, tuple[tuple[int, ...], list[Source]]] = {matrix: ((), []) for matrix in matrices}
    for vector in sources:
        if vector.is_mapped_vector and vector.maps[0] in owners:
            matrix, axis = owners[vector.maps[0]]
            axes, vectors = found[matrix]
            alike = not vectors or (vectors[0].weight.shift is None) == (vector.weight.shift is None)
            if alike and vector.dtype == matrix.dtype:
                found[matrix] = (*axes, axis), [*vectors, vector]
    return found


def _parted(members: Sequence[tuple[Source, ...]]) -> Iterator[Sequence[tuple[Source, ...]]]:
    """Yield members of one form by lists of layers, as many at once as fit into a stack."""
    lists = {source.layers for source, *_ in members} - {""}
    only = lists.pop() if len(lists) == 1 else None
    by_list: dict[Hashable, list[tuple[Source, ...]]] = defaultdict(list)
    for member in members:
        # What stands in no list goes with the only one there is. Otherwise it stays apart: two towers may end there,
        # and what is folded together has one graph, through which one backward pass may go.
        by_list[member[0].layers or only or member[0]].append(member)
    one = members[0][0]
    most = max(MOST.get(one.original.device.type, MOST_ELSEWHERE) // one.largest, 1)
    for some in by_list.values():
        yield from (some[at : at + most] for at in range(0, len(some), most))


def _can_be_stacked(tensors: Sequence[Tensor], shapes: Sequence[torch.Size], device: torch.device) -> bool:
    for tensor, shape in zip(tensors, shapes, strict=True):
        # A sharded or quantized tensor is of a class of its own.
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device != device or tensor.shape != shape:
            return False
    return True


def _shifts(column: Sequence[Source]) -> list[Tensor]:
    return [each.weight.shift for each in column if each.weight.shift is not None]


def _tensor(map_: Compactor | IndexSelect) -> Tensor:
    return map_.matrix if isinstance(map_, Compactor) else map_.factors


def _dtype_of_products(device: str) -> torch.dtype | None:
    """Return that of autocast where it is on: a fold is a product like the others that it makes cheaper.

    Not on a CPU, most of which multiply no faster in half precision. The folds themselves stay in the teacher's dtype.
    """
    if device != "cpu" and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
