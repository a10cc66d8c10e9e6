"""Which rule covers which operation.

Takes rules by decorator (`@rule("aten.mm.default")`), gives them to `trace`. A rule says how the dimensions
of an operation's result follow from those of its arguments, and unifies or freezes what must be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload

Rule = Callable[..., Any]
RuleT = TypeVar("RuleT", bound=Rule)

_RULES: dict[OpOverload | torch.Tag, Rule] = {}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def rule(*operations: OpOverload | torch.Tag | str) -> Callable[[RuleT], RuleT]:
    """Register the decorated function as the rule of `operations`.

    It is called as `function(trace, out, *args, **kwargs)` with the operation's own arguments and returns
    the dimensions of `out`: a tuple of `Dim`, or a list of such tuples where `out` is several tensors
    (None stands for an output that is not a tensor).

    Args:
        operations: `torch.ops.aten.mm.default`, or its name, "aten.mm.default", which is ignored if the installed
            torch has no such operation; or `torch.Tag.pointwise` for all operations with this tag that have no
            separate rule.

    Raises:
        ValueError: an operation has a rule already.
    """

    def register(function: RuleT) -> RuleT:
        for given in operations:
            operation = _looked_up(given) if isinstance(given, str) else given
            if operation is None:
                continue
            if operation in _RULES:
                raise ValueError(f"{operation} has a rule already: {_RULES[operation].__name__}")
            _RULES[operation] = function
        return function

    return register


def _looked_up(name: str) -> OpOverload | None:
    """Return the operation of this name, None where the installed torch does not have it."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)


def rule_for(operation: OpOverload) -> Rule | None:
    """Return the rule of `operation`, or None: it is then decomposed, or what it touches is frozen.

    An operation that writes into its operand has the rule of the one that makes a new tensor: `abs_` that of `abs`.
    """
    if operation in _RULES:
        return _RULES[operation]
    packet, _, overload = str(operation).rpartition(".")
    plain = _looked_up(f"{packet[:-1]}.{overload}") if packet.endswith("_") and not packet.endswith("__") else None
    is_shared = is_pointwise(operation) or (plain is not None and _is_elementwise(plain))
    return _RULES.get(torch.Tag.pointwise) if is_shared else None


def _is_elementwise(operation: OpOverload) -> bool:
    return is_pointwise(operation) or _RULES.get(operation) is _RULES.get(torch.Tag.pointwise)


def is_pointwise(operation: OpOverload) -> bool:
    """Return whether torch says that each element of the results depends on one element of each operand alone.

    Operations that draw random numbers are left out: permuting their operands does not permute the draws.
    """
    tags = operation.tags
    return (
        torch.Tag.pointwise in tags
        and torch.Tag.nondeterministic_seeded not in tags
        and all(isinstance(given.type, torch.TensorType) for given in operation._schema.returns)
    )


def decomposition(operation: OpOverload) -> Callable[..., Any] | None:
    """Return torch's function that computes `operation` by other operations, or None.

    None also if it writes into its operands or draws random numbers: a second run would give another result.
    """
    if operation._schema.is_mutable or torch.Tag.nondeterministic_seeded in operation.tags:
        return None
    if operation in decomposition_table:
        return decomposition_table[operation]
    return operation.decompose if operation.has_kernel_for_dispatch_key(_COMPOSITE) else None


def covered_operations() -> list[str]:
    """Return the names of all operations with a separate rule, sorted."""
    return sorted(str(operation) for operation in _RULES if isinstance(operation, OpOverload))
