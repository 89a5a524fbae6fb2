"""Masks as cases: a pair takes part where one case holds, a case where all of its clauses do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attndsl.analysis import build
from attndsl.analysis.limits import Limit, Signs
from attndsl.analysis.predicates import Predicate
from attndsl.analysis.regions import reduced
from attndsl.ir.nodes import FALSE, TRUE, Node

MOST_TOGETHER = 4  # clauses of cases that are put together


@dataclass(frozen=True)
class Clause:
    """One of the limits holds, or `extra` (fixed) does. All of them limit each index from the same
    side, if at all: together they are a limit again, that rises or falls with the other index."""

    limits: tuple[Limit, ...]
    extra: Node = FALSE

    def side(self, axis: str) -> int | None:
        """The side from which it limits an index, as in `Limit.side`."""
        return _common(limit.side(axis) for limit in self.limits)


def _common(sides: Iterable[int | None]) -> int | None:
    found = set(sides) - {0}
    if not found:
        return 0
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Unsolved:
    """A predicate that limits no index, or whose limit was not found."""

    part: Predicate
    source: Node | None


@dataclass(frozen=True)
class Case:
    """All clauses, all of `fixed` (nodes that vary with neither q nor k) and all the others."""

    clauses: tuple[Clause, ...] = ()
    fixed: tuple[Node, ...] = ()
    others: tuple[Unsolved, ...] = ()


def single(limit: Limit) -> Case:
    return Case((Clause((limit,)),))


def conjunction(x: Case, y: Case, signs: Signs) -> Case | None:
    """Both cases at once; None where they contradict each other."""
    clauses = list(x.clauses)
    for clause in y.clauses:
        if any(implies(other, clause, signs) for other in clauses):
            continue
        clauses = [other for other in clauses if not implies(clause, other, signs)]
        if any(_contradict(other, clause, signs) for other in clauses):
            return None
        clauses.append(clause)
    fixed = build.both(*x.fixed, *y.fixed)
    if fixed is FALSE:
        return None
    parts = tuple(dict.fromkeys(n for n in (*x.fixed, *y.fixed) if n is not TRUE))
    others = tuple({id(other.part): other for other in (*x.others, *y.others)}.values())
    return Case(tuple(clauses), parts, others)


def implies(x: Clause, y: Clause, signs: Signs) -> bool:
    """Whether y holds wherever x does, as far as their limits tell."""
    if x.extra is not FALSE and x.extra is not y.extra:
        return False
    return all(any(_is_tighter(a, b, signs) for b in y.limits) for a in x.limits)


def _is_tighter(x: Limit, y: Limit, signs: Signs) -> bool:
    if x.key == y.key:
        return True
    if (x.axis, x.sign) != (y.axis, y.sign) or x.direction != y.direction:
        return False
    low, high = (x.bound, y.bound) if x.sign > 0 else (y.bound, x.bound)
    return signs.is_at_most(low, high)


def _contradict(x: Clause, y: Clause, signs: Signs) -> bool:
    if len(x.limits) > 1 or len(y.limits) > 1 or x.extra is not FALSE or y.extra is not FALSE:
        return False
    (a,), (b,) = x.limits, y.limits
    if a.axis != b.axis or a.sign == b.sign or a.direction != b.direction:
        return False
    upper, lower = (a, b) if a.sign > 0 else (b, a)
    return signs.is_at_most(upper.bound.plus(1), lower.bound)


def disjunction(cases: Iterable[Case], signs: Signs) -> list[Case]:
    """The cases with those left out that others contain, and neighbours made one: `q == k` or
    `k < q` is `k <= q`. Limits that move alike become one clause."""
    found = reduced(cases, lambda x, y: _united(x, y, signs))
    return _grouped(found)


def _united(x: Case, y: Case, signs: Signs) -> Case | None:
    """One case that holds where either does, if there is one."""
    for small, large in ((x, y), (y, x)):
        if _contains(large, small, signs):
            return large
    if {id(o.part) for o in x.others} != {id(o.part) for o in y.others}:
        return None
    keys = [{_key(clause): clause for clause in case.clauses} for case in (x, y)]
    if keys[0].keys() == keys[1].keys():
        if set(x.fixed) == set(y.fixed):
            return x
        either = build.either(build.both(*x.fixed), build.both(*y.fixed))
        return replace(x, fixed=() if either is TRUE else (either,))
    if set(x.fixed) != set(y.fixed):
        return None
    shared = [clause for key, clause in keys[0].items() if key in keys[1]]
    apart = [
        [clause for key, clause in one.items() if key not in other]
        for one, other in (keys, keys[::-1])
    ]
    hull = _hull(apart[0], apart[1], signs)
    if hull is None:
        return None
    return replace(x, clauses=(*shared, *(Clause((limit,)) for limit in hull)))


def _contains(large: Case, small: Case, signs: Signs) -> bool:
    inside = {id(other.part) for other in small.others}
    return (
        all(id(other.part) in inside for other in large.others)
        and set(large.fixed) <= set(small.fixed)
        and all(any(implies(c, clause, signs) for c in small.clauses) for clause in large.clauses)
    )


def _key(clause: Clause) -> tuple[frozenset[object], Node]:
    return frozenset((limit.axis, limit.key) for limit in clause.limits), clause.extra


def _hull(x: list[Clause], y: list[Clause], signs: Signs) -> list[Limit] | None:
    """The union of two ranges of one value, if they touch: its limits."""
    limits: list[dict[int, Limit]] = [{}, {}]
    directions = set()
    for found, clauses in zip(limits, (x, y), strict=True):
        for clause in clauses:
            limit = clause.limits[0]
            if len(clause.limits) > 1 or clause.extra is not FALSE or limit.sign in found:
                return None
            found[limit.sign] = limit
            directions.add(limit.direction)
    if len(directions) > 1:
        return None
    for one, other in (limits, limits[::-1]):
        if 1 in one and -1 in other:
            if not signs.is_at_most(other[-1].bound, one[1].bound.plus(1)):
                return None
    hull = []
    for sign in (1, -1):
        if sign in limits[0] and sign in limits[1]:
            a, b = limits[0][sign], limits[1][sign]
            if _is_tighter(a, b, signs):
                hull.append(b)
            elif _is_tighter(b, a, signs):
                hull.append(a)
            else:
                return None
    return hull


def _grouped(cases: list[Case]) -> list[Case]:
    """Cases put together whose limits all move alike: clause by clause, for
    (a and b) or c is (a or c) and (b or c). Fixed conditions go along with one of them."""
    groups: list[tuple[Clause, ...]] = []
    rest: list[Case] = []
    extras: list[Node] = []
    for case in cases:
        if not case.clauses and not case.others:
            extras.append(build.both(*case.fixed))
        elif case.fixed or case.others or not _move_alike(case.clauses):
            rest.append(case)
        else:
            for at, group in enumerate(groups):
                count = len(group) * len(case.clauses)
                if count <= MOST_TOGETHER and _move_alike((*group, *case.clauses)):
                    groups[at] = tuple(_either(x, y) for x in group for y in case.clauses)
                    break
            else:
                groups.append(case.clauses)
    extra = build.either(*extras)
    if extra is TRUE or (extras and not groups):
        rest.insert(0, Case((), () if extra is TRUE else (extra,)))
    elif extras:
        first = (replace(clause, extra=build.either(clause.extra, extra)) for clause in groups[0])
        groups[0] = tuple(first)
    return [*(Case(group) for group in groups), *rest]


def _either(x: Clause, y: Clause) -> Clause:
    limits = {(limit.axis, limit.key): limit for limit in (*x.limits, *y.limits)}
    return Clause(tuple(limits.values()), build.either(x.extra, y.extra))


def _move_alike(clauses: tuple[Clause, ...]) -> bool:
    """Whether they limit each index from one side, if at all."""
    return all(_common(c.side(axis) for c in clauses) is not None for axis in ("q", "k"))


def alternatives(case: Case) -> list[Case] | None:
    """The case with its first clause of several limits taken apart; None where there is none."""
    for at, clause in enumerate(case.clauses):
        if len(clause.limits) > 1:
            before, after = case.clauses[:at], case.clauses[at + 1 :]
            parts = [replace(clause, limits=(limit,)) for limit in clause.limits]
            return [replace(case, clauses=(*before, part, *after)) for part in parts]
    return None


def pairs(case: Case, axis: str) -> list[tuple[Clause, Clause]]:
    """Clauses with both indices that limit `axis` from opposite sides: first the one that holds for
    large positions of it, then the one that holds for small ones."""
    mixed = [c for c in case.clauses if c.side(axis) != 0 and any(m.axis != axis for m in c.limits)]
    found = []
    for one, other in itertools.combinations(mixed, 2):
        sides = (one.side(axis), other.side(axis))
        if sides == (1, -1):
            found.append((other, one))
        elif sides not in ((1, 1), (-1, -1)):
            found.append((one, other))
    return found
