"""From the wide model to the narrow one in the middle of training, with weights, optimizer and wrapper.

Takes a wide model and a narrow student installed with its index sets. Called by the controller. The model that trains
stays the same object: hooks, patched methods, settings and references to it or its modules keep working.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.join import Joinable
from torch.nn.parallel import DistributedDataParallel
from transformers import PretrainedConfig

from ..layers import Compactor, folded_weights

OF_TORCH = frozenset(vars(nn.Module()))  # attributes that torch gives every module: its parts, hooks and mode
PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Moved:
    """What a wide compactor `(n, n)` became.

    Attributes:
        new: the narrow compactor `(k, n)`.
        rows: `(k,)` the rows of the wide compactor that it has.
        factors: `(k,)` the factor of each row (attention scale).
    """

    new: nn.Parameter
    rows: Tensor
    factors: Tensor


def take_over(wide: nn.Module, narrow: nn.Module) -> dict[Tensor, Moved]:
    """Give `narrow`, fresh from `install`, the kept rows of `wide`'s compactors; return what each became.

    A fresh compactor selects and scales, `S (k, n)`; it becomes `S M`, with `M (n, n)` the wide one.
    """
    moved: dict[Tensor, Moved] = {}
    into = folded_weights(narrow)
    for name, folded in folded_weights(wide).items():
        for axis, old in folded.maps.items():
            fresh = into[name].maps[axis]
            if not isinstance(old, Compactor) or not isinstance(fresh, Compactor) or old.matrix in moved:
                continue
            rows = fresh.matrix.detach().abs().argmax(dim=1)
            factors = fresh.matrix.detach()[torch.arange(len(rows), device=rows.device), rows]
            with torch.no_grad():
                fresh.matrix.copy_(old.matrix[rows] * factors[:, None])
            fresh.matrix.requires_grad_(old.matrix.requires_grad)
            moved[old.matrix] = Moved(fresh.matrix, rows, factors)
    return moved


def become(model: nn.Module, made: nn.Module, before: nn.Module, weights: Collection[str]) -> None:
    """Give `model` the sizes and the compactors of `made`, in place; everything else that was set on it stays.

    `made` and `before` are fresh from their class, so they differ only in what depends on the sizes: numbers in modules
    and configs, and tables computed from the config.

    Args:
        model: the model that trains.
        made: fresh from `install`; its compactors become those of `model`.
        before: fresh from its class, with the sizes that `model` has now; its weights are not used.
        weights: the names in a checkpoint.
    """
    fresh, old = dict(made.named_modules()), dict(before.named_modules())
    for name, module in model.named_modules():
        if name in fresh and name in old:
            for attribute, value in vars(fresh[name]).items():
                if attribute not in OF_TORCH:
                    _resize(module, attribute, value, vars(old[name]).get(attribute))
    tables = dict(chain(before.named_buffers(), before.named_parameters()))
    for name, table in chain(made.named_buffers(), made.named_parameters()):
        if name in tables and name not in weights and not _same(table, tables[name]):
            path, _, attribute = name.rpartition(".")
            owner = model.get_submodule(path)
            if isinstance(table, nn.Parameter):
                owner._parameters[attribute] = table
            else:
                owner._buffers[attribute] = table
    for name, folded in folded_weights(made).items():
        path, _, attribute = name.rpartition(".")
        steps: Any = model.get_submodule(path).parametrizations
        steps[attribute][0] = folded


def _resize(module: nn.Module, attribute: str, value: Any, before: Any) -> None:
    """Set one attribute of a module, if its class gives it another value for the new sizes than for the old."""
    if isinstance(value, PretrainedConfig) and isinstance(before, PretrainedConfig):
        rewrite(vars(module)[attribute], value, before)
    elif isinstance(value, Tensor):
        if not isinstance(before, Tensor) or not _same(value, before):
            vars(module)[attribute] = value
    elif _is_plain(value) and value != before:
        vars(module)[attribute] = deepcopy(value)


def rewrite(config: PretrainedConfig, made: PretrainedConfig, before: PretrainedConfig) -> None:
    """Give `config` every entry in which `made` differs from `before`; all others stay."""
    for name, value in vars(made).items():
        was = vars(before).get(name)
        if isinstance(value, PretrainedConfig) and isinstance(was, PretrainedConfig):
            rewrite(vars(config)[name], value, was)
        elif value != was:
            vars(config)[name] = deepcopy(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, PLAIN)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def carry(optimizer: torch.optim.Optimizer, moved: Mapping[Tensor, Moved]) -> None:
    """Replace wide compactors by narrow ones in `optimizer`, in place, with the moments of the kept rows.

    Moments of an unknown form (of 8-bit optimizers) start from zero, with a warning.
    """
    lost = []
    for group in optimizer.param_groups:
        for at, parameter in enumerate(group["params"]):
            if parameter not in moved:
                continue
            to = moved[parameter]
            group["params"][at] = to.new
            old = optimizer.state.pop(parameter, None)
            if old is not None:
                cut = {name: _cut(name, value, parameter, to) for name, value in old.items()}
                if any(value is None for value in cut.values()):
                    lost.append(to)
                else:
                    optimizer.state[to.new] = cut
    if lost:
        warnings.warn(
            f"{type(optimizer).__name__} has moments in a form from which rows cannot be taken; those of {len(lost)} "
            "compactors start from zero.",
            stacklevel=2,
        )


def can_carry(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `carry` may exchange parameters: it may not if the moments are divided among processes."""
    return not isinstance(optimizer, Joinable)  # torch's ZeroRedundancyOptimizer


def rewrap(wrapped: nn.Module) -> None:
    """Let `DistributedDataParallel` synchronise the parameters that its module has now.

    Its reducer is built for the first parameters. The wrapper is constructed again in place, because a trainer's loop
    holds this object.
    """
    if isinstance(wrapped, DistributedDataParallel):
        settings = {
            "device_ids": wrapped.device_ids,
            "output_device": wrapped.output_device,
            "dim": wrapped.dim,
            "broadcast_buffers": wrapped.broadcast_buffers,
            "process_group": wrapped.process_group,
            "find_unused_parameters": wrapped.find_unused_parameters,
            "static_graph": wrapped.static_graph,
            "gradient_as_bucket_view": wrapped.gradient_as_bucket_view,
        }
        module, training = wrapped.module, wrapped.training
        del wrapped.reducer  # this removes its hooks on the teacher's weights
        wrapped.__init__(module, **settings)  # type: ignore[misc]
        wrapped.train(training)


def _cut(name: str, value: object, old: Tensor, to: Moved) -> object | None:
    """Return an entry of an optimizer's state for the kept rows, or None if its form is unknown."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.numel() == 1:
        return value
    if not value.is_floating_point():
        return None
    factors = to.factors.to(value) ** (-2 if "sq" in name else -1)  # gradients are divided by the factor
    if name.endswith("_row") and value.shape == old.shape[:1]:  # Adafactor's means over columns
        return value[to.rows] * factors
    if name.endswith("_col") and value.shape == old.shape[1:]:
        return value
    if value.shape == old.shape:
        return value[to.rows] * factors[:, None]
    return None
