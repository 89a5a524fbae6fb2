"""Constructors that simplify: the analysis builds its scalar expressions with these."""

from __future__ import annotations

from functools import reduce

from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW
from attndsl.analysis.linear import (
    ZERO,
    Linear,
    Term,
    form_range,
    linear,
    quotient,
    remainder,
    written,
)
from attndsl.ir.nodes import FALSE, TRUE, Node, constant, make, rebuild, with_args

LOWEST = constant(EVERYTHING_LOW)  # stands for "no limit" at the lower end
HIGHEST = constant(EVERYTHING_HIGH)
ZERO_NODE = constant(0)
WIDE = 2**40  # sums of positions and scalars stay below it
HUGE = 2**62  # and sums of their squares below this


def add(x: Node, y: Node) -> Node:
    return written(linear(x) + linear(y))


def sub(x: Node, y: Node) -> Node:
    return written(linear(x) - linear(y))


def mul(x: Node, y: Node) -> Node:
    return written(linear(make("mul", x, y)))


def floordiv(x: Node, y: Node) -> Node:
    return written(quotient(linear(x), linear(y)))


def floormod(x: Node, y: Node) -> Node:
    return written(remainder(linear(x), linear(y)))


def negation(p: Node) -> Node:
    """not p. Comparisons of ints turn round; those of floats do not (NaN)."""
    if p.op == "const":
        return FALSE if p.value else TRUE
    if p.op == "not":
        return p.args[0]
    if p.op in ("le", "lt") and p.args[0].kind == "int":
        return make("lt" if p.op == "le" else "le", p.args[1], p.args[0])
    if p.op in ("eq", "ne"):
        return make("ne" if p.op == "eq" else "eq", *p.args)
    return make("not", p)


def both(*parts: Node) -> Node:
    """The conjunction."""
    return _joined("and", parts, TRUE, FALSE)


def either(*parts: Node) -> Node:
    """The disjunction."""
    return _joined("or", parts, FALSE, TRUE)


def _joined(op: str, parts: tuple[Node, ...], neutral: Node, absorbing: Node) -> Node:
    kept: dict[Node, Node] = {}  # part -> its negation
    for part in parts:
        if part is absorbing:
            return absorbing
        if part is not neutral and part not in kept:
            kept[part] = negation(part)
    if any(opposite in kept for opposite in kept.values()):
        return absorbing
    return reduce(lambda a, b: make(op, a, b), kept) if kept else neutral


def at_most(x: Node, y: Node) -> Node:
    """x <= y for ints, terms collected and cancelled."""
    return not_positive(linear(x) - linear(y))


def less(x: Node, y: Node) -> Node:
    """x < y for ints."""
    return not_positive((linear(x) - linear(y)).plus(1))


def equal(x: Node, y: Node) -> Node:
    """x == y for ints."""
    form = linear(x) - linear(y)
    low, high = form_range(form)
    if low > 0 or high < 0:
        return FALSE
    if low == high == 0:
        return TRUE
    left, right = _sides(form)
    return make("eq", written(left), written(right))


def not_positive(form: Linear) -> Node:
    """form <= 0, decided where it can be."""
    low, high = form_range(form)
    if high <= 0:
        return TRUE
    if low > 0:
        return FALSE
    if form.constant == 1:  # x + 1 <= y
        return make("lt", *map(written, _sides(form.plus(-1))))
    return make("le", *map(written, _sides(form)))


def _sides(form: Linear) -> tuple[Linear, Linear]:
    """left and right with left - right = form, both without a minus where that is possible.

    Wide values (entries of int64 tables) stand alone on a side, so that one that holds the largest
    int64 to say "no limit" overflows nowhere.
    """
    wide = tuple(term for term in form.terms if is_wide(term, HUGE))
    wide = wide or tuple(term for term in form.terms if is_wide(term))
    if wide:
        rest = Linear(tuple(term for term in form.terms if term not in wide), form.constant)
        if rest == ZERO and len(wide) == 2 and wide[0].factor * wide[1].factor < 0:
            larger, smaller = wide if wide[0].factor > 0 else wide[::-1]
            return Linear((larger,)), -Linear((smaller,))
        return (rest, -Linear(wide)) if wide[0].factor < 0 else (Linear(wide), -rest)
    left = Linear(tuple(term for term in form.terms if term.factor > 0))
    right = -Linear(tuple(term for term in form.terms if term.factor < 0))
    if form.constant > 0 and right.terms:
        return left.plus(form.constant), right
    return left, right.plus(-form.constant)


def has_sides(form: Linear) -> bool:
    """Whether `form <= 0` can be written without sums that leave 64 bits."""
    huge = [term for term in form.terms if is_wide(term, HUGE)]
    if len(huge) > 1:
        return len(form.terms) == 2 and not form.constant and huge[0].factor * huge[1].factor < 0
    rest = (form_range(Linear((term,))) for term in form.terms if term not in huge)
    return sum(max(map(abs, ends)) for ends in rest) + abs(form.constant) < 2**63


def is_wide(term: Term, most: int = WIDE) -> bool:
    """Whether a term may be so large that adding positions to it (with HUGE: squares of positions)
    overflows."""
    low, high = form_range(Linear((term,)))
    return max(abs(low), abs(high)) > most


def where(c: Node, x: Node, y: Node) -> Node:
    if c.op == "const":
        return x if c.value else y
    if x is y:
        return x
    if c.op == "not":
        return where(c.args[0], y, x)
    if x.op == "where" and x.args[0] is c:
        return where(c, x.args[1], y)
    if y.op == "where" and y.args[0] is c:
        return where(c, x, y.args[2])
    if x.kind == "bool":
        if x is TRUE or x is c:
            return either(c, y)
        if y is FALSE or y is c:
            return both(c, x)
        if x is FALSE:
            return both(negation(c), y)
        if y is TRUE:
            return either(negation(c), x)
    return make("where", c, x, y)


def given(known: Node, opposite: Node, root: Node) -> Node:
    """The root where `known` holds: conditionals on it or on its opposite are decided.

    >>> from attndsl.ir.nodes import bound, scalar
    >>> c = scalar("flag", "bool")
    >>> given(c, negation(c), make("neg", make("where", c, bound("lo"), bound("hi"))))
    neg(bound('lo'))
    """

    def decide(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "where" and args[0] in (known, opposite):
            return args[1] if args[0] is known else args[2]
        return with_args(node, args)

    return rebuild(root, decide)


def least(x: Node, y: Node) -> Node:
    """min(x, y) of ints; the ends of everything are neutral or absorb."""
    return _extreme("min", x, y, neutral=HIGHEST, absorbing=LOWEST)


def greatest(x: Node, y: Node) -> Node:
    """max(x, y) of ints; the ends of everything are neutral or absorb."""
    return _extreme("max", x, y, neutral=LOWEST, absorbing=HIGHEST)


def _extreme(op: str, x: Node, y: Node, neutral: Node, absorbing: Node) -> Node:
    if x is y or y is neutral or x is absorbing:
        return x
    if x is neutral or y is absorbing:
        return y
    low, high = form_range(linear(x) - linear(y))
    if high <= 0 or low >= 0:
        return x if (high <= 0) == (op == "min") else y
    for first, second in ((x, y), (y, x)):
        if first.op == "where":  # a limit that applies under a condition only
            c, then, other = first.args
            if then in (neutral, absorbing) or other in (neutral, absorbing):
                return where(
                    c,
                    _extreme(op, then, second, neutral, absorbing),
                    _extreme(op, other, second, neutral, absorbing),
                )
        if first.op == op and second in first.args:
            return first
        if first.op in ("min", "max") and first.op != op and second in first.args:
            return second  # max(min(x, y), y) = y
    return make(op, x, y)
