"""The wide phase: a stock model at the teacher's width whose statistics ignore dropped indices.

Takes the wide model, the plan and the trace; the controller sets the index sets. No module is replaced: while a module
that sums over a shrinking dimension runs, torch's public function mode restricts those sums to the kept indices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..arithmetic import full_float32
from ..coupling import Dim, Plan, Trace
from ..coupling.index_sets import IndexSets, axis_indices
from ..coupling.plan import key
from ..coupling.trace import output_tensors, quiet_forward
from ..errors import PlanError
from ..layers import compactor_axes

NORMS = {torch.norm, Tensor.norm, torch.linalg.vector_norm}
NORMALISATIONS = {functional.layer_norm, functional.rms_norm}
REDUCTIONS = NORMS | {
    torch.mean,
    Tensor.mean,
    torch.sum,
    Tensor.sum,
    torch.var,
    Tensor.var,
    torch.std,
    Tensor.std,
    torch.amax,
    Tensor.amax,
    torch.amin,
    Tensor.amin,
}


class MaskedStatistics:
    """Restricts the statistics of a wide model to index sets, once `keep` is called.

    Args:
        wide: a model with the teacher's widths.
        plan: the coupled dimensions.
        trace: the teacher's, which knows what each module sums over.

    Raises:
        PlanError: one module sums over two different shrinking dimensions of one size, so that one
            cannot be distinguished from the other.
    """

    def __init__(self, wide: nn.Module, plan: Plan, trace: Trace) -> None:
        self.wide, self.plan = wide, plan
        self.modes: list[tuple[Dim, _MaskedReductions]] = []
        self._hooks: list[RemovableHandle] = []
        for name, dims in trace.reduced.items():
            shrinking = {key(dim): dim for dim in dims if plan.size(dim) < dim.size}
            sizes = [dim.size for dim in shrinking.values()]
            if len(set(sizes)) < len(sizes):
                raise PlanError(
                    f"A progressive schedule is not supported here: `{name}` takes statistics over two different "
                    f"dimensions of size {sizes[0]}, so that one cannot be distinguished from the other. "
                    'Use schedule="narrow".'
                )
            if shrinking:
                modes = [_MaskedReductions(dim.size) for dim in shrinking.values()]
                self.modes += zip(shrinking.values(), modes, strict=True)
                self._hooks += _around(wide.get_submodule(name), modes)

    def remove(self) -> None:
        """Let the model's modules compute their statistics unrestricted again."""
        for hook in self._hooks:
            hook.remove()

    def keep(self, sets: IndexSets) -> None:
        """Take statistics over these indices from now on; over all indices of a dimension that loses none."""
        device = next(self.wide.parameters()).device
        for dim, mode in self.modes:
            indices = axis_indices(self.plan, dim, sets)
            mode.indices = torch.tensor(indices, device=device) if len(indices) < dim.size else None


def check_wide(
    wide: nn.Module, narrow: nn.Module, plan: Plan, trace: Trace, sets: IndexSets, statistics: MaskedStatistics
) -> None:
    """Refuse a model whose wide form, all dropped rows at zero, is not its narrow form.

    Args:
        wide: with compactors that are the identity; it is returned to this state.
        narrow: with compactors that select `sets`.
        plan: the coupled dimensions.
        trace: the teacher's; its first example is run.
        sets: the index sets of this trial.
        statistics: of `wide`.

    Raises:
        PlanError: the outputs differ; the narrow schedule remains.
    """
    squares = list(compactor_axes(wide, plan))
    with torch.no_grad():
        for square, dim in squares:
            kept = torch.zeros_like(square.matrix)
            indices = axis_indices(plan, dim, sets)
            kept[indices, indices] = 1
            square.matrix.copy_(kept)
        statistics.keep(sets)
        with quiet_forward(wide), quiet_forward(narrow), full_float32():
            of_wide = output_tensors(wide(**trace.examples[0].inputs))
            of_narrow = output_tensors(narrow(**trace.examples[0].inputs))
        statistics.keep({})
        for square, _ in squares:
            torch.nn.init.eye_(square.matrix)
    for ours, theirs, dims in zip(of_wide, of_narrow, trace.output_dims, strict=False):
        off = _difference(_narrow_part(ours, dims, plan, sets), theirs)
        if not off <= 1e3 * (torch.finfo(ours.dtype).eps if ours.is_floating_point() else 0):
            raise PlanError(
                f"A progressive schedule is not supported for {type(wide).__name__}: with dropped rows at zero its "
                f"outputs differ from the narrow model's by {off:.1e} of the largest of them. "
                + ("Its positions are computed from the config. " if plan.matched else "")
                + 'Use schedule="narrow".'
            )


def _narrow_part(output: Tensor, dims: Sequence[Dim], plan: Plan, sets: IndexSets) -> Tensor:
    """Return the indices of an output of the wide model that the narrow one has as well."""
    for axis, dim in enumerate(dims):
        if plan.size(dim) < dim.size:
            output = output.index_select(axis, torch.tensor(axis_indices(plan, dim, sets), device=output.device))
    return output


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest number; 0 for tensors of integers."""
    if not ours.is_floating_point():
        return 0.0
    return float((ours - theirs).abs().max()) / float(theirs.abs().max().clamp(min=1e-6))


class _MaskedReductions(TorchFunctionMode):
    """Restricts reductions of the last axis, if it has `size` indices, to `indices`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.indices: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        tensor = args[0] if args else given.get("input")
        if self.indices is None or not self._has_axis(tensor):
            return func(*args, **given)
        if func in NORMALISATIONS and len(args[1]) == 1:
            return _normalised(func is functional.layer_norm, self.indices, *args, **given)
        others = args[2:] if func in NORMS else args[1:]  # a norm's order comes before its dimensions
        if func in REDUCTIONS and _reduces_last(tensor, others, given):
            used = tensor.index_select(-1, self.indices)
            return func(used, *args[1:], **given) if args else func(**{**given, "input": used})
        return func(*args, **given)

    def _has_axis(self, tensor: object) -> TypeGuard[Tensor]:
        return isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape[-1] == self.size


def _reduces_last(tensor: Tensor, args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    places = given.get("dim", next((arg for arg in args if isinstance(arg, (int, list, tuple))), None))
    if places is None:
        return True  # it reduces all dimensions
    return tensor.ndim - 1 in {place % tensor.ndim for place in ([places] if isinstance(places, int) else places)}


def _normalised(
    centred: bool,
    indices: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Return `weight * (x - m) / sqrt(v + eps) + bias` with m and v over `indices`; m = 0 for RMS norms.

    The variance is the biased one and eps is inside the root, as in torch.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    used = wide.index_select(-1, indices)
    if centred:
        mean = used.mean(-1, keepdim=True)
        wide, used = wide - mean, used - mean
    inside = torch.finfo(x.dtype).eps if eps is None else eps
    result = wide * torch.rsqrt(used.square().mean(-1, keepdim=True) + inside)
    if weight is not None:
        result = result * weight
    if bias is not None:
        result = result + bias
    return result if torch.is_autocast_enabled(x.device.type) else result.to(x.dtype)


def _around(module: nn.Module, modes: Sequence[_MaskedReductions]) -> list[RemovableHandle]:
    """Turn `modes` on while `module` runs, and off again even if its forward raises."""

    def enter(*_: Any) -> None:
        for mode in modes:
            mode.__enter__()

    def leave(*_: Any) -> None:
        for mode in reversed(modes):
            mode.__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
