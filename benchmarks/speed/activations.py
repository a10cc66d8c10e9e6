"""The same mathematics in activation space; for comparison only.

Takes a wid model, gives it modules that carry every token through the teacher's full weights:
`x -> C x -> W_teacher -> R` instead of `x -> (R W_teacher C) x`. Of a wide model, whose compactors are square, it is
what the paper's own code computes in every step of a training.
"""

from __future__ import annotations

from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from wid_hf.layers import Compactor, FoldedWeight


def in_activation_space(wid: PeftModel) -> PeftModel:
    """Put modules that fold no matrix in the place of those that do, and return `wid`. Vectors are folded as before.

    Raises:
        TypeError: a matrix of a module that is neither linear nor an embedding.
    """
    student = wid.base_model.model
    for name, module in list(student.named_modules()):
        maps = _compactors(module)
        if not maps:
            continue
        kinds = [made for kind, made in ((nn.Linear, _Linear), (nn.Embedding, _Embedding)) if isinstance(module, kind)]
        if not kinds:
            raise TypeError(f"{name} is a {type(module).__name__}: only linear layers and embeddings are known here")
        parent, _, attribute = name.rpartition(".")
        setattr(student.get_submodule(parent), attribute, kinds[0](module, maps))
    # The wid model's own hooks look after the layers that stood there: it refuses to train others.
    student._forward_pre_hooks.clear()
    student._forward_hooks.clear()
    return wid


def _compactors(module: nn.Module) -> dict[int, Compactor]:
    """Return the compactors of a module's matrix by axis; none where it is not folded."""
    if not parametrize.is_parametrized(module, "weight"):
        return {}
    (step, *_) = module.parametrizations.weight
    if not isinstance(step, FoldedWeight) or module.parametrizations.weight.original.ndim < 2:
        return {}
    return {int(axis): made for axis, made in step.maps.items() if isinstance(made, Compactor)}


class _Linear(nn.Module):
    """Carries inputs `(..., k_in)` to the teacher's `(..., d_in)`, through its weight, and to `(..., k_out)`."""

    def __init__(self, narrow: nn.Linear, maps: dict[int, Compactor]) -> None:
        super().__init__()
        self.narrow = narrow
        self.rows, self.columns = maps.get(0), maps.get(1)

    def forward(self, states: Tensor) -> Tensor:
        weight, bias = self.narrow.parametrizations.weight.original, self.narrow.bias
        if self.columns is not None:
            states = states @ self.columns.matrix
        if self.rows is None:
            return functional.linear(states, weight, bias)
        return functional.linear(functional.linear(states, weight), self.rows.matrix, bias)


class _Embedding(nn.Module):
    """Looks up the teacher's vectors and maps them."""

    def __init__(self, narrow: nn.Embedding, maps: dict[int, Compactor]) -> None:
        super().__init__()
        self.narrow = narrow
        self.columns = maps[1]

    def forward(self, indices: Tensor) -> Tensor:
        weight = self.narrow.parametrizations.weight.original
        found = functional.embedding(indices, weight, self.narrow.padding_idx)
        return functional.linear(found, self.columns.matrix)
