"""solve_keys, solve_queries: the positions that a tile needs, as closed expressions."""

from __future__ import annotations

import itertools
from functools import reduce

from attndsl.analysis import build, regions
from attndsl.analysis.boxes import Box, Summary, cofactor, no_summary
from attndsl.analysis.build import HIGHEST, LOWEST
from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW, Segment
from attndsl.analysis.linear import Linear, Term, form_range, linear, number, quotient, written
from attndsl.analysis.predicates import All, Any, Choice, Literal, Predicate, every, normal_form
from attndsl.analysis.regions import UNSOLVED, Region, from_on, up_to
from attndsl.analysis.values import Value
from attndsl.ir.nodes import TRUE, Node, bound, constant, make, size

MOST_CASES = 4  # disjunctions are distributed over up to so many cases
LARGEST_SQUARE = constant(2**60)  # limits of squares beyond it are not solved
UNREACHED = constant(2**32)  # whose square no int64 holds
# sqrt(2**60) in float32, with the rounding of its argument: within this share of the true root.
ROOT_ROUNDING = 2.0**-20


def solve_keys(mask: Node, summary: Summary = no_summary) -> tuple[Segment, ...]:
    """The keys that a tile of queries `bound("lo")` .. `bound("hi")` needs: one segment, the hull.

    >>> from attndsl.ir.nodes import index
    >>> segment, = solve_keys(make("le", index("k"), index("q")))
    >>> segment.hi, segment.full_hi
    (add(bound('hi'), const(1)), add(bound('lo'), const(1)))

    Declines (no limit, nothing full): what `classify` declines, and coordinates such as `k % w`.
    """
    return _solved(mask, "k", Box((bound("lo"), bound("hi")), (None, None), summary))


def solve_queries(mask: Node, summary: Summary = no_summary) -> tuple[Segment, ...]:
    """The queries that a tile of keys `bound("lo")` .. `bound("hi")` needs: one segment."""
    return _solved(mask, "q", Box((None, None), (bound("lo"), bound("hi")), summary))


def _solved(mask: Node, axis: str, box: Box) -> tuple[Segment, ...]:
    found = Solver(axis, box).solve(normal_form(mask))
    ends = (found.lo, found.hi, found.full_lo, found.full_hi)
    return (Segment(*(_settled(end) for end in ends)),)


def _settled(end: Node) -> Node:
    """An end that lies beyond every position whatever the call becomes "no limit"."""
    low, high = form_range(linear(end))
    if low >= EVERYTHING_HIGH:
        return HIGHEST
    return LOWEST if high <= EVERYTHING_LOW else end


class Solver:
    """Solves predicates for one index (`axis`), given a tile of the other one in `box`."""

    def __init__(self, axis: str, box: Box) -> None:
        self.axis, self.box = axis, box
        self.length = size("Nk" if axis == "k" else "Nq")
        self._found: dict[int, tuple[Predicate, Region]] = {}

    def solve(self, part: Predicate) -> Region:
        stored = self._found.get(id(part))
        if stored is None:  # the predicate is kept, so that its id stays its own
            stored = self._found[id(part)] = (part, self._solve(part))
        return stored[1]

    def _solve(self, part: Predicate) -> Region:
        if isinstance(part, All):
            return self._all(part)
        if isinstance(part, Any):
            return reduce(self._union, map(self.solve, part.parts))
        if isinstance(part, Choice):
            return self._choice(part)
        if isinstance(part, Literal):
            zero = build.ZERO_NODE
            return self.below(part.form, zero, zero)
        return self._whole_axis(part)

    def _all(self, part: All) -> Region:
        """The intersection. A disjunction whose union would be a mere hull is distributed first:
        (a or c) and d is (a and d) or (c and d)."""
        cases: list[Region] = [regions.ALL_POSITIONS]
        for operand in part.parts:
            options = [self.solve(operand)]
            if isinstance(operand, Any) and len(cases) * len(operand.parts) <= MOST_CASES:
                separate = [self.solve(p) for p in operand.parts]
                pairs = itertools.combinations(separate, 2)
                if not all(regions.is_exact_union(x, y) for x, y in pairs):
                    options = separate
            cases = [regions.intersection(x, y) for x in cases for y in options]
        return reduce(self._union, cases)

    def _union(self, x: Region, y: Region) -> Region:
        return regions.union(x, y, self.length)

    def _whole_axis(self, part: Predicate) -> Region:
        """What the predicate says of all positions alike."""
        truth = self.box.truth(part)
        return regions.region(truth.possible, truth.certain)

    def _choice(self, part: Choice) -> Region:
        condition, otherwise = self.box.truth(part.condition), self.box.truth(part.otherwise)
        then, other = self.solve(part.then), self.solve(part.other)
        if condition.possible is condition.certain:
            return regions.choice(condition.certain, then, other)
        # Either way; full where both are, or where the taken one is.
        parts = self._union(
            self.solve(every(part.condition, part.then)),
            self.solve(every(part.otherwise, part.other)),
        )
        agreed = regions.intersection(then, other)
        full_lo = build.where(
            condition.certain,
            then.full_lo,
            build.where(otherwise.certain, other.full_lo, agreed.full_lo),
        )
        full_hi = build.where(
            condition.certain,
            then.full_hi,
            build.where(otherwise.certain, other.full_hi, agreed.full_hi),
        )
        return Region(parts.lo, parts.hi, full_lo, full_hi)

    # Comparisons. Limits are ints; `outer` is the one that is hardest to reach by any position of
    # the tile, `inner` the one that all of them reach; None is unknown.

    def below(self, form: Linear, outer: Node | None, inner: Node | None) -> Region:
        """form <= limit, for a limit somewhere between `inner` and `outer`."""
        mine: dict[Node, list[Term]] = {}
        rest: list[Term] = []
        for term in form.terms:
            varying = [atom for atom in term.atoms if self.axis in atom.varies]
            if len(varying) > 1:
                return UNSOLVED
            if varying:
                mine.setdefault(varying[0], []).append(term)
            else:
                rest.append(term)
        target = self._chosen(mine)
        for atom, terms in mine.items():
            if atom is not target:
                rest += terms
        value = self.box.form(Linear(tuple(rest), form.constant))
        outer, inner = _minus(outer, value, value.lo), _minus(inner, value, value.hi)
        if target is None:
            return regions.region(_holds(build.ZERO_NODE, outer), _surely(build.ZERO_NODE, inner))
        return self._scaled(cofactor(mine[target], target), target, outer, inner)

    def _chosen(self, mine: dict[Node, list[Term]]) -> Node | None:
        """The atom to solve for: the index itself where it stands alone."""
        for atom in mine:
            if atom.op == "index":
                return atom
        solvable = [atom for atom in mine if atom.op in ("floordiv", "mul", "min", "max", "abs")]
        return next(iter(solvable or mine), None)

    def _scaled(self, factor: Linear, atom: Node, outer: Node | None, inner: Node | None) -> Region:
        """factor * atom <= limit."""

        def over(limit: Node | None, divisor: Linear) -> Node | None:
            return None if limit is None else written(quotient(linear(limit), divisor))

        def rising() -> Region:  # atom <= limit // factor
            return self.upper(atom, over(outer, factor), over(inner, factor))

        def falling() -> Region:  # atom >= -(limit // -factor)
            limits = (over(outer, -factor), over(inner, -factor))
            return self.lower(
                atom, *(None if x is None else build.sub(build.ZERO_NODE, x) for x in limits)
            )

        outer, inner = _tamed(outer, factor, atom), _tamed(inner, factor, atom)
        low, high = form_range(factor)
        if low > 0:
            return rising()
        if high < 0:
            return falling()
        node, zero = written(factor), build.ZERO_NODE
        none = regions.region(_holds(zero, outer), _surely(zero, inner))
        return regions.choice(
            build.less(zero, node),
            rising(),
            regions.choice(build.less(node, zero), falling(), none),
        )

    def upper(self, atom: Node, outer: Node | None, inner: Node | None) -> Region:
        """atom <= limit."""
        op, args = atom.op, atom.args
        if outer is None and inner is None:
            return UNSOLVED
        if op == "index":
            return up_to(outer, inner)
        if op == "floordiv" and self.axis not in args[1].varies and self._is_fixed(args[1]):
            m = args[1]  # x // m <= c holds where x <= m * c + m - 1 does, for m > 0

            def limit(c: Node | None) -> Node | None:
                return None if c is None else build.sub(build.add(build.mul(m, c), m), constant(1))

            found = self.below(linear(args[0]), limit(outer), limit(inner))
            return self._for_positive(m, found, self._by_value(atom, outer, inner))
        if op == "mul" and args[0] is args[1]:
            x = linear(args[0])
            roots = _roots(outer, inner)
            return regions.intersection(self.below(x, *roots), self.below(-x, *roots))
        if op in ("min", "max", "abs"):
            x, y = linear(args[0]), -linear(args[0]) if op == "abs" else linear(args[1])
            join = self._union if op == "min" else regions.intersection
            return join(self.below(x, outer, inner), self.below(y, outer, inner))
        return self._by_value(atom, outer, inner)

    def lower(self, atom: Node, outer: Node | None, inner: Node | None) -> Region:
        """atom >= limit."""
        op, args = atom.op, atom.args
        if outer is None and inner is None:
            return UNSOLVED
        if op == "index":
            return from_on(outer, inner)

        def reaches(x: Linear, factor: Node | None = None) -> Region:  # x >= factor * limit
            limits = [outer, inner]
            if factor is not None:
                limits = [None if c is None else build.mul(factor, c) for c in limits]
            limits = [None if c is None else build.sub(build.ZERO_NODE, c) for c in limits]
            return self.below(-x, limits[0], limits[1])

        if op == "floordiv" and self.axis not in args[1].varies and self._is_fixed(args[1]):
            m = args[1]  # x // m >= c holds where x >= m * c does, for m > 0
            found = reaches(linear(args[0]), m)
            return self._for_positive(m, found, self._by_value_from(atom, outer, inner))
        if op in ("min", "max", "abs"):
            x, y = linear(args[0]), -linear(args[0]) if op == "abs" else linear(args[1])
            join = regions.intersection if op == "min" else self._union
            return join(reaches(x), reaches(y))
        return self._by_value_from(atom, outer, inner)

    def _is_fixed(self, node: Node) -> bool:
        return not {"q", "k"} & node.varies

    def _for_positive(self, divisor: Node, found: Region, other: Region) -> Region:
        return regions.choice(build.less(build.ZERO_NODE, divisor), found, other)

    def _by_value(self, atom: Node, outer: Node | None, inner: Node | None) -> Region:
        """atom <= limit from the values that the atom can have at all."""
        value = self.box.value(atom)
        if value.sound is not TRUE:
            return UNSOLVED
        return regions.region(_holds(value.lo, outer), _surely(value.hi, inner))

    def _by_value_from(self, atom: Node, outer: Node | None, inner: Node | None) -> Region:
        """atom >= limit from the values that the atom can have at all."""
        value = self.box.value(atom)
        if value.sound is not TRUE:
            return UNSOLVED
        return regions.region(_holds(outer, value.hi), _surely(inner, value.lo))


def _minus(limit: Node | None, value: Value, end: Node | None) -> Node | None:
    """limit - end, where both are known."""
    if limit is None or end is None or value.sound is not TRUE:
        return None
    return build.sub(limit, end)


def _holds(x: Node | None, y: Node | None) -> Node:
    """x <= y, or true where one is unknown."""
    return TRUE if x is None or y is None else build.at_most(x, y)


def _surely(x: Node | None, y: Node | None) -> Node:
    """x <= y, or false where one is unknown."""
    return build.negation(TRUE) if x is None or y is None else build.at_most(x, y)


def _tamed(limit: Node | None, factor: Linear, atom: Node) -> Node | None:
    """The limit of factor * atom with a lone wide value in it (an int64 entry of a table, such as
    the largest int64 for "no limit") clipped to +-2 * WIDE, so that nothing added to it overflows.

    It says the same: factor * atom and the rest of the limit lie within WIDE.
    """
    if limit is None:
        return None
    form = linear(limit)
    wide = [term for term in form.terms if build.is_wide(term)]
    if len(wide) != 1 or len(wide[0].atoms) != 1:
        return limit
    if len(form.terms) == 1 and atom.op == "index":
        if (factor, form.constant) in ((number(1), -1), (number(-1), 0)):
            return limit  # becomes an end as it stands
    rest = form_range(form.without(wide[0]))
    reach = form_range(Linear(tuple(Term((*t.atoms, atom), t.factor) for t in factor.terms)))
    if factor.is_constant:
        reach = form_range(Linear((Term((atom,), factor.constant),)))
    if max(map(abs, (*rest, *reach))) > build.WIDE or abs(wide[0].factor) > 2**20:
        return limit
    least, most = constant(-2 * build.WIDE), constant(2 * build.WIDE)
    clipped = make("max", make("min", wide[0].atoms[0], most), least)
    return written(form.without(wide[0]) + linear(clipped).times(wide[0].factor))


def _roots(outer: Node | None, inner: Node | None) -> tuple[Node | None, Node | None]:
    """r with x * x <= limit only if |x| <= r, and r with it whenever |x| <= r."""
    return (
        None if outer is None else _root(outer, 1.0 + ROOT_ROUNDING, outside=True),
        None if inner is None else _root(inner, 1.0 - ROOT_ROUNDING, outside=False),
    )


def _root(limit: Node, margin: float, outside: bool) -> Node:
    """The root of a limit: exact where the float root is near enough, else on the safe side; -1
    for a negative limit."""
    zero = constant(0)
    near = make("sqrt", make("to_float", make("max", make("min", limit, LARGEST_SQUARE), zero)))
    guess = make("round", near)
    safe = make("floor", make("mul", near, constant(margin)))
    one = constant(1)
    if outside:  # |x| <= guess if (guess + 1)**2 > limit
        above = make("add", guess, one)
        root = make(
            "where", make("lt", limit, make("mul", above, above)), guess, make("add", safe, one)
        )
        root = make("where", make("lt", LARGEST_SQUARE, limit), UNREACHED, root)
    else:
        below = make("le", make("mul", guess, guess), limit)
        root = make("where", below, guess, make("max", make("sub", safe, one), zero))
    return make("where", make("lt", limit, zero), constant(-1), root)
