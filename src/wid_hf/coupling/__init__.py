"""Which dimensions of a model must shrink together: inferred from one forward, never listed.

Stages: `trace` (a forward under symbolic dimensions) -> `make_plan` (sizes, or a refusal) -> `verify`.
"""

from .dims import Dim, Reason
from .plan import Coupling, Plan, make_plan
from .registry import covered_operations, rule
from .trace import Trace, trace
from .verify import verify

__all__ = [
    "Coupling",
    "Dim",
    "Plan",
    "Reason",
    "Trace",
    "covered_operations",
    "make_plan",
    "rule",
    "trace",
    "verify",
]
