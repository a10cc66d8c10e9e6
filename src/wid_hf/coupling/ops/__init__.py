"""One rule per aten operation, by family. Importing this package registers them all."""

from . import attention, conv, index, matmul, norm, pointwise, reduce, view

__all__ = ["attention", "conv", "index", "matmul", "norm", "pointwise", "reduce", "view"]
