"""Which rule covers which aten operation.

Takes rules by decorator (`@rule(aten.mm.default)`), gives them to `trace`. A rule says how the dimensions
of an operation's result follow from those of its arguments, and unifies or freezes what must be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch._ops import OpOverload

Rule = Callable[..., Any]
RuleT = TypeVar("RuleT", bound=Rule)

_RULES: dict[OpOverload, Rule] = {}


def rule(*operations: OpOverload) -> Callable[[RuleT], RuleT]:
    """Register the decorated function as the rule of `operations`.

    It is called as `function(trace, out, *args, **kwargs)` with the operation's own arguments and returns
    the dimensions of `out`: a tuple of `Dim`, or a list of such tuples where `out` is several tensors
    (None stands for an output that is not a tensor).

    Raises:
        ValueError: an operation has a rule already.
    """

    def register(function: RuleT) -> RuleT:
        for operation in operations:
            if operation in _RULES:
                raise ValueError(f"{operation} has a rule already: {_RULES[operation].__name__}")
            _RULES[operation] = function
        return function

    return register


def rule_for(operation: OpOverload) -> Rule | None:
    """Return the rule of `operation`, or None: what it touches is then frozen."""
    return _RULES.get(operation)


def covered_operations() -> list[str]:
    """Return the names of all operations with a rule, sorted."""
    return sorted(str(operation) for operation in _RULES)
