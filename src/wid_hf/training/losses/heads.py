"""Where the queries, keys and values of attention are in the outputs of modules, in teacher and student.

Takes a plan and the teacher's trace; gives modules with ranges of their outputs. Nothing is found by names. Called by
the losses that compare a student with its teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ...calibration.axis_blocks import part_factors, pieces
from ...coupling import Plan, Trace
from ...coupling.carrier import Carrier


@dataclass(frozen=True)
class Heads:
    """Which of the `width` output indices of a module are attention heads, and how many heads these are."""

    width: int
    start: int
    stop: int
    heads: int


Rows = tuple[str, Heads, Heads]  # a module, with the range of the teacher's output and that of the student's


def value_rows(plan: Plan) -> Iterator[Rows]:
    """Yield each module whose outputs are another weight's input, mixed over positions in each head: values."""
    for read in plan.weight_inputs:
        carrier = read.carrier
        if carrier is None or len(plan.axes[carrier.parameter]) != 2:
            continue
        dim, columns = plan.axes[carrier.parameter][carrier.axis], plan.dim_of(read)
        factors, heads = part_factors(dim, carrier.start, carrier.stop), part_factors(columns, 0, columns.size)
        if len(factors) > 1 and heads and heads[-1] is factors[-1]:
            yield _rows(plan, carrier)


def query_and_key_rows(plan: Plan, trace: Trace) -> Iterator[tuple[Rows, Rows]]:
    """Yield each pair of modules whose outputs are multiplied with each other in each head: queries and keys."""
    for keys, queries in trace.carried_by.items():
        both = queries, keys
        if all(
            len(plan.axes[each.parameter]) == 2
            and part_factors(plan.axes[each.parameter][each.axis], each.start, each.stop)
            for each in both
        ):
            yield _rows(plan, queries), _rows(plan, keys)


def _rows(plan: Plan, carrier: Carrier) -> Rows:
    dim = plan.axes[carrier.parameter][carrier.axis]
    factors = part_factors(dim, carrier.start, carrier.stop)
    sizes, student = [factor.size for factor in factors], [plan.size(factor) for factor in factors]
    start = sum(plan.size(part) for at, part in pieces(dim) if at < carrier.start)
    return (
        carrier.parameter.rpartition(".")[0],
        Heads(dim.size, carrier.start, carrier.stop, prod(sizes[:-1])),
        Heads(plan.size(dim), start, start + prod(student), prod(student[:-1])),
    )
