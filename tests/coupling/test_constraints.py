"""Size constraints alone: what follows from them, what waits, and what is refused in which words."""

from __future__ import annotations

from wid_hf.coupling.constraints import SizeConstraint, SizeSolver
from wid_hf.coupling.dims import Dim, Reason, concat, product


def solved(*given: tuple[Dim, int]) -> SizeSolver:
    solver = SizeSolver(SizeConstraint(dim, size, f"place {at}") for at, (dim, size) in enumerate(given))
    solver.solve()
    return solver


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
    assert solver.problems == [
        "place 0: 4 x 12 can become 24 in several ways. State num_attention_heads, num_key_value_heads or head_dim "
        "as well"
    ]


def test_a_waiting_constraint_that_the_teachers_sizes_meet_is_no_problem() -> None:
    heads, width = Dim(4), Dim(12)
    solver = solved((product([heads, width]), 48))
    solver.require_all([heads, width])
    assert (solver.targets, solver.problems) == ({heads: 4, width: 12}, [])


def test_parts_that_are_one_dimension_share_a_size_evenly() -> None:
    inner = Dim(8)
    assert solved((concat([inner, inner]), 8)).targets == {inner: 4}
    assert solved((concat([inner, inner]), 7)).problems == ["place 0: 7 cannot be split evenly across 8 + 8"]


def test_different_unknown_parts_wait_until_one_is_decided() -> None:
    queries, keys = Dim(8), Dim(4)
    fused = concat([queries, keys])
    assert solved((fused, 6)).targets == {}
    assert solved((fused, 6), (keys, 2)).targets == {keys: 2, queries: 4}


def test_what_is_not_a_multiple_of_the_decided_factors_is_refused() -> None:
    heads, width = Dim(4), Dim(12)
    solver = solved((heads, 4), (product([heads, width]), 18))
    assert solver.problems == ["place 1: 18 is not a multiple of 4"]


def test_a_wider_size_is_refused() -> None:
    assert solved((Dim(8), 9)).problems == ["place 0: 9 is wider than the teacher's 8"]


def test_a_frozen_leaf_keeps_its_size_and_names_what_froze_it() -> None:
    frozen = Dim(8, Reason("encoder", "aten.foo.default", "is order-dependent"))
    assert solved((frozen, 8)).problems == []
    assert solved((frozen, 4)).problems == [
        "place 0: 8 cannot become 4, because it is order-dependent (aten.foo.default in `encoder`)"
    ]


def test_a_tree_that_is_decided_names_the_places_that_decided_it() -> None:
    heads, width = Dim(4), Dim(12)
    solver = solved((heads, 2), (width, 12), (product([heads, width]), 12))
    assert solver.problems == ["place 2 is fixed at 24 by place 0, place 1 and cannot become 12"]


def test_a_tree_that_is_frozen_names_the_largest_frozen_part() -> None:
    why = Reason("", "aten.foo.default", "is looked up by number")
    small, large = Dim(2, why), Dim(6, why)
    assert solved((concat([small, large]), 4)).problems == [
        "place 0 is fixed at 8 and cannot become 4: 6 of its entries cannot shrink, because this part is looked up by "
        "number (aten.foo.default)"
    ]


def test_two_sizes_for_one_dimension_name_both_places() -> None:
    leaf = Dim(8)
    assert solved((leaf, 4), (leaf, 2)).problems == [
        "conflicting sizes: place 0 requires 4, place 1 requires 2, but both axes are one coupled dimension of 8. "
        "Request the same size for both"
    ]


def test_sizes_of_1_and_0_say_nothing() -> None:
    assert solved((Dim(1), 5), (Dim(0), 0)).problems == []
