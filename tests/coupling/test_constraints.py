"""Size constraints alone: what follows from them, what waits, and what is refused with which places and sizes."""

from __future__ import annotations

from wid_hf.coupling.constraints import SizeConstraint, SizeSolver
from wid_hf.coupling.dims import Dim, Reason, concat, product


def solved(*given: tuple[Dim, int]) -> SizeSolver:
    solver = SizeSolver(SizeConstraint(dim, size, f"place {at}") for at, (dim, size) in enumerate(given))
    solver.solve()
    return solver


def assert_refused(solver: SizeSolver, *facts: str) -> None:
    (problem,) = solver.problems
    assert [fact for fact in facts if fact not in problem] == [], problem


def test_a_leaf_takes_the_size_that_is_stated() -> None:
    leaf = Dim(8)
    solver = solved((leaf, 4))
    assert (solver.targets, solver.problems) == ({leaf: 4}, [])


def test_a_product_decides_its_last_unknown_factor_whichever_constraint_comes_first() -> None:
    heads, width = Dim(4), Dim(12)
    for given in ([(product([heads, width]), 24), (heads, 2)], [(heads, 2), (product([heads, width]), 24)]):
        assert solved(*given).targets == {heads: 2, width: 12}


def test_a_product_of_two_unknown_factors_waits_and_is_refused_where_everything_is_needed() -> None:
    heads, width = Dim(4), Dim(12)
    solver = solved((product([heads, width]), 24))
    assert (solver.targets, solver.problems) == ({}, [])
    solver.require_all([heads, width])
    assert_refused(solver, "place 0", "4 x 12", "24", "num_attention_heads", "num_key_value_heads", "head_dim")


def test_a_waiting_constraint_that_the_teachers_sizes_meet_is_no_problem() -> None:
    heads, width = Dim(4), Dim(12)
    solver = solved((product([heads, width]), 48))
    solver.require_all([heads, width])
    assert (solver.targets, solver.problems) == ({heads: 4, width: 12}, [])


def test_parts_that_are_one_dimension_share_a_size_evenly() -> None:
    inner = Dim(8)
    assert solved((concat([inner, inner]), 8)).targets == {inner: 4}
    assert_refused(solved((concat([inner, inner]), 7)), "place 0: 7", "8 + 8")


def test_different_unknown_parts_wait_until_one_is_decided() -> None:
    queries, keys = Dim(8), Dim(4)
    fused = concat([queries, keys])
    assert solved((fused, 6)).targets == {}
    assert solved((fused, 6), (keys, 2)).targets == {keys: 2, queries: 4}


def test_what_is_not_a_multiple_of_the_decided_factors_is_refused() -> None:
    heads, width = Dim(4), Dim(12)
    assert_refused(solved((heads, 4), (product([heads, width]), 18)), "place 1: 18", "multiple of 4")


def test_a_wider_size_is_refused() -> None:
    assert_refused(solved((Dim(8), 9)), "place 0: 9", "teacher's 8")


def test_a_frozen_leaf_keeps_its_size_and_names_what_froze_it() -> None:
    why = Reason("encoder", "aten.foo.default", "is order-dependent")
    frozen = Dim(8, why)
    assert solved((frozen, 8)).problems == []
    assert_refused(solved((frozen, 4)), "place 0: 8 cannot become 4", str(why))


def test_a_tree_that_is_decided_names_the_places_that_decided_it() -> None:
    heads, width = Dim(4), Dim(12)
    solver = solved((heads, 2), (width, 12), (product([heads, width]), 12))
    assert_refused(solver, "place 2", "24 by place 0, place 1", "cannot become 12")


def test_a_tree_that_is_frozen_names_the_largest_frozen_part() -> None:
    why = Reason("", "aten.foo.default", "is looked up by number")
    small, large = Dim(2, why), Dim(6, why)
    assert_refused(
        solved((concat([small, large]), 4)), "place 0", "8 and cannot become 4", "6 of its entries", str(why)
    )


def test_two_sizes_for_one_dimension_name_both_places() -> None:
    leaf = Dim(8)
    assert_refused(solved((leaf, 4), (leaf, 2)), "place 0 requires 4", "place 1 requires 2", "dimension of 8")


def test_sizes_of_1_and_0_say_nothing() -> None:
    assert solved((Dim(1), 5), (Dim(0), 0)).problems == []
