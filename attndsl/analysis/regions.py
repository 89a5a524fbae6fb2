"""Sets of positions along an axis as a few intervals, and how they combine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from attndsl.analysis import build
from attndsl.analysis.build import HIGHEST, LOWEST, greatest, least, where
from attndsl.ir.nodes import FALSE, TRUE, Node


@dataclass(frozen=True)
class Interval:
    """The positions of [lo, hi), if `there` holds. LOWEST and HIGHEST are no limit."""

    lo: Node
    hi: Node
    there: Node = TRUE

    @property
    def first(self) -> Node:
        """Where it begins; beyond all positions if it is not there."""
        return where(self.there, self.lo, HIGHEST)

    @property
    def end(self) -> Node:
        return where(self.there, self.hi, LOWEST)


EVERYWHERE = Interval(LOWEST, HIGHEST)


def is_empty(x: Interval) -> bool:
    """Whether it is known to hold nothing."""
    if x.there is FALSE or x.lo is HIGHEST or x.hi is LOWEST:
        return True
    return build.at_most(x.hi, x.lo) is TRUE


def _is_open(node: Node) -> bool:
    """Whether an end is, in every case, no limit (or that of an empty interval)."""
    if node.op == "where":
        return _is_open(node.args[1]) and _is_open(node.args[2])
    return node in (LOWEST, HIGHEST)


Item = TypeVar("Item")


def reduced(items: Iterable[Item], unite: Callable[[Item, Item], Item | None]) -> list[Item]:
    """Pairs made one, where `unite` gives one for them, until no more can be.

    >>> reduced([3, 5, 4], lambda x, y: max(x, y) if abs(x - y) == 1 else None)
    [5]
    """
    waiting = list(items)
    done: list[Item] = []
    while waiting:
        item = waiting.pop(0)
        for other in done:
            one = unite(other, item)
            if one is not None:
                done.remove(other)
                waiting.insert(0, one)
                break
        else:
            done.append(item)
    return done


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same positions in fewer intervals, where that takes no hull."""
    return reduced((x for x in intervals if not is_empty(x)), _united)


def _united(x: Interval, y: Interval) -> Interval | None:
    """One interval of the same positions, if there is one whatever the call."""
    for one, other in ((x, y), (y, x)):
        if _contains(one, other):
            return one
    for one, other in ((x, y), (y, x)):
        if _is_open(one.lo) and _is_open(one.hi):  # all or nothing
            return _chosen(_all_if(one), EVERYWHERE, other, build.either(_all_if(one), other.there))
    if build.both(x.there, y.there) is FALSE:
        return _chosen(x.there, x, y, build.either(x.there, y.there))
    alike = x.there is y.there
    there = x.there if alike else TRUE
    if x.lo is y.lo:
        return Interval(x.lo, greatest(x.hi, y.hi) if alike else greatest(x.end, y.end), there)
    if x.hi is y.hi:
        return Interval(least(x.lo, y.lo) if alike else least(x.first, y.first), x.hi, there)
    if _reaches(x.lo, y.hi) and _reaches(y.lo, x.hi):
        # They meet, or one is empty and lies beside or inside the other.
        return hull(x, y)
    return None


def _contains(x: Interval, y: Interval) -> bool:
    return (
        (x.there is TRUE or x.there is y.there)
        and (x.lo is LOWEST or build.at_most(x.lo, y.lo) is TRUE)
        and (x.hi is HIGHEST or build.at_most(y.hi, x.hi) is TRUE)
    )


def _reaches(lo: Node, hi: Node) -> bool:
    """Whether lo <= hi is known."""
    return lo is LOWEST or hi is HIGHEST or build.at_most(lo, hi) is TRUE


def _all_if(x: Interval) -> Node:
    """When an interval that is all or nothing is all."""
    return build.both(x.there, _is(x.lo, LOWEST), _is(x.hi, HIGHEST))


def _is(node: Node, end: Node) -> Node:
    """When a conditional between no limits is that one."""
    if node.op != "where":
        return TRUE if node is end else FALSE
    return where(node.args[0], _is(node.args[1], end), _is(node.args[2], end))


def _chosen(condition: Node, x: Interval, y: Interval, there: Node) -> Interval:
    """x where the condition holds, else y."""
    opposite = build.negation(condition)

    def end(a: Node, b: Node) -> Node:
        return where(
            condition, build.given(condition, opposite, a), build.given(opposite, condition, b)
        )

    return Interval(end(x.lo, y.lo), end(x.hi, y.hi), there)


def hull(x: Interval, y: Interval) -> Interval:
    """All from the first position of either to the last."""
    if x.there is y.there:
        return Interval(least(x.lo, y.lo), greatest(x.hi, y.hi), x.there)
    return Interval(least(x.first, y.first), greatest(x.end, y.end))


def proper(x: Interval) -> Interval:
    """The interval with `there` false where it holds nothing: a hull then leaves it out."""
    return Interval(x.lo, x.hi, build.both(x.there, build.less(x.lo, x.hi)))


def bounded(intervals: list[Interval], most: int) -> list[Interval]:
    """At most so many intervals: pairs become hulls, such first that share the side of no limit
    or reach furthest into each other's form."""
    found = list(intervals)
    while len(found) > most:
        x, y = min(itertools.combinations(found, 2), key=_strangeness)
        found.remove(x)
        found.remove(y)
        found = union([*found, hull(proper(x), proper(y))])
    return found


def _strangeness(pair: tuple[Interval, Interval]) -> int:
    """How little two intervals have in common: a hull of relatives covers less that is empty."""
    x, y = pair
    score = 0 if x.there is y.there else 1
    for a, b in ((x.lo, y.lo), (x.hi, y.hi)):
        if (a in (LOWEST, HIGHEST)) != (b in (LOWEST, HIGHEST)):
            score += 4
        elif build.at_most(a, b).op != "const" and build.at_most(b, a).op != "const":
            score += 2
    return score


def complement(intervals: list[Interval], most: int) -> tuple[list[Interval], bool]:
    """The positions in none of the intervals, in at most so many; and whether that is all of them.

    An interval leaves out what lies before it and what lies after it. Where it is empty these two
    meet, so that nothing needs to be known of its ends.
    """
    sides = [_sides(interval) for interval in union(intervals)]
    found, is_complete = [EVERYWHERE], True
    for parts in sorted(sides, key=len):
        found = [_intersection(x, y) for x in found for y in parts]
        found = [x for x in found if not is_empty(x)]
        found = _without_contained(found)
        if len(found) > 2 * most:
            found, is_complete = found[: 2 * most], False
    return found[:most], is_complete and len(found) <= most


def _sides(x: Interval) -> list[Interval]:
    if _is_open(x.lo) and _is_open(x.hi):
        nowhere = build.negation(_all_if(x))
        return [Interval(where(nowhere, LOWEST, HIGHEST), where(nowhere, HIGHEST, LOWEST))]
    before, after = Interval(LOWEST, x.first), Interval(x.end, HIGHEST)
    if x.lo is LOWEST:
        return [after]
    return [before] if x.hi is HIGHEST else [before, after]


def _intersection(x: Interval, y: Interval) -> Interval:
    return Interval(greatest(x.lo, y.lo), least(x.hi, y.hi), build.both(x.there, y.there))


def _without_contained(intervals: list[Interval]) -> list[Interval]:
    found: list[Interval] = []
    for interval in intervals:
        if not any(_contains(other, interval) for other in found):
            found = [other for other in found if not _contains(interval, other)]
            found.append(interval)
    return found
