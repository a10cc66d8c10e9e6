"""From leaves to axes and back: kept indices, factors, sums."""

from __future__ import annotations

import pytest
import torch

from wid_hf.coupling import Plan
from wid_hf.coupling.dims import Dim, concat, product
from wid_hf.coupling.index_sets import axis_factors, axis_indices, leaf_sums
from wid_hf.coupling.plan import nesting

HEADS, WIDTH = Dim(2), Dim(3)
AXIS = product([HEADS, WIDTH])


def plan_of(*dims: Dim) -> Plan:
    return Plan(axes={"weight": dims}, targets={}, under=nesting([dims]))


def test_indices_of_an_inner_leaf_may_differ_for_each_index_of_the_outer_one() -> None:
    plan = plan_of(AXIS)
    assert plan.under == {WIDTH: HEADS}
    sets = {HEADS: torch.tensor([1, 0]), WIDTH: torch.tensor([[0, 1], [1, 2]])}
    assert axis_indices(plan, AXIS, sets) == [4, 5, 0, 1]


def test_a_leaf_without_an_index_set_keeps_everything() -> None:
    assert axis_indices(plan_of(AXIS), AXIS, {WIDTH: torch.tensor([2])}) == [2, 5]


def test_parts_keep_their_indices_one_behind_the_other() -> None:
    first, second = Dim(3), Dim(4)
    axis = concat([first, second])
    sets = {first: torch.tensor([0, 2]), second: torch.tensor([3])}
    assert axis_indices(plan_of(axis), axis, sets) == [0, 2, 6]


def test_values_of_an_axis_are_summed_for_each_leaf_an_inner_one_within_each_index_of_the_outer() -> None:
    sums = dict(leaf_sums(plan_of(AXIS), AXIS, torch.arange(6.0)))
    assert sums[HEADS].tolist() == [3.0, 12.0]
    assert sums[WIDTH].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_an_inner_leaf_that_also_stands_alone_is_summed_over_the_outer_one() -> None:
    sums = dict(leaf_sums(plan_of(AXIS, WIDTH), AXIS, torch.arange(6.0)))
    assert sums[WIDTH].tolist() == [3.0, 5.0, 7.0]


def test_values_of_parts_and_of_parts_inside_factors_are_summed_part_by_part() -> None:
    a, b, inner = Dim(2), Dim(3), Dim(2)
    nested = product([concat([a, b]), inner])
    sums = dict(leaf_sums(plan_of(nested, inner), nested, torch.arange(10.0)))
    assert (sums[a].tolist(), sums[b].tolist()) == ([1.0, 5.0], [9.0, 13.0, 17.0])
    assert sums[inner].tolist() == [20.0, 25.0]


def test_factors_of_leaves_multiply_along_the_axis() -> None:
    plan = plan_of(AXIS)
    per_head = axis_factors(plan, AXIS, {HEADS: torch.tensor([1.0, 2.0]), WIDTH: torch.tensor([1.0, 10.0, 100.0])})
    assert per_head.tolist() == [1.0, 10.0, 100.0, 2.0, 20.0, 200.0]
    each = axis_factors(plan, AXIS, {WIDTH: torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])})
    assert each.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize("turned", [False, True])
def test_factors_of_parts_lie_one_behind_the_other(turned: bool) -> None:
    first, second = Dim(2), Dim(1)
    axis = concat([second, first] if turned else [first, second])
    factors = {first: torch.tensor([2.0, 3.0])}
    assert axis_factors(plan_of(axis), axis, factors).tolist() == ([1.0, 2.0, 3.0] if turned else [2.0, 3.0, 1.0])
