"""The last step of a refinement: what stands behind the last layers, by gradient on cached streams.

Takes the streams of teacher and student behind their last layers; trains norms, poolers, transforms and heads that are
no tables. Called by `layer_by_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...coupling.dims import Dim
from ...coupling.trace import Trace, output_tensors
from ..padding import Padding
from .losses import divergence, relative_error
from .pieces import Pieces
from .streams import Streams

Maps = Callable[[Dim], Tensor]
Outputs = list[tuple[str, Tensor]]


class HeadLoss:
    """The loss of the model's outputs that depend on the given tensors.

    Scores (an output whose name has "logits" in it) are compared by the divergence of their softmax; all others by
    their squared error, hidden states in the student's coordinates.

    Args:
        teacher: behind its last layers.
        student: behind its last layers.
        trace: has the dimensions of the outputs.
        maps: from teacher to student, of an axis.
        pieces: the data.

    Attributes:
        depends: which outputs count, set by `reached`.
    """

    def __init__(self, teacher: Streams, student: Streams, trace: Trace, maps: Maps, pieces: Pieces) -> None:
        self._teacher, self._student = teacher, student
        self._maps, self._pieces = maps, pieces
        # Of the first example, whose outputs come first.
        self._dims = [dims for dims in trace.output_dims if dims]
        self.depends: set[int] | None = None

    @torch.enable_grad()
    def reached(self, leaves: Mapping[str, Tensor]) -> set[str]:
        """Return the names of the tensors behind the last layers, and remember which outputs depend on them.

        An output of the first piece depends on them, and what layers are called with does not: an encoder's last norm
        gives an output, but also what the decoder's layers read, which have been fitted to it.
        """
        output, arguments = self._student.outputs_and_arguments(0)
        made = _outputs(output)
        comparable = [at for at, _, _ in self._pairs(made, _outputs(self._teacher.outputs(0)))]
        before = _depended_on(leaves, [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)])
        behind = {name: leaf for name, leaf in leaves.items() if name not in before}
        found = {at: _depended_on(behind, [made[at][1]]) for at in comparable}
        self.depends = {at for at, names in found.items() if names}
        return set().union(*found.values())

    def __call__(self, at: int) -> Tensor:
        """Return the loss of piece number `at`."""
        padding = Padding(self._pieces.all[at])
        with torch.no_grad():
            wanted = _outputs(self._teacher.outputs(at))
        made = _outputs(self._student.outputs(at))
        terms = [
            divergence(mine, target, padding) if "logits" in made[place][0] else relative_error(mine, target, padding)
            for place, mine, target in self._pairs(made, wanted)
            if self.depends is None or place in self.depends
        ]
        return torch.stack(terms).sum()

    def _pairs(self, made: Outputs, wanted: Outputs) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the number of each output that can be compared, the student's, and the teacher's mapped."""
        for at, ((_, mine), (_, theirs)) in enumerate(zip(made, wanted, strict=True)):
            dim = self._dims[at][-1] if at < len(self._dims) else None
            if dim is not None and mine.shape[-1] < theirs.shape[-1] == dim.size:
                yield at, mine, theirs @ self._maps(dim).to(theirs).T
            elif mine.shape == theirs.shape:
                yield at, mine, theirs


def _depended_on(leaves: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> set[str]:
    """Return the names of the leaves on which one of these tensors depends."""
    reaching = [tensor.float().square().sum() for tensor in tensors if tensor.requires_grad]
    if not (reaching and leaves):
        return set()
    gradients = torch.autograd.grad(
        torch.stack(reaching).sum(), [*leaves.values()], allow_unused=True, retain_graph=True
    )
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


def _outputs(output: Any) -> Outputs:
    """Return the tensors of real numbers in a model's output, with the names of the entries that they are in."""
    entries = output.items() if isinstance(output, Mapping) else [("", output)]
    tensors = [(name, tensor) for name, entry in entries for tensor in output_tensors(entry)]
    return [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.ndim]
