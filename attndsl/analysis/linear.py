"""Linear forms: the normal form of int arithmetic in which terms are collected and cancel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from attndsl.analysis.intervals import POSITION, TILE_SLACK, TRANSFER, Range, range_of
from attndsl.ir.nodes import Node, bound, constant, make, substitute, topological

PAIR_INDICES = frozenset(("q", "k"))
MOST_TERMS = 48  # a longer sum is left as it stands
MOST_PRODUCT_TERMS = 12  # a product with more terms is not multiplied out
_STORED = "_linear_form"  # a node carries its form: both die together


class Term(NamedTuple):
    """`factor` times the product of `atoms` (at least one)."""

    atoms: tuple[Node, ...]
    factor: int

    @property
    def key(self) -> tuple[int, ...]:
        if len(self.atoms) == 1:  # most are, and keys are asked for all the time
            return (id(self.atoms[0]),)
        return tuple(sorted(id(atom) for atom in self.atoms))

    @property
    def varies(self) -> bool:
        """Whether the term depends on q or k."""
        return any(not PAIR_INDICES.isdisjoint(atom.varies) for atom in self.atoms)


@dataclass(frozen=True)
class Linear:
    """The sum of the terms and the constant. No two terms have the same atoms, no factor is 0."""

    terms: tuple[Term, ...] = ()
    constant: int = 0

    def __add__(self, other: Linear) -> Linear:
        return collected((*self.terms, *other.terms), self.constant + other.constant)

    def __sub__(self, other: Linear) -> Linear:
        return self + other.times(-1)

    def __neg__(self) -> Linear:
        return self.times(-1)

    def plus(self, number: int) -> Linear:
        return Linear(self.terms, self.constant + number)

    def times(self, number: int) -> Linear:
        if number == 0:
            return ZERO
        terms = tuple(Term(atoms, factor * number) for atoms, factor in self.terms)
        return Linear(terms, self.constant * number)

    def multiplied(self, other: Linear) -> Linear:
        """The product, multiplied out."""
        terms = [
            Term((*a.atoms, *b.atoms), a.factor * b.factor) for a in self.terms for b in other.terms
        ]
        terms += [Term(a.atoms, a.factor * other.constant) for a in self.terms if other.constant]
        terms += [Term(b.atoms, b.factor * self.constant) for b in other.terms if self.constant]
        return collected(terms, self.constant * other.constant)

    @property
    def is_constant(self) -> bool:
        return not self.terms

    @property
    def varies(self) -> bool:
        return any(term.varies for term in self.terms)

    def atoms(self) -> Iterator[Node]:
        for term in self.terms:
            yield from term.atoms

    def without(self, term: Term) -> Linear:
        return Linear(tuple(t for t in self.terms if t is not term), self.constant)


ZERO = Linear()


def collected(terms: Iterable[Term], number: int) -> Linear:
    """Terms with the same atoms added up."""
    found: dict[tuple[int, ...], Term] = {}
    for term in terms:
        key = term.key
        before = found.get(key)
        found[key] = term if before is None else Term(before.atoms, before.factor + term.factor)
    return Linear(tuple(term for term in found.values() if term.factor), number)


def atom(node: Node) -> Linear:
    return Linear((Term((node,), 1),))


def number(value: int) -> Linear:
    return Linear((), value)


def linear(root: Node) -> Linear:
    """The linear form of an int node.

    Exact for all ints: `q - q % 4` becomes `4 * (q // 4)`, `(4 * q + 5) // 4` becomes `q + 1`.

    >>> from attndsl.ir.nodes import index
    >>> q, k = index("q"), index("k")
    >>> written(linear(make("sub", make("add", q, k), make("sub", q, constant(1)))))
    add(index('k'), const(1))
    """
    stored = root.__dict__.get(_STORED)
    if isinstance(stored, Linear):
        return stored
    for node in topological(root):
        if node.kind == "int" and _STORED not in node.__dict__:
            node.__dict__[_STORED] = _linear(node)
    form = root.__dict__[_STORED]
    assert isinstance(form, Linear)
    return form


def _linear(node: Node) -> Linear:
    if node.op == "const":
        return number(int(node.value))
    forms = [linear(arg) for arg in node.args if arg.kind == "int"]
    if node.op == "neg":
        return -forms[0]
    if node.op in ("add", "sub"):
        form = forms[0] + (forms[1] if node.op == "add" else -forms[1])
        return tidied(form) if len(form.terms) <= MOST_TERMS else atom(node)
    if node.op == "mul":
        return _product(node, *forms)
    if node.op == "floordiv":
        return quotient(*forms)
    if node.op == "floormod":
        return remainder(*forms)
    return atom(node)


def _product(node: Node, x: Linear, y: Linear) -> Linear:
    if x.is_constant or y.is_constant:
        return x.multiplied(y)
    if x.varies and y.varies:  # kept whole: a square is tighter than its parts
        return atom(make("mul", written(x), written(y)))
    if len(x.terms) * len(y.terms) > MOST_PRODUCT_TERMS:
        return atom(node)
    if not x.varies and not y.varies and len(x.terms) > 1 and len(y.terms) > 1:
        return atom(make("mul", written(x), written(y)))
    return x.multiplied(y)


def quotient(x: Linear, y: Linear) -> Linear:
    """x // y. Multiples of a constant divisor leave: (m * a + r) // m = a + r // m."""
    if not y.is_constant:
        return number(0) if x == ZERO else atom(make("floordiv", written(x), written(y)))
    m = y.constant
    if m == 0 or x == ZERO:
        return ZERO
    if m < 0:
        if not _is_negatable(x):
            return atom(make("floordiv", written(x), written(y)))
        return quotient(-x, number(-m))
    if m == 1:
        return x
    whole = Linear(tuple(Term(t.atoms, t.factor // m) for t in x.terms if t.factor % m == 0))
    rest = Linear(tuple(t for t in x.terms if t.factor % m), x.constant % m)
    whole = whole.plus(x.constant // m)
    if rest.is_constant:
        return whole
    # (m * a) // (m * b) = a // b, with any remainder below m in the numerator.
    shared = reduce(math.gcd, (t.factor for t in rest.terms), m)
    if shared > 1:
        terms = tuple(Term(t.atoms, t.factor // shared) for t in rest.terms)
        return whole + quotient(Linear(terms, rest.constant // shared), number(m // shared))
    inner = written(rest)
    if inner.op == "floordiv" and inner.args[1].op == "const" and int(inner.args[1].value) > 0:
        # (a // b) // c = a // (b * c)
        return whole + quotient(linear(inner.args[0]), number(int(inner.args[1].value) * m))
    return whole + atom(make("floordiv", inner, constant(m)))


def remainder(x: Linear, y: Linear) -> Linear:
    """x % y. Multiples of a constant divisor leave."""
    if not y.is_constant:
        return ZERO if x == ZERO else atom(make("floormod", written(x), written(y)))
    m = y.constant
    if m < 0:
        if not _is_negatable(x):
            return atom(make("floormod", written(x), written(y)))
        return -remainder(-x, number(-m))
    if m <= 1:
        return ZERO
    rest = Linear(tuple(t for t in x.terms if t.factor % m), x.constant % m)
    return rest if rest.is_constant else atom(make("floormod", written(rest), constant(m)))


def _is_negatable(form: Linear) -> bool:
    """Whether the negative of a value fits 64 bits too: that of the least int64 does not."""
    return form_range(form)[0] > -(2**63)


def tidied(form: Linear) -> Linear:
    """The form with x - x % m = m * (x // m) used where that leaves fewer terms (constant m)."""
    best = form
    for term in form.terms:
        other = _exchanged(form, term)
        if other is not None and len(other.terms) < len(best.terms):
            best = other
    return best if best is form else tidied(best)


def _exchanged(form: Linear, term: Term) -> Linear | None:
    """The form with one remainder put as a quotient, or one quotient as a remainder."""
    node = term.atoms[0]
    if len(term.atoms) > 1 or node.op not in ("floordiv", "floormod"):
        return None
    if node.args[1].op != "const":
        return None
    x, m = linear(node.args[0]), int(node.args[1].value)
    if m <= 0 or (node.op == "floordiv" and term.factor % m):
        return None
    if node.op == "floormod":
        return form.without(term) + (x - quotient(x, number(m)).times(m)).times(term.factor)
    return form.without(term) + (x - remainder(x, number(m))).times(term.factor // m)


def written(form: Linear) -> Node:
    """The form as a node: what is added first, then what is subtracted, then the constant.

    >>> written(linear(make("sub", constant(1), bound("lo"))))
    sub(const(1), bound('lo'))
    """
    plus = [term for term in form.terms if term.factor > 0]
    minus = [term for term in form.terms if term.factor < 0]
    if len(form.terms) == 1 and form.constant == 0 and form.terms[0].factor == -1:
        return make("neg", _written_product(Term(form.terms[0].atoms, 1)))
    parts = [_written_product(term) for term in plus]
    number_left = form.constant
    if not parts:
        parts, number_left = [constant(number_left)], 0
    node = reduce(lambda a, b: make("add", a, b), parts)
    for term in minus:
        node = make("sub", node, _written_product(Term(term.atoms, -term.factor)))
    if number_left > 0:
        return make("add", node, constant(number_left))
    return make("sub", node, constant(-number_left)) if number_left < 0 else node


def _written_product(term: Term) -> Node:
    node = reduce(lambda a, b: make("mul", a, b), term.atoms)
    return node if term.factor == 1 else make("mul", constant(term.factor), node)


# The first and the last position of a tile: the last is not before the first.
TILE_ENDS: tuple[tuple[Node, Node], ...] = tuple(
    (bound(f"{axis}lo"), bound(f"{axis}hi")) for axis in ("", "q_", "k_")
)


def form_range(form: Linear) -> Range:
    """The least and greatest value of a form, whatever the call; `hi - lo` of a tile is not
    negative, nor is `hi // m - lo // m`."""
    low: float | int = form.constant
    high: float | int = form.constant
    terms = list(form.terms)
    while terms:
        term = terms.pop()
        partner = next((t for t in terms if t.factor == -term.factor and _are_ends(t, term)), None)
        if partner is not None:
            terms.remove(partner)
            later = partner if _is_later(partner, term) else term
            width = later.factor * 2 * (POSITION + TILE_SLACK)
            ends: Range = (min(0, width), max(0, width))
        else:
            ends = _term_range(term)
        low, high = low + ends[0], high + ends[1]
    return low, high


def _are_ends(x: Term, y: Term) -> bool:
    return _is_later(x, y) or _is_later(y, x)


def _term_range(term: Term) -> Range:
    if len(term.atoms) != len(set(term.atoms)):  # a node, so that a square is known as one
        return range_of(_written_product(term))
    ends: Range = (term.factor, term.factor)
    for node in term.atoms:
        ends = TRANSFER["mul"](ends, range_of(node))
    return ends


def _is_later(later: Term, earlier: Term) -> bool:
    """Whether `later` is the end of a tile where `earlier` is minus its start, rounded alike."""
    if later.factor != -earlier.factor or len(later.atoms) != 1 or len(earlier.atoms) != 1:
        return False
    first, last = earlier.atoms[0], later.atoms[0]
    for start, end in TILE_ENDS:
        if first is start and last is end:
            return True
        if first.op == "floordiv" and first.args[1].op == "const" and _rises(first.args[0], start):
            return substitute(first, {start: end}) is last
    return False


def _rises(node: Node, start: Node) -> bool:
    """Whether a node is the start of a tile, shifted by a constant."""
    return linear(node).terms == (Term((start,), 1),)
