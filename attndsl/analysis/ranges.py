"""solve_keys, solve_queries: the positions that a tile needs, as closed expressions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce

from attndsl.analysis import build, cases, regions
from attndsl.analysis.boxes import Box
from attndsl.analysis.build import HIGHEST, LOWEST
from attndsl.analysis.cases import Case, Clause, Unsolved
from attndsl.analysis.expansion import Expansion
from attndsl.analysis.facts import (
    EVERYTHING_HIGH,
    EVERYTHING_LOW,
    MOST_SEGMENTS,
    Segment,
    Solution,
)
from attndsl.analysis.limits import (
    OTHER,
    Limit,
    Signs,
    at_end,
    atoms_of,
    eliminated,
    end_of,
    is_usual,
    isolated,
)
from attndsl.analysis.linear import Linear, form_range, linear, number
from attndsl.analysis.predicates import Predicate, normal_forms
from attndsl.analysis.prover import Prover
from attndsl.analysis.regions import Interval
from attndsl.ir.nodes import FALSE, TRUE, Node, bound, constant, topological

MOST_INTERVALS = 16  # of one mask, before they are put together
MOST_SPLITS = 32  # clauses taken apart in one mask

MET_APART = "each may be met in a tile, but by different positions of it"
MOST_NODES = 24  # of a condition that is no more than likely to leave out a tile
MOST_COMPARED = 4  # ends of a narrowed tile that are compared one by one

Ends = tuple[Node, Node]
ONE = constant(1)


def solve_keys(mask: Node) -> Solution:
    """The keys that a tile of queries `bound("lo")` .. `bound("hi")` needs.

    What takes part in full is what the mask's negation leaves out. Divisors and multipliers of
    positions are taken as positive: where a call gives others every key is visited.

    >>> from attndsl.ir.nodes import index, make
    >>> segment, = solve_keys(make("le", index("k"), index("q"))).segments
    >>> segment.hi, segment.full_hi
    (add(bound('hi'), const(1)), add(bound('lo'), const(1)))

    Declines (no limit, nothing full, a loss): values that neither rise nor fall with k, such as
    `k % w`, a lookup or a float; sums of several values of k, such as `k + k // 2`.
    """
    return _solved(mask, "k")


def solve_queries(mask: Node) -> Solution:
    """The queries that a tile of keys `bound("lo")` .. `bound("hi")` needs."""
    return _solved(mask, "q")


def _solved(mask: Node, axis: str) -> Solution:
    solver = Solver(mask, axis)
    holds, fails = normal_forms(mask)
    found = solver.intervals(holds)
    outer = regions.bounded(found, MOST_SEGMENTS)
    inner, is_complete = regions.complement(solver.intervals(fails), MOST_SEGMENTS)
    if len(outer) < len(found) or not is_complete:
        solver.expansion.lose(mask, "more ranges than a kernel loops over")
    segments = _paired(outer, inner)
    guard = solver.signs.guard()
    if guard is not TRUE:
        segments = _guarded(segments, guard)
    return Solution(tuple(segments), tuple(solver.expansion.losses))


def _paired(outer: list[Interval], inner: list[Interval]) -> list[Segment]:
    """Segments, each with the full part that most resembles it."""
    nothing = Interval(HIGHEST, LOWEST, FALSE)
    left = list(inner)
    parts: list[tuple[Interval, Interval]] = []
    for x in outer:
        alike = [y for y in left if (y.lo is LOWEST, y.hi is HIGHEST) == _openness(x)]
        y = (alike or left or [nothing])[0]
        left = [other for other in left if other is not y]
        parts.append((x, y))
    parts += [(nothing, y) for y in left] if outer else []
    return [
        Segment(*map(_settled, (x.lo, x.end, y.lo, y.end)))
        if not regions.is_empty(x)
        else Segment(HIGHEST, LOWEST, *map(_settled, (y.lo, y.end)))
        for x, y in parts
    ]


def _openness(x: Interval) -> tuple[bool, bool]:
    return x.lo is LOWEST, x.hi is HIGHEST


def _settled(end: Node) -> Node:
    """An end that lies beyond every position whatever the call becomes "no limit"."""
    low, high = form_range(linear(end))
    if low >= EVERYTHING_HIGH:
        return HIGHEST
    return LOWEST if high <= EVERYTHING_LOW else end


def _guarded(segments: list[Segment], guard: Node) -> list[Segment]:
    """The segments where the guard holds; else everything, and nothing of it full."""
    first, *rest = segments or [Segment(HIGHEST, LOWEST, HIGHEST, LOWEST)]
    lo, hi = build.where(guard, first.lo, LOWEST), build.where(guard, first.hi, HIGHEST)
    return [
        Segment(s.lo, s.hi, s.full_lo, build.where(guard, s.full_hi, LOWEST))
        for s in (Segment(lo, hi, first.full_lo, first.full_hi), *rest)
    ]


class Solver:
    """Solves predicates for one index, given a tile of the other one."""

    def __init__(self, mask: Node, axis: str) -> None:
        self.axis, self.other = axis, OTHER[axis]
        self.signs = Signs()
        self.tile: Ends = (bound("lo"), bound("hi"))
        self._boxes: dict[Ends, Box] = {}
        self._splits = MOST_SPLITS
        self.expansion = Expansion(mask, axis, self.box(self.tile), self.signs)

    def box(self, tile: Ends) -> Box:
        """The tile, with all positions of the index that is solved for."""
        if tile not in self._boxes:
            anywhere = (None, None)
            ends = (tile, anywhere) if self.axis == "k" else (anywhere, tile)
            self._boxes[tile] = Box(*ends)
        return self._boxes[tile]

    def intervals(self, part: Predicate) -> list[Interval]:
        """Intervals outside which no position of the tile has the predicate."""
        found = [one for case in self.expansion.cases(part) for one in self._split(case)]
        found = regions.union(found)
        if len(found) > MOST_INTERVALS:
            self.expansion.lose(self.expansion.mask, "more cases than ranges can tell apart")
        return regions.bounded(found, MOST_INTERVALS)

    def _split(self, case: Case) -> list[Interval]:
        """The intervals of a case; its clauses are taken apart where two of them may be met by
        different positions of the tile only."""
        met = self._met(case)
        if met is not None:
            return [self._interval(met)]
        parts = cases.alternatives(case)
        self._splits -= 1
        if parts is not None and self._splits > 0:
            return [one for part in parts for one in self._split(part)]
        for two in cases.pairs(case, self.other):
            for one in two:
                self.expansion.lose_at(one.limits[0].source, MET_APART)
        return [self._interval(case)]

    # Two clauses that limit the other index from both sides need a position between them, else each
    # is met somewhere in the tile, but not both at once.

    def _met(self, case: Case) -> Case | None:
        """The case with what must hold for each two clauses to be met at once; None: unknown."""
        found = case
        for below, above in cases.pairs(case, self.other):
            needed = self._between(below, above)
            if needed is None:
                return None
            joined = cases.conjunction(found, needed, self.signs)
            found = joined if joined is not None else Case(fixed=(FALSE,))
        return found

    def _between(self, below: Clause, above: Clause) -> Case | None:
        """What must hold for a position of the other index to lie above the one clause and below
        the other."""
        both = (*below.limits, *above.limits)
        limits: list[Limit | None] = [m for m in both if m.side(self.other) == 0]
        fixed: list[Node] = [below.extra, above.extra]
        for one, other in itertools.product(below.limits, above.limits):
            if 0 not in (one.side(self.other), other.side(self.other)):
                gap = eliminated(one, other, self.other, self.signs)
                if gap is None:
                    limits.append(None)
                elif self._is_met(gap):
                    return Case()
                elif not gap.varies:
                    fixed.append(build.not_positive(gap))
                elif not self._is_proved(number(1) - gap):
                    limit = isolated(gap, self.axis, self.signs)
                    usual = self._unless_usual(gap) if limit is None else None
                    if usual is None:
                        limits.append(limit)
                    else:
                        fixed.append(usual)
        extra = build.either(*fixed)
        if extra is TRUE or not limits:
            return Case(fixed=() if extra is TRUE else (extra,))
        known = tuple(limit for limit in limits if limit is not None)
        if len(known) < len(limits) or len({limit.sign for limit in known}) > 1:
            return None
        return Case((Clause(known, extra),))

    def _is_met(self, gap: Linear) -> bool:
        """Whether the form is never positive, with parameters that are at least 1."""
        return self._is_proved(gap) if gap.varies else is_usual(gap)

    def _unless_usual(self, gap: Linear) -> Node | None:
        """What must hold for the form not to be positive, where that takes parameters below 1."""
        fixed = Linear(tuple(t for t in gap.terms if not t.varies), gap.constant)
        if is_usual(number(1) - fixed) and self._is_proved(fixed - gap):
            return build.not_positive(fixed)
        return None

    def _is_proved(self, form: Linear) -> bool:
        """Whether the form is never positive."""
        facts = [number(1) - linear(node) for node in self.signs.assumed]
        return self.signs.greatest(form) <= 0 or Prover(facts).holds(form)

    # A case becomes an interval: limits of the other index alone narrow the tile first.

    def _interval(self, case: Case) -> Interval:
        narrowing = [c for c in case.clauses if all(m.axis == self.other for m in c.limits)]
        tile, there = self._narrowed(narrowing)
        lo, hi = LOWEST, HIGHEST
        for clause in case.clauses:
            if clause not in narrowing:
                end = self._end(clause, tile)
                if clause.side(self.axis) == 1:
                    hi = build.least(hi, end)
                else:
                    lo = build.greatest(lo, end)
        truths = [self._possible(other, tile) for other in case.others]
        return Interval(lo, hi, build.both(*case.fixed, there, *truths))

    def _narrowed(self, clauses: list[Clause]) -> tuple[Ends, Node]:
        """The part of the tile that meets limits of the other index, and whether there is one."""
        first, last = self.tile
        firsts, ends = [first], [build.add(last, ONE)]
        for clause in clauses:
            end = self._outermost(clause.limits, self.tile)
            if clause.side(self.other) == 1:
                last = build.least(last, self._last_below(clause))
                ends.append(build.where(clause.extra, HIGHEST, end))
            else:
                end = build.where(clause.extra, LOWEST, end)
                first = build.greatest(first, end)
                firsts.append(end)
        if len(firsts) * len(ends) > MOST_COMPARED:
            return (first, last), build.at_most(first, last)
        met = [build.less(x, y) for x in firsts for y in ends if (x, y) != (firsts[0], ends[0])]
        return (first, last), build.both(*met)

    def _last_below(self, clause: Clause) -> Node:
        ends = [build.sub(self._place(limit, limit.rest, False), ONE) for limit in clause.limits]
        return build.where(clause.extra, HIGHEST, reduce(build.greatest, ends))

    def _end(self, clause: Clause, tile: Ends) -> Node:
        """The outermost end of its limits of the solved index; no limit where the tile meets one of
        the other index."""
        mine = [limit for limit in clause.limits if limit.axis == self.axis]
        met = [clause.extra]
        for limit in clause.limits:
            if limit.axis == self.other:
                end = self._place(limit, limit.rest)
                met.append(
                    build.less(tile[0], end) if limit.sign > 0 else build.at_most(end, tile[1])
                )
        no_limit = HIGHEST if clause.side(self.axis) == 1 else LOWEST
        return build.where(build.either(*met), no_limit, self._outermost(mine, tile))

    def _outermost(self, limits: Sequence[Limit], tile: Ends) -> Node:
        """The outermost end of limits of one index, from one side."""
        is_upper = limits[0].sign > 0
        no_limit, join = (HIGHEST, build.greatest) if is_upper else (LOWEST, build.least)
        ends = []
        for limit in limits:
            rest = self._least(limit, tile)
            ends.append(no_limit if rest is None else self._place(limit, rest))
        return reduce(join, ends)

    def _place(self, limit: Limit, rest: Linear, is_final: bool = True) -> Node:
        found = end_of(limit, rest, is_final, self.signs)
        if found is not None:
            return found
        self.expansion.lose_at(limit.source, "its ends may leave 64 bits")
        return HIGHEST if limit.sign > 0 else LOWEST

    def _least(self, limit: Limit, tile: Ends) -> Linear | None:
        """The least value of the rest of a limit in the tile."""
        if limit.slope is not None:
            return at_end(limit.rest, self.other, limit.slope, *tile)
        value = self.box(tile).form(limit.rest)
        if not self._is_attained(limit.rest):
            self.expansion.lose_form(limit.rest, limit.source)
        if value.lo is None or value.sound is not TRUE:
            return None
        return linear(value.lo)

    def _is_attained(self, rest: Linear) -> bool:
        """Whether the interval of a form has ends that it reaches: one value that rises or falls,
        times a factor of unknown sign."""
        groups = atoms_of(rest, self.other)
        atom = next(iter(groups))
        return len(groups) == 1 and atom is not None and bool(self.signs.slope(atom, self.other))

    def _possible(self, other: Unsolved, tile: Ends) -> Node:
        truth = self.box(tile).truth(other.part)
        if truth.possible is not truth.certain:
            self.expansion.lose_part(other.part, other.source)
            if len(topological(truth.possible)) > MOST_NODES:
                return TRUE
        return truth.possible
