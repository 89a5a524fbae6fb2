"""Outer and inner intervals of positions along an axis, and how they combine."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.analysis import build
from attndsl.analysis.build import HIGHEST, LOWEST, greatest, least, where
from attndsl.ir.nodes import FALSE, TRUE, Node, constant, topological


@dataclass(frozen=True)
class Region:
    """Outside [lo, hi) nothing holds for any position of the tile; inside [full_lo, full_hi) it
    holds for all of them. LOWEST and HIGHEST are no limit; the empty outer is [HIGHEST, LOWEST).
    """

    lo: Node
    hi: Node
    full_lo: Node
    full_hi: Node


def region(possible: Node, certain: Node) -> Region:
    """All positions if `possible`, all of them for sure if `certain`."""
    return Region(
        where(possible, LOWEST, HIGHEST),
        where(possible, HIGHEST, LOWEST),
        where(certain, LOWEST, HIGHEST),
        where(certain, HIGHEST, LOWEST),
    )


ALL_POSITIONS = region(TRUE, TRUE)
NO_POSITIONS = region(FALSE, FALSE)
UNSOLVED = region(TRUE, FALSE)


def up_to(outer: Node | None, inner: Node | None) -> Region:
    """Positions p <= outer, and for sure p <= inner; None where the limit is unknown."""
    one = constant(1)
    return Region(
        LOWEST,
        HIGHEST if outer is None else build.add(outer, one),
        HIGHEST if inner is None else LOWEST,
        LOWEST if inner is None else build.add(inner, one),
    )


def from_on(outer: Node | None, inner: Node | None) -> Region:
    """Positions p >= outer, and for sure p >= inner."""
    return Region(
        LOWEST if outer is None else outer,
        HIGHEST,
        HIGHEST if inner is None else inner,
        LOWEST if inner is None else HIGHEST,
    )


def intersection(x: Region, y: Region) -> Region:
    return Region(
        greatest(x.lo, y.lo),
        least(x.hi, y.hi),
        greatest(x.full_lo, y.full_lo),
        least(x.full_hi, y.full_hi),
    )


def union(x: Region, y: Region, length: Node) -> Region:
    """The hull of the outer parts; of the inner parts their union if they meet, else the longer
    one on an axis of that length."""
    a, b = _proper(x), _proper(y)
    full_lo, full_hi = _inner_union((x.full_lo, x.full_hi), (y.full_lo, y.full_hi), length)
    return Region(least(a.lo, b.lo), greatest(a.hi, b.hi), full_lo, full_hi)


def is_exact_union(x: Region, y: Region) -> bool:
    """Whether the union needs no hull: half-lines of one direction, or all or nothing."""
    return (
        (x.lo is LOWEST and y.lo is LOWEST)
        or (x.hi is HIGHEST and y.hi is HIGHEST)
        or any(_is_open(r.lo) and _is_open(r.hi) for r in (x, y))
    )


def choice(condition: Node, x: Region, y: Region) -> Region:
    """x where a predicate of the tile holds, else y."""

    def end(a: Node, b: Node) -> Node:
        opposite = build.negation(condition)
        return where(
            condition, build.given(condition, opposite, a), build.given(opposite, condition, b)
        )

    return Region(
        end(x.lo, y.lo), end(x.hi, y.hi), end(x.full_lo, y.full_lo), end(x.full_hi, y.full_hi)
    )


def _is_open(node: Node) -> bool:
    """Whether an end is, in every case, no limit (or the empty outer's)."""
    if node.op == "where":
        return _is_open(node.args[1]) and _is_open(node.args[2])
    return node in (LOWEST, HIGHEST)


def _proper(x: Region) -> Region:
    """The region with an empty outer part as [HIGHEST, LOWEST), so that a hull ignores it."""
    if _is_open(x.lo) or _is_open(x.hi):
        return x
    is_there = build.less(x.lo, x.hi)
    return Region(
        where(is_there, x.lo, HIGHEST), where(is_there, x.hi, LOWEST), x.full_lo, x.full_hi
    )


Ends = tuple[Node, Node]
# A kernel evaluates the ends once per tile: beyond this size a longer full part does not pay.
MOST_NODES = 200


def _inner_union(x: Ends, y: Ends, length: Node) -> Ends:
    if x[0] is y[0]:
        return x[0], greatest(x[1], y[1])
    if x[1] is y[1]:
        return least(x[0], y[0]), x[1]
    for one, another in ((x, y), (y, x)):
        if one[0] is HIGHEST or one[1] is LOWEST:  # never full
            return another
        if one == (LOWEST, HIGHEST):
            return one
        if one[0].op == one[1].op == "where" and one[0].args[0] is one[1].args[0]:
            c, *cases = one[0].args
            parts = list(zip(cases, one[1].args[1:], strict=True))
            if any(_is_open(lo) and _is_open(hi) for lo, hi in parts):  # all or nothing
                then, other = (_inner_union(part, another, length) for part in parts)
                return where(c, then[0], other[0]), where(c, then[1], other[1])
    if len(topological(*x)) > MOST_NODES:  # long alternatives: what there is may do
        return x
    meet = build.at_most(greatest(x[0], y[0]), least(x[1], y[1]))
    longer = build.at_most(_extent(y, length), _extent(x, length))
    return (
        where(meet, least(x[0], y[0]), where(longer, x[0], y[0])),
        where(meet, greatest(x[1], y[1]), where(longer, x[1], y[1])),
    )


def _extent(ends: Ends, length: Node) -> Node:
    """How many positions of the axis lie between the ends, if it begins at 0. (A choice between
    two right answers hangs on it, nothing else.)"""
    return build.sub(least(ends[1], length), greatest(ends[0], constant(0)))
