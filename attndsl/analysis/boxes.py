"""Symbolic interval arithmetic over a rectangle of positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType

from attndsl.analysis import build, predicates
from attndsl.analysis.counted import NO_TABLES, Tables
from attndsl.analysis.floats import float_value, is_finite
from attndsl.analysis.intervals import Ranges, may_wrap, may_wrap_usually
from attndsl.analysis.linear import Linear, Term, form_range, linear, written
from attndsl.analysis.predicates import (
    All,
    Any,
    Choice,
    Fixed,
    Literal,
    Opaque,
    Predicate,
    is_fixed,
)
from attndsl.analysis.values import MAYBE, UNKNOWN, UNKNOWN_FLOAT, Truth, Value
from attndsl.ir.nodes import FALSE, TRUE, Node, constant, make, topological

Ends = tuple[Node | None, Node | None]
# What is known of a lookup that varies with q or k over a box: its values, of a bool its truth.
Summary = Callable[[Node], Value | Truth | None]
NOTHING: frozenset[Node] = frozenset()
NO_COORDINATES: Mapping[str, Ends] = MappingProxyType({})


def no_summary(node: Node) -> Value | Truth | None:
    """Nothing is known of any lookup."""
    return None


class Box:
    """A rectangle: q in [q_ends], k in [k_ends], both inclusive; b and h are fixed.

    An end None has no limit. Of the nodes in `unknown` nothing is claimed. `coordinates` has the
    ends of index nodes such as "q.y" (`grids.py`), `tables` those that are counted. Values and
    truths are found once for each node.
    """

    def __init__(
        self,
        q_ends: Ends,
        k_ends: Ends,
        summary: Summary = no_summary,
        unknown: frozenset[Node] = NOTHING,
        coordinates: Mapping[str, Ends] = NO_COORDINATES,
        tables: Tables = NO_TABLES,
    ) -> None:
        self.ends = {"q": q_ends, "k": k_ends, **coordinates}
        self.summary, self.unknown, self.tables = summary, unknown, tables
        self.ranges = Ranges()
        self._values: dict[Node, Value] = {}
        self._truths: dict[int, tuple[Predicate, Truth]] = {}

    # Values

    def value(self, root: Node) -> Value:
        """The interval of an int or float node."""
        if root not in self._values:
            for node in topological(root):
                if node.kind != "bool" and node not in self._values:
                    self._values[node] = self._value(node)
        return self._values[root]

    def _value(self, node: Node) -> Value:
        if node in self.unknown:
            return UNKNOWN_FLOAT if node.kind == "float" else UNKNOWN
        if node.kind == "float":
            return self._float(node)
        if is_fixed(node):
            return Value(node, node)
        form = linear(node)
        if len(form.terms) == 1 and form.terms[0] == Term((node,), 1) and not form.constant:
            return self._atom(node)
        return self.form(form)

    def form(self, form: Linear) -> Value:
        """The interval of a linear form: each varying atom once, with all that multiplies it."""
        groups: dict[Node, list[Term]] = {}
        fixed: list[Term] = []
        for term in form.terms:
            varying = [atom for atom in term.atoms if not is_fixed(atom)]
            if len(varying) > 1:
                return UNKNOWN
            if varying:
                groups.setdefault(varying[0], []).append(term)
            else:
                fixed.append(term)
        lows: list[Node | None] = [written(Linear(tuple(fixed), form.constant))]
        highs = list(lows)
        sounds: list[Node] = []
        for atom, terms in groups.items():
            value = scaled(self.value(atom), cofactor(terms, atom))
            lows.append(value.lo)
            highs.append(value.hi)
            sounds.append(value.sound)
        return Value(_sum(lows), _sum(highs), build.both(*sounds))

    def _atom(self, node: Node) -> Value:
        op, args = node.op, node.args
        if op == "index":
            return Value(*self.ends[node.name])
        if op == "lookup":
            return self._summarised(node, UNKNOWN)
        if op == "where":
            return self._where(args[0], self.value(args[1]), self.value(args[2]))
        if op == "bool_to_int":
            truth = self.truth(predicates.normal_form(args[0]))
            one, zero = constant(1), constant(0)
            return Value(
                build.where(truth.certain, one, zero), build.where(truth.possible, one, zero)
            )
        if op in ("floor", "ceil", "round", "trunc"):
            x = self.value(args[0])
            lo, hi = (None if end is None else make(op, end) for end in (x.lo, x.hi))
            return Value(lo, hi, is_finite(args[0], x, self.ranges))
        x = self.value(args[0]) if args else UNKNOWN
        if op == "abs":
            return _absolute(x)
        if op == "mul":
            return _square(x) if args[0] is args[1] else _product(x, self.value(args[1]))
        if op in ("min", "max"):
            return _extreme(op, x, self.value(args[1]))
        if op == "floordiv":
            return _quotient(x, self.value(args[1]))
        if op == "floormod":
            return _remainder(x, args[1]) if is_fixed(args[1]) else UNKNOWN
        return UNKNOWN

    def _where(self, condition: Node, x: Value, y: Value) -> Value:
        """`x if condition else y`, whichever of them pairs may take."""
        truth = self.truth(predicates.normal_form(condition))
        if truth.possible is truth.certain:
            c = truth.certain

            def end(a: Node | None, b: Node | None, extreme: str) -> Node | None:
                return None if a is None or b is None else build.where(c, a, b)
        else:

            def end(a: Node | None, b: Node | None, extreme: str) -> Node | None:
                if a is None or b is None:
                    return None
                mixed = _least_or_greatest(extreme, a, b)
                return build.where(truth.certain, a, build.where(truth.possible, mixed, b))

        return Value(end(x.lo, y.lo, "min"), end(x.hi, y.hi, "max"), build.both(x.sound, y.sound))

    def _float(self, node: Node) -> Value:
        if node.op in ("const", "scalar"):
            is_nan = node.op == "const" and node.value != node.value
            return Value(node, node, FALSE if is_nan else TRUE)
        if node.op == "where":
            return self._where(node.args[0], self.value(node.args[1]), self.value(node.args[2]))
        if node.op in ("lookup", "dot"):
            if is_fixed(node):
                return Value(node, node, make("eq", node, node))  # NaN differs from itself
            return self._summarised(node, UNKNOWN_FLOAT)
        if not node.args:
            return UNKNOWN_FLOAT
        return float_value(node, self.value, self.ranges)

    def _summarised(self, node: Node, otherwise: Value) -> Value:
        found = self.summary(node)
        return found if isinstance(found, Value) else otherwise

    # Truths

    def truth(self, part: Predicate) -> Truth:
        """Whether a predicate may hold, and surely holds."""
        stored = self._truths.get(id(part))
        if stored is None:  # the predicate is kept, so that its id stays its own
            stored = self._truths[id(part)] = (part, self._truth(part))
        return stored[1]

    def _truth(self, part: Predicate) -> Truth:
        if isinstance(part, Fixed):
            return Truth(part.node, part.node)
        if isinstance(part, Literal):
            return self._literal(part.form)
        if isinstance(part, Opaque):
            found = self._opaque(part.node)
            if not part.negated:
                return found
            return Truth(build.negation(found.certain), build.negation(found.possible))
        if isinstance(part, (All, Any)):
            join = build.both if isinstance(part, All) else build.either
            truths = [self.truth(p) for p in part.parts]
            found = Truth(join(*(t.possible for t in truths)), join(*(t.certain for t in truths)))
            if part.whole is None:
                return found
            whole = self._literal(part.whole)
            return Truth(
                build.both(found.possible, whole.possible),
                build.either(found.certain, whole.certain),
            )
        return self._choice(part)

    def _choice(self, part: Choice) -> Truth:
        condition, otherwise = self.truth(part.condition), self.truth(part.otherwise)
        then, other = self.truth(part.then), self.truth(part.other)
        if condition.possible is condition.certain:
            c = condition.certain
            return Truth(
                build.where(c, then.possible, other.possible),
                build.where(c, then.certain, other.certain),
            )
        both, either = build.both, build.either
        return Truth(
            either(
                both(condition.possible, then.possible), both(otherwise.possible, other.possible)
            ),
            either(
                both(then.certain, other.certain),
                both(condition.certain, then.certain),
                both(otherwise.certain, other.certain),
            ),
        )

    def _literal(self, form: Linear) -> Truth:
        value = self.form(form)
        possible, certain = TRUE, FALSE
        if value.lo is not None:
            possible = build.either(
                build.negation(value.sound), build.not_positive(linear(value.lo))
            )
        if value.hi is not None:
            certain = build.both(value.sound, build.not_positive(linear(value.hi)))
        return Truth(possible, certain)

    def _opaque(self, node: Node) -> Truth:
        """A comparison of floats, or a summarised table; anything else is unknown."""
        if node in self.unknown:
            return MAYBE
        if node.op == "lookup":
            if node.name in self.tables:
                return self._rectangle(node)
            found = self.summary(node)
            return found if isinstance(found, Truth) else MAYBE
        if node.op not in ("lt", "le", "eq", "ne") or node.args[0].kind != "float":
            return MAYBE
        if may_wrap(node):
            return MAYBE
        x, y = (self.value(arg) for arg in node.args)
        if node.op in ("lt", "le"):
            return _ordered(node.op, x, y)
        above, below = _ordered("le", x, y), _ordered("le", y, x)
        meet = build.both(above.possible, below.possible)
        if node.op == "eq":
            return Truth(meet, FALSE)
        return Truth(TRUE, build.negation(meet))

    def _rectangle(self, node: Node) -> Truth:
        """A counted table, by the indices that the box has of blocks."""
        *outer, row, column = node.args
        if not all(map(is_fixed, outer)):
            return MAYBE
        return self.tables[node.name].truth(outer, self._indices(row), self._indices(column))

    def _indices(self, index: Node) -> Value:
        """The interval of an index, where neither it nor an end leaves 64 bits."""
        value = self.value(index)
        computed = [node for node in (index, value.lo, value.hi) if node is not None]
        if any(map(may_wrap_usually, computed)):
            return UNKNOWN
        if not any(map(may_wrap, computed)):
            return value
        fits, _ = predicates.entries_fit(index)
        return Value(value.lo, value.hi, build.both(value.sound, self.truth(fits).certain))


def _ordered(op: str, x: Value, y: Value) -> Truth:
    """x < y or x <= y for floats; written so that a NaN among the ends leaves it open."""
    opposite = "le" if op == "lt" else "lt"
    sound = build.both(x.sound, y.sound)
    possible, certain = TRUE, FALSE
    if x.lo is not None and y.hi is not None:
        never = build.both(sound, make(opposite, y.hi, x.lo))
        possible = build.negation(never)
    if x.hi is not None and y.lo is not None:
        certain = build.both(sound, make(op, x.hi, y.lo))
    return Truth(possible, certain)


def cofactor(terms: list[Term], atom: Node) -> Linear:
    """What multiplies an atom in the terms that contain it (each of them once)."""
    total = Linear()
    for term in terms:
        rest = list(term.atoms)
        rest.remove(atom)
        total += Linear((Term(tuple(rest), term.factor),)) if rest else Linear((), term.factor)
    return total


def scaled(value: Value, factor: Linear) -> Value:
    """The interval times a fixed factor of any sign."""
    if factor.is_constant:
        c = factor.constant
        ends = [None if e is None else written(linear(e).times(c)) for e in (value.lo, value.hi)]
        return (
            Value(ends[0], ends[1], value.sound) if c > 0 else Value(ends[1], ends[0], value.sound)
        )
    low, high = form_range(factor)
    node = written(factor)
    if low >= 0 or high <= 0:
        ends = [None if e is None else build.mul(node, e) for e in (value.lo, value.hi)]
        return (
            Value(ends[0], ends[1], value.sound)
            if low >= 0
            else Value(ends[1], ends[0], value.sound)
        )
    return _product(value, Value(node, node))


def _sum(ends: list[Node | None]) -> Node | None:
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return None
    return written(reduce(lambda a, b: a + b, (linear(end) for end in known)))


def _least_or_greatest(op: str, x: Node, y: Node) -> Node:
    if x.kind == "float":
        return x if x is y else make(op, x, y)
    return plain_extreme(op, x, y)


def plain_extreme(op: str, x: Node, y: Node) -> Node:
    """min or max of ints; all numbers are just numbers here, none stands for no limit."""
    low, high = form_range(linear(x) - linear(y))
    if high <= 0 or low >= 0:
        return x if (high <= 0) == (op == "min") else y
    return make(op, x, y)


def _extreme(op: str, x: Value, y: Value) -> Value:
    """min or max. A side without a limit leaves that of the other where the op allows it."""

    def end(a: Node | None, b: Node | None, one_is_enough: bool) -> Node | None:
        if a is not None and b is not None:
            return plain_extreme(op, a, b)
        return (a or b) if one_is_enough else None

    return Value(
        end(x.lo, y.lo, op == "max"), end(x.hi, y.hi, op == "min"), build.both(x.sound, y.sound)
    )


def _absolute(x: Value) -> Value:
    zero = constant(0)
    low = zero
    if x.lo is not None:
        low = plain_extreme("max", low, x.lo)
    if x.hi is not None:
        low = plain_extreme("max", low, build.sub(zero, x.hi))
    if x.lo is None or x.hi is None:
        return Value(low, None, x.sound)
    return Value(low, plain_extreme("max", x.hi, build.sub(zero, x.lo)), x.sound)


def _square(x: Value) -> Value:
    size = _absolute(x)
    assert size.lo is not None
    high = None if size.hi is None else build.mul(size.hi, size.hi)
    return Value(build.mul(size.lo, size.lo), high, x.sound)


def _product(x: Value, y: Value) -> Value:
    sound = build.both(x.sound, y.sound)
    if x.lo is None or x.hi is None or y.lo is None or y.hi is None:
        return Value(None, None, sound)
    corners = dict.fromkeys(build.mul(a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi))
    return Value(
        reduce(lambda a, b: plain_extreme("min", a, b), corners),
        reduce(lambda a, b: plain_extreme("max", a, b), corners),
        sound,
    )


def _quotient(x: Value, y: Value) -> Value:
    """x // y. It rises with x for y > 0, falls for y < 0 and is 0 for y = 0."""
    if y.lo is None or y.hi is None:
        return UNKNOWN
    sound = build.both(x.sound, y.sound)
    if y.lo is not y.hi:  # a divisor that varies: claimed for positive ones only
        if x.lo is None or x.hi is None:
            return UNKNOWN
        sound = build.both(sound, build.less(constant(0), y.lo))
        corners = dict.fromkeys(build.floordiv(a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi))
        return Value(
            reduce(lambda a, b: plain_extreme("min", a, b), corners),
            reduce(lambda a, b: plain_extreme("max", a, b), corners),
            sound,
        )
    divisor = y.lo
    rises = build.less(constant(0), divisor)
    if rises.op == "const":
        first, last = (x.lo, x.hi) if rises.value else (x.hi, x.lo)
    elif x.lo is None or x.hi is None:
        return UNKNOWN
    else:
        first, last = build.where(rises, x.lo, x.hi), build.where(rises, x.hi, x.lo)
    lo = None if first is None else build.floordiv(first, divisor)
    hi = None if last is None else build.floordiv(last, divisor)
    return Value(lo, hi, sound)


def _remainder(x: Value, divisor: Node) -> Value:
    """x % m: exact where the interval lies within one period, else anything that m allows."""
    zero = constant(0)
    least = plain_extreme("min", build.add(divisor, constant(1)), zero)
    most = plain_extreme("max", build.sub(divisor, constant(1)), zero)
    if x.lo is None or x.hi is None:
        return Value(least, most)  # whatever x is
    same = build.equal(build.floordiv(x.lo, divisor), build.floordiv(x.hi, divisor))
    same = build.both(x.sound, same)
    return Value(
        build.where(same, build.floormod(x.lo, divisor), least),
        build.where(same, build.floormod(x.hi, divisor), most),
    )
