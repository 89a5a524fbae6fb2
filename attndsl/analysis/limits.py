"""A comparison of ints as a limit of one index: signs, slopes, the index brought to stand alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from attndsl.analysis import build
from attndsl.analysis.boxes import cofactor
from attndsl.analysis.intervals import TRANSFER, Range, range_of
from attndsl.analysis.linear import Linear, Term, form_range, linear, number, quotient, written
from attndsl.analysis.predicates import is_fixed
from attndsl.ir.nodes import Node, constant, index, make, substitute, topological

LARGEST = 2**63 - 2**40  # sums that the analysis makes stay below it
SMALL = 2**20  # divisors and multipliers whose products may else pass it are taken as no larger
ENTRY = 2**31  # as are entries of tables
OTHER = {"q": "k", "k": "q"}
Key = frozenset[tuple[tuple[int, ...], int]]


class Signs:
    """Signs of values that vary neither with q nor with k.

    Divisors and multipliers whose sign the call leaves open are taken as positive: what is found
    holds where `guard` does.
    """

    def __init__(self) -> None:
        self.assumed: dict[Node, None] = {}
        self.small: dict[Node, int] = {}  # and what its absolute value is taken to be at most
        self.given: dict[Node, None] = {}  # conditions
        self._slopes: dict[tuple[Node, str], int | None] = {}

    def guard(self) -> Node:
        """Whether all that was taken as positive is, and what was taken as small or as given."""
        return build.both(
            *self.given,
            *(build.less(build.ZERO_NODE, node) for node in self.assumed),
            *(build.at_most(node, constant(most)) for node, most in self.small.items()),
            *(
                build.at_most(constant(-most), node)
                for node, most in self.small.items()
                if node not in self.assumed
            ),
        )

    def of(self, form: Linear) -> int | None:
        """1 or -1 where the sign is known."""
        if self.greatest(-form) < 0 or (form.terms and written(form) in self.assumed):
            return 1
        return -1 if self.greatest(form) < 0 else None

    def assume(self, form: Linear) -> int:
        """The sign, from here on: the form (or its negative, if it begins so) is positive."""
        sign = self.of(form)
        if sign is None:
            sign = 1 if form.terms[0].factor > 0 else -1
            self.assumed[written(form.times(sign))] = None
        return sign

    def greatest(self, form: Linear) -> float:
        """A value that the form does not pass, under the assumptions."""
        total: float = form.constant
        for term in form.terms:
            product: Range = (term.factor, term.factor)
            for node in term.atoms:
                ends = range_of(node)
                if node in self.assumed:
                    ends = (max(1, ends[0]), ends[1])
                product = TRANSFER["mul"](product, ends)
            total += product[1]
        return min(total, form_range(form)[1])

    def is_at_most(self, x: Linear, y: Linear) -> bool:
        return self.greatest(x - y) <= 0

    def fits(self, form: Linear) -> bool:
        """Whether the terms of a form stay within 64 bits, from here on."""
        if self._magnitude(form) < LARGEST:
            return True
        before = self.small
        ints = [n for n in topological(*form.atoms()) if n.kind == "int" and is_fixed(n)]
        for op, most in (("lookup", ENTRY), ("scalar", SMALL)):
            self.small = self.small | dict.fromkeys((n for n in ints if n.op == op), most)
            if self._magnitude(form) < LARGEST:
                return True
        self.small = before
        return False

    def _magnitude(self, form: Linear) -> float:
        """What the absolute values of the terms add up to at most."""
        sizes = (abs(term.factor) * self._size(term.atoms) for term in form.terms)
        return sum(sizes, abs(form.constant))

    def _size(self, atoms: tuple[Node, ...]) -> float:
        """The largest absolute value of a product: m * (x // m) is no larger than x and m
        together."""
        for atom in atoms:
            if atom.op == "floordiv" and atom.args[1] in atoms:
                rest = list(atoms)
                rest.remove(atom)
                divided = linear(atom.args[0])
                total = self._size(tuple(rest))
                rest.remove(atom.args[1])
                for term in divided.terms:
                    total += abs(term.factor) * self._size((*rest, *term.atoms))
                return total + abs(divided.constant) * self._size(tuple(rest))
        size = 1.0
        for atom in atoms:
            size *= self._extent(atom)
        return size

    def _extent(self, node: Node) -> float:
        if node in self.small:
            return self.small[node]
        most = max(map(abs, range_of(node)))
        if node.op == "floordiv" and self.of(linear(node.args[1])) == 1:
            return min(most, self._magnitude(linear(node.args[0])))
        return most

    def slope(self, node: Node, axis: str) -> int | None:
        """1 where the value never falls with the index, -1 where it never rises, 0 where it does
        not depend on it; None: unknown."""
        if axis not in node.varies:
            return 0
        if (node, axis) not in self._slopes:
            self._slopes[node, axis] = self._slope(node, axis)
        return self._slopes[node, axis]

    def _slope(self, node: Node, axis: str) -> int | None:
        op, args = node.op, node.args
        if op == "index":
            return 1
        if op in ("add", "sub", "neg", "mul"):
            form = linear(node)
            if form.terms != (Term((node,), 1),):
                return self.form_slope(form, axis)
            for one, other in (args, args[::-1]) if op == "mul" else ():
                if is_fixed(one):
                    return _times(self.of(linear(one)), self.slope(other, axis))
        if op == "floordiv" and is_fixed(args[1]):
            return _times(self.assume(linear(args[1])), self.slope(args[0], axis))
        if op in ("min", "max") or (op == "where" and is_fixed(args[0])):
            return _joined(self.slope(arg, axis) for arg in args[-2:])
        return None

    def form_slope(self, form: Linear, axis: str) -> int | None:
        slopes: list[int | None] = []
        for atom, terms in atoms_of(form, axis).items():
            if atom is None:
                return None
            slope = self.slope(atom, axis)  # first, for it may take a divisor as positive
            factor = cofactor(terms, atom)
            slopes.append(None if factor.varies else _times(self.of(factor), slope))
        return _joined(slopes)


def _times(x: int | None, y: int | None) -> int | None:
    return None if x is None or y is None else x * y


def _joined(slopes: Iterable[int | None]) -> int | None:
    found = {slope for slope in slopes if slope != 0}
    if not found:
        return 0
    return found.pop() if len(found) == 1 else None


def atoms_of(form: Linear, axis: str) -> dict[Node | None, list[Term]]:
    """The terms that vary with an index, by their atom that does; None: terms with several."""
    found: dict[Node | None, list[Term]] = {}
    for term in form.terms:
        varying = [atom for atom in term.atoms if axis in atom.varies]
        if varying:
            found.setdefault(varying[0] if len(varying) == 1 else None, []).append(term)
    return found


@dataclass(frozen=True)
class Limit:
    """`factor * axis + rest <= 0`: an upper limit of an index if the factor's sign is 1, a lower
    one if it is -1. The rest does not vary with the index.

    slope   of the rest, with the other index
    source  the comparison of the mask that it came from
    origin  a form that is not positive where this one is not, with quotients not yet multiplied out
    """

    axis: str
    sign: int
    key: Key  # of the whole form: equal limits have equal keys
    factor: Linear = field(compare=False)
    rest: Linear = field(compare=False)
    slope: int | None = field(compare=False)
    source: Node | None = field(compare=False)
    origin: Linear = field(compare=False)

    @cached_property
    def form(self) -> Linear:
        return self.factor.multiplied(linear(index(self.axis))) + self.rest

    def side(self, axis: str) -> int | None:
        """1 where it holds for all smaller positions of an index too, whatever the other one is; -1
        where for all greater ones; 0 where it does not vary with the index; None: unknown."""
        return self.sign if axis == self.axis else self.slope

    @cached_property
    def direction(self) -> tuple[str, Key]:
        """What is limited: the varying terms, with the sign of an upper limit."""
        form = self.form.times(self.sign)
        return self.axis, frozenset((t.key, t.factor) for t in form.terms if t.varies)

    @cached_property
    def bound(self) -> Linear:
        """The limit of what the direction stands for."""
        fixed = tuple(term for term in self.rest.terms if not term.varies)
        return Linear(fixed, self.rest.constant).times(-self.sign)


def limit_of(
    form: Linear, axis: str, signs: Signs, source: Node | None = None, origin: Linear | None = None
) -> Limit | None:
    """The form as a limit, where the index stands alone in it."""
    groups = atoms_of(form, axis)
    atom = index(axis)
    if list(groups) != [atom]:
        return None
    factor = cofactor(groups[atom], atom)
    if factor.varies:
        return None
    sign = signs.assume(factor)
    rest = without(form, groups[atom])
    key = frozenset([*((t.key, t.factor) for t in form.terms), ((), form.constant)])
    slope = signs.form_slope(rest, OTHER[axis])
    return Limit(axis, sign, key, factor, rest, slope, source, form if origin is None else origin)


def without(form: Linear, terms: list[Term]) -> Linear:
    return Linear(tuple(t for t in form.terms if t not in terms), form.constant)


def undivided(form: Linear, axis: str, signs: Signs) -> Linear | None:
    """`form <= 0` with the quotient multiplied out that alone varies with the index; equal to it.

    x // m <= c holds where x <= m * c + m - 1 does, and x // m >= c where x >= m * c, for m > 0.
    """
    groups = atoms_of(form, axis)
    atom = next(iter(groups), None)
    if len(groups) != 1 or atom is None or atom.op != "floordiv" or not is_fixed(atom.args[1]):
        return None
    factor = cofactor(groups[atom], atom)
    if factor.varies:
        return None
    x, divisor = linear(atom.args[0]), linear(atom.args[1])
    sign = signs.assume(factor)
    scale = signs.assume(divisor)
    if scale < 0:
        x, divisor = -x, -divisor
    limit = -tamed(without(form, groups[atom]), Linear(tuple(groups[atom])))
    limit = divided(limit, factor.times(sign))  # of sign * (x // m), rounded down
    whole = linear(make("mul", written(divisor), written(limit)))
    result = x - whole - divisor.plus(-1) if sign > 0 else -whole - x
    return result if signs.fits(result) else None


def is_usual(form: Linear) -> bool:
    """Whether a form is not positive where all values in it are at least 1."""
    total = form.constant + sum(term.factor for term in form.terms)
    return total <= 0 and all(term.factor < 0 for term in form.terms)


def divided(x: Linear, divisor: Linear) -> Linear:
    """x // divisor, for a divisor that is positive: its multiples leave, as (a * m + r) // m is
    a + r // m."""
    if divisor.is_constant or len(divisor.terms) > 1 or divisor.constant:
        return quotient(x, divisor)
    whole = divisor.terms[0]
    for term in x.terms:
        if term.key == whole.key and term.factor % whole.factor == 0:
            return quotient(x.without(term), divisor).plus(term.factor // whole.factor)
    return quotient(x, divisor)


def isolated(form: Linear, axis: str, signs: Signs) -> Limit | None:
    """A limit of the index that says the same as `form <= 0`; None where there is no single one."""
    found: Linear | None = form
    while found is not None:
        limit = limit_of(found, axis, signs)
        if limit is not None:
            return limit
        found = undivided(found, axis, signs)
    return None


def eliminated(below: Limit, above: Limit, axis: str, signs: Signs) -> Linear | None:
    """A form that is not positive where some position of an index meets both limits, of which one
    holds for large positions of it and the other for small ones; None: not found."""
    for one, other in ((below.origin, above.origin), (below.form, above.form)):
        parts = [_apart(form, axis) for form in (one, other)]
        if parts[0] is not None and parts[1] is not None:
            (atom, low, rest), (same, high, remainder) = parts[0], parts[1]
            if atom is same and _takes_each_int(atom, axis, signs):
                return _gap((low, rest), (high, remainder), signs)
    ends = [isolated(limit.form, axis, signs) for limit in (below, above)]
    if ends[0] is None or ends[1] is None:
        return None
    return _gap((ends[0].factor, ends[0].rest), (ends[1].factor, ends[1].rest), signs)


def _apart(form: Linear, axis: str) -> tuple[Node, Linear, Linear] | None:
    """The one value in a form that varies with an index, its factor and the rest."""
    groups = atoms_of(form, axis)
    atom = next(iter(groups), None)
    if len(groups) != 1 or atom is None or cofactor(groups[atom], atom).varies:
        return None
    return atom, cofactor(groups[atom], atom), without(form, groups[atom])


def _gap(below: tuple[Linear, Linear], above: tuple[Linear, Linear], signs: Signs) -> Linear | None:
    """From factor * x + rest <= 0 twice, with a negative and a positive factor of an x that takes
    each int: where one factor is 1, x exists if this form is not positive."""
    (low, rest), (high, remainder) = below, above
    if (signs.of(low), signs.of(high)) != (-1, 1) or number(1) not in (-low, high):
        return None  # between multiples there may be no whole number
    return rest.multiplied(high) + remainder.multiplied(-low)


def _takes_each_int(node: Node, axis: str, signs: Signs) -> bool:
    """Whether a value goes from one int to the next, as positions rise."""
    while node.op == "floordiv" and is_fixed(node.args[1]):
        part = _apart(linear(node.args[0]), axis)
        if part is None or part[2].varies or part[1] not in (number(1), number(-1)):
            return False
        if signs.of(linear(node.args[1])) is None:
            return False
        node = part[0]
    return node is index(axis)


def tamed(rest: Linear, moving: Linear) -> Linear:
    """The rest of `moving + rest <= 0` with a lone wide value in it (an int64 entry of a table,
    such as the largest int64 for "no limit") cut to what the others can reach: it says the same,
    and nothing added to it overflows."""
    wide = [term for term in rest.terms if build.is_wide(term)]
    if len(wide) != 1 or len(wide[0].atoms) != 1 or abs(wide[0].factor) > 2**20:
        return rest
    others = rest.without(wide[0])
    ends = (*form_range(others), *form_range(moving))
    reach = max(map(abs, ends[:2])) + max(map(abs, ends[2:])) + 1
    if reach > build.WIDE:
        return rest
    most, least = constant(int(reach)), constant(-int(reach))
    cut = make("max", make("min", wide[0].atoms[0], most), least)
    return others + linear(cut).times(wide[0].factor)


def end_of(limit: Limit, rest: Linear, is_final: bool, signs: Signs) -> Node | None:
    """The limit as an end of [first, end) with the least value of its rest: the position after the
    last one of an upper limit, the first one of a lower limit. With a final one nothing is
    computed: it may be an entry of a table of any size. None: it may leave 64 bits."""
    alone = Linear(tuple(t for t in rest.terms if build.is_wide(t)))
    standing = number(1) - rest if limit.sign > 0 else rest
    is_plain = is_final and limit.factor.times(limit.sign) == number(1)
    if is_plain and standing == alone.times(-limit.sign):
        return written(standing)
    moving = limit.factor.multiplied(linear(index(limit.axis)))
    rest = tamed(rest, moving)
    if not signs.fits(rest.plus(1)):
        return None
    most = divided(-rest, limit.factor.times(limit.sign))
    return written(most.plus(1) if limit.sign > 0 else -most)


def at_end(rest: Linear, axis: str, slope: int, first: Node, last: Node) -> Linear:
    """The least value of a form with that slope over first <= axis <= last."""
    if slope == 0:
        return rest
    return linear(substitute(written(rest), {index(axis): first if slope > 0 else last}))
