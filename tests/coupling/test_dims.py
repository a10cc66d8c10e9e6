"""Dimension trees: what unifying, viewing and cutting do to sizes, structure and frozenness."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from random import Random
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wid_hf.coupling.dims import (
    NO_RULE,
    Dim,
    Reason,
    concat,
    describe,
    find,
    freeze,
    leaves,
    product,
    regroup,
    split_concat,
    split_product,
    unify,
)
from wid_hf.coupling.plan import key

WHY = Reason("layer", "aten.view.default", "has two structures that cannot be reconciled")
EARLIER = Reason("table", "aten.embedding.default", "is looked up by number")

# A tree as plain data: a size, or "x" (product) or "+" (concatenation) and the trees below it.
Blueprint: TypeAlias = "int | tuple[str, Blueprint, Blueprint]"

quick = settings(max_examples=60, deadline=None)


def total(dim: Dim) -> int:
    """The size that the leaves below `dim` add and multiply up to."""
    dim = find(dim)
    if dim.factors:
        return prod(total(factor) for factor in dim.factors)
    if dim.parts:
        return sum(total(part) for part in dim.parts)
    return dim.size


def is_frozen(dim: Dim) -> bool:
    return all(leaf.frozen is not None for leaf in leaves(dim))


def free_leaves(dim: Dim) -> set[Dim]:
    return {leaf for leaf in leaves(dim) if leaf.size > 1 and leaf.frozen is None}


def trees(size: int) -> st.SearchStrategy[Dim]:
    """Random trees of exactly `size`: leaves, products and concatenations, two levels deep."""
    leaf = st.builds(Dim, st.just(size))
    if size < 2:
        return leaf
    divisors = [n for n in range(2, size) if size % n == 0]
    options = [leaf]
    if divisors:
        options.append(
            st.sampled_from(divisors).flatmap(lambda n: st.tuples(trees_flat(n), trees_flat(size // n)).map(product))
        )
    options.append(
        st.integers(1, size - 1).flatmap(lambda n: st.tuples(trees_flat(n), trees_flat(size - n)).map(concat))
    )
    return st.one_of(options)


def trees_flat(size: int) -> st.SearchStrategy[Dim]:
    divisors = [n for n in range(2, size) if size % n == 0]
    options = [st.builds(Dim, st.just(size))]
    if divisors:
        options.append(st.sampled_from(divisors).map(lambda n: product([Dim(n), Dim(size // n)])))
    if size > 1:
        options.append(st.integers(1, size - 1).map(lambda n: concat([Dim(n), Dim(size - n)])))
    return st.one_of(options)


def factorisations(size: int) -> st.SearchStrategy[list[int]]:
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    return st.sampled_from(divisors).flatmap(
        lambda n: st.sampled_from([d for d in divisors if (size // n) % d == 0]).map(lambda d: [n, d, size // n // d])
    )


sizes = st.sampled_from([2, 3, 4, 6, 8, 12, 16, 18, 24, 36])
pairs = sizes.flatmap(lambda size: st.tuples(trees(size), trees(size)))


def test_a_leaf_that_meets_a_product_takes_its_structure() -> None:
    leaf, whole = Dim(48), product([Dim(4), Dim(12)])
    unify(leaf, whole, WHY)
    assert describe(leaf) == "4 x 12"
    assert key(leaf) == key(whole)


def test_two_products_align_from_the_inside_out() -> None:
    a, b = product([Dim(4), Dim(12)]), product([Dim(2), Dim(2), Dim(12)])
    inner_a, inner_b = a.factors[1], b.factors[2]
    unify(a, b, WHY)
    assert find(inner_a) is find(inner_b)
    assert key(a) == key(b)
    assert describe(a) == "2 x 2 x 12"


def test_two_concatenations_are_cut_at_the_boundaries_of_both() -> None:
    a, b = concat([Dim(4), Dim(8)]), concat([Dim(6), Dim(6)])
    unify(a, b, WHY)
    assert [leaf.size for leaf in leaves(a)] == [4, 2, 6]
    assert key(a) == key(b)


def test_a_rotated_concatenation_unites_its_halves() -> None:
    first, second = Dim(6), Dim(6)
    unify(concat([first, second]), concat([second, first]), WHY)
    assert find(first) is find(second)


def test_a_fused_projection_viewed_as_heads_has_one_head_width() -> None:
    q, k = Dim(48), Dim(24)
    heads, width = split_product(concat([q, k]), [6, 12], WHY)
    assert describe(heads) == "4 + 2"
    assert key(split_product(q, [4, 12], WHY)[1]) == key(split_product(k, [2, 12], WHY)[1]) == key(width)


def test_heads_are_cut_only_at_multiples_of_their_width() -> None:
    whole = product([Dim(4), Dim(12)])
    first, second = split_concat(whole, [12, 36], WHY)
    assert (describe(first), describe(second)) == ("12", "3 x 12")
    assert not is_frozen(whole)


def test_structures_that_cannot_be_reconciled_freeze_both_and_keep_the_reason() -> None:
    a, b = product([Dim(4), Dim(9)]), concat([Dim(17), Dim(19)])
    unify(a, b, WHY)
    assert {leaf.frozen for leaf in [*leaves(a), *leaves(b)]} == {WHY}


def test_products_without_a_common_refinement_freeze_both() -> None:
    a, b = product([Dim(4), Dim(9)]), product([Dim(9), Dim(4)])
    unify(a, b, WHY)
    assert is_frozen(a) and is_frozen(b)
    assert next(leaves(a)).frozen == WHY


def test_dimensions_of_unequal_size_freeze_both() -> None:
    a, b = Dim(4), Dim(5)
    unify(a, b, WHY)
    assert a.frozen == b.frozen == WHY
    assert find(a) is not find(b)


def test_a_view_across_a_boundary_freezes_what_it_mixes_and_returns_frozen_dimensions() -> None:
    source = concat([Dim(5), Dim(7)])
    pieces = split_product(source, [3, 4], WHY)
    assert [piece.size for piece in pieces] == [3, 4]
    assert all(piece.frozen == WHY for piece in pieces)
    assert is_frozen(source)


def test_a_view_freezes_only_the_group_that_it_mixes() -> None:
    batch, mixed = Dim(3), concat([Dim(5), Dim(7)])
    again, *_ = regroup([batch, mixed], [3, 3, 4], WHY)
    assert find(again) is batch
    assert batch.frozen is None


def test_a_cut_inside_a_head_freezes_heads_and_width() -> None:
    whole = product([Dim(4), Dim(12)])
    pieces = split_concat(whole, [10, 38], WHY)
    assert is_frozen(whole)
    assert all(piece.frozen == WHY for piece in pieces)


@pytest.mark.parametrize("frozen_first", [True, False])
def test_frozenness_spreads_through_unify_in_both_directions(frozen_first: bool) -> None:
    frozen, free = Dim(48), Dim(48)
    freeze(frozen, EARLIER)
    unify(*((frozen, free) if frozen_first else (free, frozen)), WHY)
    assert find(free).frozen == EARLIER


def test_a_frozen_leaf_freezes_every_factor_of_what_it_meets() -> None:
    frozen, heads, width = Dim(48, EARLIER), Dim(4), Dim(12)
    unify(frozen, product([heads, width]), WHY)
    assert heads.frozen == width.frozen == EARLIER


def test_a_frozen_leaf_that_is_split_later_has_frozen_factors() -> None:
    assert all(factor.frozen == EARLIER for factor in split_product(Dim(48, EARLIER), [4, 12], WHY))
    assert all(part.frozen == EARLIER for part in split_concat(Dim(48, EARLIER), [40, 8], WHY))


def test_the_first_reason_is_the_one_that_is_kept() -> None:
    dim = Dim(8)
    freeze(dim, EARLIER)
    freeze(dim, WHY)
    assert dim.frozen == EARLIER


def test_dimensions_of_size_one_never_unite() -> None:
    a, b = Dim(1), Dim(1)
    unify(a, b, WHY)
    assert find(a) is not find(b)
    assert a.frozen is None


@pytest.mark.parametrize("text", ["meets x", NO_RULE])
@pytest.mark.parametrize("operation", ["aten.mm.default", ""])
@pytest.mark.parametrize("module", ["encoder", ""])
def test_a_reason_names_what_happened_and_the_operation_and_the_module_if_there_are_any(
    module: str, operation: str, text: str
) -> None:
    told = str(Reason(module, operation, text))
    assert text in told and operation in told
    assert ("in `encoder`" in told) == bool(module)
    assert "``" not in told and "()" not in told


@quick
@given(pairs)
def test_unify_keeps_sizes_and_never_raises(pair: tuple[Dim, Dim]) -> None:
    a, b = pair
    unify(a, b, WHY)
    assert total(a) == a.size == b.size == total(b)


@quick
@given(pairs)
def test_unified_trees_share_every_leaf_that_may_shrink(pair: tuple[Dim, Dim]) -> None:
    a, b = pair
    unify(a, b, WHY)
    assert free_leaves(a) == free_leaves(b)


@quick
@given(sizes.flatmap(lambda n: st.tuples(*[st.randoms(use_true_random=False), st.just(n)])))
def test_unify_is_symmetric_in_its_effect(seeded: tuple) -> None:
    random, size = seeded

    def pair() -> tuple[Dim, Dim]:
        return copy_of(blueprint_a), copy_of(blueprint_b)

    blueprint_a, blueprint_b = blueprint(size, random), blueprint(size, random)
    a, b = pair()
    c, d = pair()
    unify(a, b, WHY)
    unify(d, c, WHY)
    assert signature(a, b) == signature(c, d)


@quick
@given(sizes.flatmap(lambda size: st.tuples(trees(size), factorisations(size))))
def test_regroup_keeps_sizes_and_never_raises(case: tuple[Dim, list[int]]) -> None:
    dim, shape = case
    pieces = regroup([dim], shape, WHY)
    assert [piece.size for piece in pieces] == [total(piece) for piece in pieces] == shape
    assert total(dim) == dim.size


@quick
@given(sizes.flatmap(lambda size: st.tuples(trees(size), factorisations(size))))
def test_a_view_there_and_back_returns_the_same_dimension_or_freezes_it(case: tuple[Dim, list[int]]) -> None:
    dim, shape = case
    (again,) = regroup(regroup([dim], shape, WHY), [dim.size], WHY)
    assert free_leaves(again) == free_leaves(dim)


@quick
@given(st.lists(st.integers(2, 6), min_size=1, max_size=4), st.data())
def test_a_view_of_leaves_there_and_back_returns_the_very_same_leaves(shape: list[int], data: st.DataObject) -> None:
    dims = [Dim(size) for size in shape]
    (flat,) = regroup(dims, [prod(shape)], WHY)
    back = regroup([flat], shape, WHY)
    assert [find(dim) for dim in back] == dims
    assert not any(dim.frozen for dim in dims)


@quick
@given(
    sizes.flatmap(
        lambda size: st.tuples(
            trees(size), st.lists(st.integers(0, size), max_size=3).map(lambda cuts: [0, *sorted(cuts), size])
        )
    )
)
def test_split_concat_keeps_sizes_and_never_raises(case: tuple[Dim, list[int]]) -> None:
    dim, cuts = case
    wanted = [stop - start for start, stop in pairwise(cuts)]
    pieces = split_concat(dim, wanted, WHY)
    assert [piece.size for piece in pieces] == [total(piece) for piece in pieces] == wanted
    assert total(dim) == dim.size


@quick
@given(st.lists(st.sampled_from([4, 6, 8, 12]), min_size=2, max_size=3), st.data())
def test_many_demands_on_random_trees_keep_every_size(shape: list[int], data: st.DataObject) -> None:
    size = prod(shape)
    pool = [data.draw(trees_flat(size)) for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 6))):
        a, b = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
        match data.draw(st.sampled_from(["unify", "view", "cut", "freeze"])):
            case "unify":
                unify(a, b, WHY)
            case "view":
                regroup([a], data.draw(factorisations(size)), WHY)
            case "cut":
                at = data.draw(st.integers(1, size - 1))
                split_concat(a, [at, size - at], WHY)
            case "freeze":
                freeze(a, EARLIER)
    assert [total(dim) for dim in pool] == [size] * 3


def blueprint(size: int, random: Random, depth: int = 2) -> Blueprint:
    """A random tree."""
    divisors = [n for n in range(2, size) if size % n == 0]
    kind = random.choice(["leaf", "x", "+"]) if depth else "leaf"
    if kind == "x" and divisors:
        n = random.choice(divisors)
        return ("x", blueprint(n, random, depth - 1), blueprint(size // n, random, depth - 1))
    if kind == "+" and size > 1:
        n = random.randint(1, size - 1)
        return ("+", blueprint(n, random, depth - 1), blueprint(size - n, random, depth - 1))
    return size


def copy_of(plain: Blueprint) -> Dim:
    if isinstance(plain, int):
        return Dim(plain)
    return (product if plain[0] == "x" else concat)([copy_of(child) for child in plain[1:]])


def signature(a: Dim, b: Dim) -> list[tuple[int, int, bool]]:
    """Leaves of both trees in order, each as (which distinct leaf, size, frozen): equal up to renaming."""
    numbers: dict[Dim, int] = {}
    return [
        (numbers.setdefault(leaf, len(numbers)), leaf.size, leaf.frozen is not None)
        for dim in (a, b)
        for leaf in leaves(dim)
    ]
