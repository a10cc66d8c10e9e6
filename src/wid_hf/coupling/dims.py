"""Symbolic dimensions: leaves, products and concatenations that are unified, split and frozen.

Takes sizes and statements ("these two are one dimension"), gives trees. Knows nothing of tensors or models.
`trace` creates dimensions, the rules of `ops` unify them, `plan` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

NO_RULE = "has no propagation rule"
Key = tuple  # of leaf identities, nested like the tree


@dataclass(frozen=True)
class Reason:
    """Why a dimension cannot shrink: the operation that forbids it, the module it ran in, and what happened."""

    module: str
    operation: str
    text: str

    def __str__(self) -> str:
        where = f" in `{self.module}`" if self.module else ""
        if self.text == NO_RULE:
            return f"reaches {self.operation}{where}, which {NO_RULE}"
        return f"{self.text} ({self.operation}{where})" if self.operation else f"{self.text}{where}"


class Dim:
    """One dimension of a tensor, in exactly one of four states.

    - *linked*: it is the same dimension as another; only `find` looks at linked dimensions.
    - *leaf*: indivisible so far; may be frozen.
    - *product*: `factors`, outermost first; a `view` split 768 into 12 x 64.
    - *concatenation*: `parts` in order; fused q-k-v, GLU halves.

    A leaf may become any of the others; nothing ever becomes a leaf again. Parts and factors are strictly
    smaller than the whole, so trees cannot be cyclic. A dimension of size 1 is a leaf that never unites.
    """

    __slots__ = ("factors", "frozen", "link", "parts", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.link: Dim | None = None
        self.factors: tuple[Dim, ...] = ()
        self.parts: tuple[Dim, ...] = ()

    @property
    def is_leaf(self) -> bool:
        """True where `find` returned a dimension that nothing has split yet."""
        return not self.factors and not self.parts

    def __repr__(self) -> str:
        return describe(self)


def find(dim: Dim) -> Dim:
    """Return the dimension that `dim` is linked to, directly or not; `dim` itself if it is not linked."""
    root = dim
    while root.link is not None:
        root = root.link
    while dim.link is not None:
        dim.link, dim = root, dim.link
    return root


def product(dims: Sequence[Dim]) -> Dim:
    """Return the dimension whose indices are tuples of `dims`' indices, outermost first."""
    factors = [factor for dim in dims for factor in factors_of(dim)]
    if len(factors) == 1:
        return factors[0]
    whole = Dim(prod(factor.size for factor in factors))
    whole.factors = tuple(factors)
    return whole


def concat(dims: Sequence[Dim]) -> Dim:
    """Return the dimension in which `dims` lie one behind the other."""
    parts = [part for dim in dims for part in parts_of(dim)]
    if len(parts) == 1:
        return parts[0]
    whole = Dim(sum(part.size for part in parts))
    whole.parts = tuple(parts)
    return whole


def factors_of(dim: Dim) -> list[Dim]:
    """Return the flat list of `dim`'s factors, outermost first, without those of size 1."""
    dim = find(dim)
    if dim.size == 1:
        return []
    return [leaf for factor in dim.factors for leaf in factors_of(factor)] if dim.factors else [dim]


def parts_of(dim: Dim) -> list[Dim]:
    """Return the flat list of `dim`'s parts, without empty ones."""
    dim = find(dim)
    if dim.size == 0:
        return []
    return [piece for part in dim.parts for piece in parts_of(part)] if dim.parts else [dim]


def children_of(dim: Dim) -> list[Dim]:
    """Return the flat list of `dim`'s factors or, of a concatenation, of its parts; none of a leaf."""
    dim = find(dim)
    if dim.is_leaf:
        return []
    return factors_of(dim) if dim.factors else parts_of(dim)


def key(dim: Dim) -> Key:
    """Return the identity of a tree: equal for two axes whose indices are the same thing."""
    dim = find(dim)
    if dim.is_leaf:
        return (id(dim),)
    return ("x" if dim.factors else "+", *map(key, children_of(dim)))


def leaves(dim: Dim) -> Iterator[Dim]:
    """Yield the leaves below `dim`, in order, each as often as it occurs."""
    dim = find(dim)
    if dim.is_leaf:
        yield dim
    for child in dim.factors + dim.parts:
        yield from leaves(child)


def freeze(dim: Dim, reason: Reason) -> None:
    """Forbid every leaf below `dim` to shrink; the first reason stays."""
    for leaf in leaves(dim):
        if leaf.frozen is None:
            leaf.frozen = reason


def unify(a: Dim, b: Dim, why: Reason) -> None:
    """Make `a` and `b` one dimension; where only one has factors or parts, the other is split alike.

    Where the two structures cannot be reconciled, everything below both is frozen with `why`.
    """
    a, b = find(a), find(b)
    if a is b or a.size == b.size == 1:
        return
    if a.size != b.size:
        _incompatible(a, b, why)
    elif a.is_leaf:
        _bind(a, b)
    elif b.is_leaf:
        _bind(b, a)
    elif a.factors and b.factors:
        _unify_products(a, b, why)
    else:
        _unify_concatenations(a, b, why)


def split_product(dim: Dim, sizes: Sequence[int], why: Reason) -> list[Dim]:
    """Split `dim` into factors of `sizes`, outermost first; freeze it where its structure forbids that."""
    return regroup([dim], sizes, why)


def split_concat(dim: Dim, sizes: Sequence[int], why: Reason) -> list[Dim]:
    """Split `dim` into consecutive parts of `sizes`; freeze it where its structure forbids that."""
    pieces = _parts(dim, sizes)
    if pieces is not None:
        return pieces
    freeze(dim, why)
    return [Dim(size, why) for size in sizes]


def regroup(dims: Sequence[Dim], sizes: Sequence[int], why: Reason) -> list[Dim]:
    """Return dimensions of `sizes` that hold the same indices as `dims` in the same order: a `view`.

    The finest groups of equal size are found from the inside out; only a group that cannot be
    reconciled is frozen, with `why`.
    """
    remaining = [factor for dim in dims for factor in factors_of(dim)]
    wanted = [size for size in sizes if size != 1]
    grouped: list[Dim] = []  # innermost first
    while wanted:
        sources, targets = [remaining.pop()], [wanted.pop()]
        while (have := prod(dim.size for dim in sources)) != (need := prod(targets)):
            if have < need:
                sources.append(remaining.pop())
            else:
                targets.append(wanted.pop())
        grouped += _regroup_one(sources[::-1], targets[::-1], why)[::-1]
    result = iter(grouped[::-1])
    return [next(result) if size != 1 else Dim(1) for size in sizes]


def describe(dim: Dim, size_of: Callable[[Dim], int] = lambda leaf: leaf.size) -> str:
    """Return the structure in words: `12 x 64`, `768 + 768 + 768`, `64`; `size_of` gives a leaf's size."""
    dim = find(dim)
    if dim.factors:
        words = [(f, describe(f, size_of)) for f in map(find, dim.factors)]
        return " x ".join(f"({word})" if factor.parts else word for factor, word in words)
    if dim.parts:
        words = [(p, describe(p, size_of)) for p in map(find, dim.parts)]
        return " + ".join(f"({word})" if part.factors else word for part, word in words)
    return str(size_of(dim))


def _bind(leaf: Dim, other: Dim) -> None:
    if leaf.frozen is not None:
        freeze(other, leaf.frozen)
    leaf.link = other


def _incompatible(a: Dim, b: Dim, why: Reason) -> None:
    freeze(a, why)
    freeze(b, why)


def _unify_products(a: Dim, b: Dim, why: Reason) -> None:
    """Align factor by factor, from the inside out, splitting the larger of two unequal factors."""
    left, right = factors_of(a), factors_of(b)
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size > y.size:
            x, y, left, right = y, x, right, left
        if x.size != y.size:
            pieces = _factors(y, [y.size // x.size, x.size]) if y.size % x.size == 0 else None
            if pieces is None:
                _incompatible(a, b, why)
                return
            rest, y = pieces
            right.append(rest)
        unify(x, y, why)
    a.link = b


def _unify_concatenations(a: Dim, b: Dim, why: Reason) -> None:
    """Cut both at every boundary of either, then unify piece by piece."""
    cuts = sorted({cut for dim in (a, b) if dim.parts for cut in accumulate(p.size for p in parts_of(dim))})
    sizes = [end - start for start, end in zip([0, *cuts], cuts, strict=False)]
    left, right = _parts(a, sizes), _parts(b, sizes)
    if left is None or right is None:
        _incompatible(a, b, why)
        return
    for x, y in zip(left, right, strict=True):
        unify(x, y, why)


def _regroup_one(sources: list[Dim], sizes: list[int], why: Reason) -> list[Dim]:
    pieces = _factors(product(sources), sizes)
    if pieces is not None:
        return pieces
    for source in sources:
        freeze(source, why)
    return [Dim(size, why) for size in sizes]


def _factors(dim: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    """Return factors of `dim` of exactly `sizes` (none of them 1), or None where its structure forbids it."""
    dim = find(dim)
    if len(sizes) == 1:
        return [dim]
    if dim.is_leaf:
        dim.factors = tuple(Dim(size, dim.frozen) for size in sizes)
        return list(dim.factors)
    if dim.parts:
        return _factor_concatenation(dim, sizes)
    remaining, result = factors_of(dim), []
    for size in reversed(sizes):
        taken: list[Dim] = []
        missing = size
        while missing > 1:
            factor = find(remaining.pop())
            if missing % factor.size == 0:
                taken.append(factor)
                missing //= factor.size
                continue
            pieces = _factors(factor, [factor.size // missing, missing]) if factor.size % missing == 0 else None
            if pieces is None:
                return None
            remaining.append(pieces[0])
            taken.append(pieces[1])
            missing = 1
        result.append(product(taken[::-1]))
    return result[::-1]


def _factor_concatenation(dim: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    """Rewrite `a*i + b*i` as `(a + b) * i`, uniting the inner factors of all parts."""
    inner = prod(sizes[1:])
    parts = parts_of(dim)
    if any(part.size % inner for part in parts):
        return None
    columns = []
    for part in parts:
        outer = part.size // inner
        pieces = _factors(part, [outer, *sizes[1:]] if outer > 1 else sizes[1:])
        if pieces is None:
            return None
        columns.append(pieces if outer > 1 else [Dim(1), *pieces])
    first = columns[0]
    why = Reason("", "", "parts of a concatenation that are viewed alike have different structures")
    for column in columns[1:]:
        for x, y in zip(first[1:], column[1:], strict=True):
            unify(x, y, why)
    dim.parts = ()
    dim.factors = (concat([column[0] for column in columns]), *first[1:])
    return list(dim.factors)


def _parts(dim: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    """Return parts of `dim` of exactly `sizes`, or None where its structure forbids it."""
    dim = find(dim)
    if len(sizes) == 1:
        return [dim]
    if dim.is_leaf:
        dim.parts = tuple(Dim(size, dim.frozen) for size in sizes)
        return list(dim.parts)
    if dim.factors:
        return _parts_of_product(dim, sizes)
    remaining, result = parts_of(dim), []
    for size in sizes:
        taken: list[Dim] = []
        missing = size
        while missing > 0:
            part = remaining.pop(0)
            if part.size > missing:
                pieces = _parts(part, [missing, part.size - missing])
                if pieces is None:
                    return None
                part, rest = pieces
                remaining.insert(0, rest)
            taken.append(part)
            missing -= part.size
        result.append(concat(taken))
    return result


def _parts_of_product(dim: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    """Cut `(a + b) * i` at multiples of i: only the outermost factor is cut."""
    outer, *inner = factors_of(dim)
    width = prod(factor.size for factor in inner)
    if any(size % width for size in sizes):
        return None
    pieces = _parts(outer, [size // width for size in sizes])
    return None if pieces is None else [product([piece, *inner]) for piece in pieces]
