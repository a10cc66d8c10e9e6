"""What two traces have in common beside sizes: tables that both models compute, numbers that both multiply by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wid_hf.coupling import Plan, make_plan, trace
from wid_hf.coupling.dims import find

INPUTS = {"x": torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))}


class Positions(nn.Module):
    """Adds a table that no checkpoint holds to what a weight makes, then multiplies by a number."""

    def __init__(self, table: Tensor, number: float = 1.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, table.shape[1]), nn.Linear(table.shape[1], 4)
        self.register_buffer("table", table, persistent=False)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return self.down((self.up(x) + self.table) * self.number)


TABLE = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def planned(teacher: nn.Module, student: nn.Module) -> Plan:
    shapes = {name: tuple(weight.shape) for name, weight in student.named_parameters()}
    return make_plan(trace(teacher, INPUTS), shapes, trace(student, INPUTS))


def test_a_computed_table_that_shrinks_keeps_the_indices_nearest_to_the_students_own() -> None:
    plan = planned(Positions(TABLE), Positions(TABLE[:, [6, 1, 3]] + 0.01))
    assert plan.matched[find(plan.axes["up.weight"][0])].tolist() == [6, 1, 3]


def test_no_index_of_a_table_is_kept_twice() -> None:
    plan = planned(Positions(TABLE), Positions(TABLE[:, [2, 2, 5]]))
    indices = plan.matched[find(plan.axes["up.weight"][0])].tolist()
    assert (indices[0], indices[2], len(set(indices))) == (2, 5, 3)


def test_a_table_as_wide_as_the_teachers_is_not_matched() -> None:
    assert planned(Positions(TABLE), Positions(TABLE + 1)).matched == {}


def test_tables_with_other_rows_are_not_compared() -> None:
    plan = planned(Positions(TABLE[:1]), Positions(TABLE[:1, [0, 1]].expand(5, 2).contiguous()))
    assert plan.matched == {}
    assert plan.shape("up.weight") == (2, 6)


def test_another_number_that_no_weight_takes_over_is_told() -> None:
    """A sum with a constant does not scale as the weight does."""
    plan = planned(Positions(TABLE, 0.5), Positions(TABLE, 0.25))
    assert plan.scales == {}
    assert plan.unfolded == ("not folded: `` multiplies by 0.25, the teacher by 0.5",)
    assert plan.unfolded[0] in str(plan)


def test_a_plan_is_shown_in_a_line() -> None:
    assert repr(planned(Positions(TABLE), Positions(TABLE))) == "Plan(3 coupled dimensions of 4 weights)"
