"""Which dimensions of a model must shrink together: inferred from tiny forwards, never listed.

Stages: `trace` (forwards under symbolic dimensions) -> `make_plan` (sizes, or a refusal) -> `verify`.
"""

from . import ops  # noqa: F401  registers the rules that `trace` looks up
from .dims import Dim, Reason
from .op_registry import covered_operations, rule
from .plan import Coupling, Plan, make_plan
from .trace import Example, Trace, trace
from .verify import verify

__all__ = [
    "Coupling",
    "Dim",
    "Example",
    "Plan",
    "Reason",
    "Trace",
    "covered_operations",
    "make_plan",
    "rule",
    "trace",
    "verify",
]
