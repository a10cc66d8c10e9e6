"""The permutation proof: a coupled dimension is one exactly when its indices can be renamed at will.

Takes a model and its trace; raises where renaming a dimension's indices throughout the weights changes the
outputs of the examples that were traced. Called by `get_wid_model(verify=True)`, `wid-hf plan --verify` and the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..arithmetic import full_float32, in_float64, place_of
from ..errors import ProofError
from .dims import Dim, describe, leaves
from .index_sets import IndexSets, axis_indices
from .plan import Plan, make_plan, nesting
from .trace import NOT_REACHED, Trace, call, forget, output_tensors, quiet_forward


def verify(model: nn.Module, trace: Trace, seed: int = 0) -> int:
    """Permute the indices of every unfrozen leaf throughout the weights and compare outputs.

    Tables that the model computes from its config, and hidden states that come from outside, are permuted
    as well where the trace says that they have such a leaf. All leaves are permuted at once; only if that
    changes an output are they tried one by one to name the culprits. Weights are jittered first, since
    constant ones (fresh normalisation weights) hide errors.

    Returns:
        How many leaves were proved.

    Raises:
        ProofError: names the members of every leaf whose permutation changes the outputs by more than the
            square root of the machine precision, relative to the largest output.
    """
    plan = make_plan(trace, {name: tuple(weight.shape) for name, weight in trace.weights.items()})
    # An output may have a head's width as an axis; then all heads must be permuted alike.
    plan = replace(plan, under=nesting([*plan.axes.values(), *trace.output_dims]))
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _jittered(weight, generator) for name, weight in trace.weights.items()}
    permutations = {leaf: _permutation(plan, leaf, generator) for leaf in _free_leaves(plan)}
    wrong = _culprits(model, plan, trace, weights, permutations)
    if wrong and next(iter(weights.values())).dtype != torch.float64:
        # A deep model can amplify rounding beyond any tolerance; a real error is there in float64 too.
        wide = {name: _cast(weight, torch.float64) for name, weight in weights.items()}
        copied = deepcopy(model).to(place_of(next(iter(weights.values())).device)).double()
        wrong = _culprits(copied, plan, trace, wide, permutations)
    if wrong:
        raise ProofError(_refusal(model, plan, wrong))
    return len(permutations)


def _refusal(model: nn.Module, plan: Plan, wrong: Sequence[Dim]) -> str:
    unknown = [name for name, axes in plan.axes.items() if any(d.frozen == NOT_REACHED for d in axes)]
    hint = f"\nPass example inputs that reach: {', '.join(unknown[:3])}" if unknown else ""
    return (
        f"The permutation proof failed for {type(model).__name__}: renaming indices changed the outputs, so "
        "a rule of the coupling inference is wrong. Please report it. Dimensions:\n"
        + "\n".join(f"- {_members(plan, leaf)}" for leaf in wrong)
        + hint
    )


def _culprits(
    model: nn.Module, plan: Plan, trace: Trace, weights: Mapping[str, Tensor], permutations: IndexSets
) -> list[Dim]:
    """Return the leaves whose permutation changes the outputs; all of them if none does alone."""
    with quiet_forward(model), full_float32():
        before = outputs_with(model, plan, trace, weights, {})
        if not _changes(model, plan, trace, weights, permutations, before):
            return []
        alone = [
            leaf
            for leaf, permutation in permutations.items()
            if _changes(model, plan, trace, weights, {leaf: permutation}, before)
        ]
    return alone or list(permutations)


def _free_leaves(plan: Plan) -> list[Dim]:
    found = dict.fromkeys(leaf for axes in plan.axes.values() for dim in axes for leaf in leaves(dim))
    return [leaf for leaf in found if leaf.frozen is None and leaf.size > 1]


def _jittered(weight: Tensor, generator: torch.Generator) -> Tensor:
    if not weight.is_floating_point():
        return weight.detach()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    spread = weight.detach().float().std(correction=0).clamp(min=0.02)
    return (weight.detach() + 0.2 * spread * noise.to(weight.device)).to(weight.dtype)


def _permutation(plan: Plan, leaf: Dim, generator: torch.Generator) -> Tensor:
    if leaf not in plan.under:
        return torch.randperm(leaf.size, generator=generator)
    rows = [torch.randperm(leaf.size, generator=generator) for _ in range(plan.under[leaf].size)]
    return torch.stack(rows)


def _permuted(plan: Plan, tensor: Tensor, dims: Sequence[Dim], sets: IndexSets) -> Tensor:
    for axis, dim in enumerate(dims):
        if any(leaf in sets for leaf in leaves(dim)):
            tensor = tensor.index_select(axis, torch.tensor(axis_indices(plan, dim, sets), device=tensor.device))
    return tensor


def outputs_with(
    model: nn.Module, plan: Plan, trace: Trace, weights: Mapping[str, Tensor], sets: IndexSets
) -> list[Tensor]:
    """Return the outputs of all examples, with weights, tables and inputs permuted by `sets`.

    In float64, computed tables and inputs are cast as well, where float64 is; other precisions leave them as they are.
    """
    dtype = next(weight.dtype for weight in weights.values() if weight.is_floating_point())
    tensors = {name: _permuted(plan, weight, plan.axes[name], sets) for name, weight in weights.items()}
    for name, table in trace.computed.items():
        tensors[name] = _permuted(plan, _cast(table.detach(), dtype), trace.computed_dims[name], sets)
    outputs = []
    for number, example in enumerate(trace.examples):
        forget(model)
        torch.manual_seed(0)  # a forward that draws numbers (ViLT chooses patches) draws the same each time
        inputs = {name: _cast(value, dtype) for name, value in example.inputs.items()}
        for name in example.streams:
            inputs[name] = _permuted(plan, inputs[name], trace.stream_dims[number, name], sets)
        rolled = {name: tensors[name].roll(by, 0) for name, by in example.rolled.items()}
        outputs += output_tensors(call(model, example.part, inputs, {**tensors, **rolled}))
    return outputs


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor in float64 (integers as they are) on a device that has it, if that is `dtype`; else unchanged."""
    if not isinstance(value, Tensor) or dtype != torch.float64:
        return value
    return in_float64(value) if value.is_floating_point() else value.to(place_of(value.device))


def _changes(
    model: nn.Module, plan: Plan, trace: Trace, weights: Mapping[str, Tensor], sets: IndexSets, before: list[Tensor]
) -> bool:
    """Return whether permuting by `sets` changes an output beyond the same permutation of the output itself."""
    after = outputs_with(model, plan, trace, weights, sets)
    for old, new, dims in zip(before, after, trace.output_dims, strict=True):
        expected = _permuted(plan, old, dims, sets)
        if not expected.is_floating_point():
            continue
        tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max().clamp(min=1e-6)
        if not bool(((new - expected).abs() <= tolerance).all()):
            return True
    return False


def _members(plan: Plan, leaf: Dim) -> str:
    names = [
        f"`{weight}` axis {axis} ({describe(dim)})"
        for weight, axes in plan.axes.items()
        for axis, dim in enumerate(axes)
        if leaf in leaves(dim)
    ]
    return f"size {leaf.size}: " + ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
