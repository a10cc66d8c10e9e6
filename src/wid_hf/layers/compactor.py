"""The maps of one axis, from the teacher's indices to the student's: learned, or a fixed selection.

Modules of plain tensors; `install` makes them, `FoldedWeight` applies them.
"""

from __future__ import annotations

from torch import Tensor, nn

from .fold import along


class Compactor(nn.Module):
    """A learned linear map from `n` teacher indices to `k` student indices of one axis.

    On the rows of a weight `W (d_out, d_in)` it is `R (k_out, d_out)`; on its columns it is the transpose of
    `C (d_in, k_in)`. Its matrix is float32, or float64 for a float64 teacher.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(start)

    def forward(self, tensor: Tensor, axis: int) -> Tensor:
        """Map `axis` of `tensor` from n to k."""
        return along(tensor, self.matrix, axis)

    def extra_repr(self) -> str:
        """Return `n -> k` for the printed module."""
        return f"{self.matrix.shape[1]} -> {self.matrix.shape[0]}"


class IndexSelect(nn.Module):
    """A fixed selection of `k` of `n` indices of one axis, each with a fixed factor.

    Vectors in a module without a matrix, such as normalisation weights, follow the index set of their dimension:
    mixing their entries would have no meaning.
    """

    indices: Tensor
    factors: Tensor

    def __init__(self, indices: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.register_buffer("factors", factors)

    def forward(self, tensor: Tensor, axis: int) -> Tensor:
        """Select along `axis` and scale."""
        shape = [-1 if at == axis else 1 for at in range(tensor.ndim)]
        return tensor.index_select(axis, self.indices) * self.factors.view(shape)

    def extra_repr(self) -> str:
        """Return `keeps k` for the printed module."""
        return f"keeps {self.indices.numel()}"
