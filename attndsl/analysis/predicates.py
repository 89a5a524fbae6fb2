"""Masks in normal form: comparisons of ints as linear forms, negations pushed to the leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from attndsl.analysis import build
from attndsl.analysis.intervals import INT32, may_wrap, may_wrap_usually
from attndsl.analysis.linear import PAIR_INDICES, Linear, Term, linear, written
from attndsl.ir.nodes import FALSE, TRUE, Node, find, topological

MOST_LITERALS = 64  # a comparison that would split into more stays as it is
MOST_PARTS = 48  # a longer conjunction or disjunction stays nested
DEEPEST = 60  # predicates nested deeper than this are left unknown
_STORED = "_normal_forms"  # a node carries those of itself and of its negation


@dataclass(frozen=True)
class Literal:
    """`form <= 0`, where the form varies with q or k."""

    form: Linear
    depth: int = 0


@dataclass(frozen=True)
class Fixed:
    """A predicate that varies neither with q nor with k."""

    node: Node
    depth: int = 0


@dataclass(frozen=True)
class Opaque:
    """A predicate that is not a comparison of ints (or its negation)."""

    node: Node
    negated: bool
    depth: int = 0


@dataclass(frozen=True)
class All:
    """All of the parts. `whole` is the comparison `whole <= 0` that was taken apart, where its
    interval says what those of the parts do not: that of |x| + |y|, for example."""

    parts: tuple[Predicate, ...]
    depth: int
    whole: Linear | None = None


@dataclass(frozen=True)
class Any:
    """Any of the parts; `whole` as in All."""

    parts: tuple[Predicate, ...]
    depth: int
    whole: Linear | None = None


@dataclass(frozen=True)
class Choice:
    """`then` where the condition holds, else `other`; `otherwise` is the condition's negation.

    is_usual   whether the condition holds but for entries of tables that no call is likely to have
    """

    condition: Predicate
    otherwise: Predicate
    then: Predicate
    other: Predicate
    depth: int
    is_usual: bool = False


Predicate = Literal | Fixed | Opaque | All | Any | Choice

ALWAYS = Fixed(TRUE)
NEVER = Fixed(FALSE)


def every(*parts: Predicate) -> Predicate:
    return _joined(All, parts, ALWAYS, NEVER)


def some(*parts: Predicate) -> Predicate:
    return _joined(Any, parts, NEVER, ALWAYS)


def _joined(
    join: type[All] | type[Any], parts: tuple[Predicate, ...], neutral: Fixed, absorbing: Fixed
) -> Predicate:

    def taken_apart(part: Predicate) -> tuple[Predicate, ...]:
        is_plain = isinstance(part, join) and part.whole is None
        return part.parts if is_plain and isinstance(part, (All, Any)) else (part,)

    if sum(len(taken_apart(part)) for part in parts) <= MOST_PARTS:
        parts = tuple(p for part in parts for p in taken_apart(part))
    kept = {id(part): part for part in parts if not _is(part, neutral)}
    if any(_is(part, absorbing) for part in kept.values()):
        return absorbing
    if len(kept) <= 1:
        return next(iter(kept.values()), neutral)
    return join(tuple(kept.values()), 1 + max(part.depth for part in kept.values()))


def _is(part: Predicate, fixed: Fixed) -> bool:
    return isinstance(part, Fixed) and part.node is fixed.node


def choice(
    condition: Predicate,
    otherwise: Predicate,
    then: Predicate,
    other: Predicate,
    is_usual: bool = False,
) -> Predicate:
    if _is(condition, ALWAYS) or then is other:
        return then
    if _is(condition, NEVER):
        return other
    depth = 1 + max(condition.depth, otherwise.depth, then.depth, other.depth)
    return Choice(condition, otherwise, then, other, depth, is_usual)


def is_fixed(node: Node) -> bool:
    """Whether a node varies neither with q nor with k."""
    return PAIR_INDICES.isdisjoint(node.varies)


def not_positive(form: Linear) -> Predicate:
    """`form <= 0` in normal form: min, max, abs and conditionals in it become several literals."""
    found = _Splitter().split(form)
    several = [term for term in form.terms if _is_split(term)]
    if isinstance(found, (All, Any)) and len(several) > 1:
        return replace(found, whole=form)
    return found


def _is_split(term: Term) -> bool:
    """Whether a term is a min, max, abs or conditional of q or k."""
    node = term.atoms[0]
    return len(term.atoms) == 1 and node.op in ("min", "max", "abs", "where") and term.varies


class _Splitter:
    """Takes the min, max, abs and conditionals of one comparison apart, within a budget."""

    def __init__(self) -> None:
        self.left = MOST_LITERALS

    def split(self, form: Linear) -> Predicate:
        if form.is_constant:
            return ALWAYS if form.constant <= 0 else NEVER
        if not form.varies:
            return Fixed(build.not_positive(form))
        for term in form.terms:
            if _is_split(term) and self.left > 0:
                return self._split_at(form.without(term), term, term.atoms[0])
        return Literal(form)

    def _split_at(self, rest: Linear, term: Term, node: Node) -> Predicate:
        self.left -= 1

        def instead(part: Linear) -> Predicate:
            return self.split(rest + part.times(term.factor))

        if node.op == "where":
            condition, then, other = node.args
            return choice(
                *normal_forms(condition),
                instead(linear(then)),
                instead(linear(other)),
            )
        if node.op == "abs":
            x = linear(node.args[0])
            parts = (instead(x), instead(-x))
        else:
            parts = (instead(linear(node.args[0])), instead(linear(node.args[1])))
        # f * max(x, y) <= c holds where it does for both; with a negative f, for one of them.
        return every(*parts) if (node.op != "min") == (term.factor > 0) else some(*parts)


def normal_form(mask: Node) -> Predicate:
    """The normal form of a bool node; equal to it for every q and k (of `inf` and NaN too).

    >>> from attndsl.ir.nodes import index, make
    >>> normal_form(make("not", make("lt", index("q"), index("k")))).form.constant
    0
    """
    return normal_forms(mask)[0]


def normal_forms(mask: Node) -> tuple[Predicate, Predicate]:
    """The normal forms of a bool node and of its negation."""
    if _STORED not in mask.__dict__:
        for node in topological(mask):
            if node.kind == "bool" and _STORED not in node.__dict__:
                node.__dict__[_STORED] = (_limited(node, True), _limited(node, False))
    found: tuple[Predicate, Predicate] = mask.__dict__[_STORED]
    return found


def _limited(node: Node, wanted: bool) -> Predicate:
    part = _normal(node, wanted, lambda n, w: normal_forms(n)[0 if w else 1])
    return part if part.depth <= DEEPEST else Opaque(node, not wanted)


def _normal(node: Node, wanted: bool, of: Callable[[Node, bool], Predicate]) -> Predicate:
    """The normal form of `node == wanted`."""
    if is_fixed(node):
        return Fixed(node if wanted else build.negation(node))
    args = node.args
    if node.op in ("lt", "le", "eq", "ne") and args[0].kind == "int":
        return _compared(node, wanted)
    if node.op == "not":
        return of(args[0], not wanted)
    if node.op in ("and", "or"):
        join = every if (node.op == "and") == wanted else some
        return join(of(args[0], wanted), of(args[1], wanted))
    if node.op == "where":
        return choice(
            of(args[0], True), of(args[0], False), of(args[1], wanted), of(args[2], wanted)
        )
    if node.op in ("eq", "ne") and args[0].kind == "bool":
        same = (node.op == "eq") == wanted
        return choice(
            of(args[0], True), of(args[0], False), of(args[1], same), of(args[1], not same)
        )
    return Opaque(node, not wanted)


def _compared(node: Node, wanted: bool) -> Predicate:
    """A comparison of ints, where neither it nor what is made of it leaves 64 bits."""
    form = linear(node.args[0]) - linear(node.args[1])
    compared = _comparison(node.op, form, wanted)
    if not may_wrap(node) and build.has_sides(form):
        return compared
    unknown = Opaque(node, not wanted)
    if may_wrap_usually(node) or may_wrap_usually(written(form)):
        return unknown
    return choice(*entries_fit(node), compared, unknown, is_usual=True)


def entries_fit(root: Node) -> tuple[Predicate, Predicate]:
    """That the entries of tables that a node computes with fit 32 bits, and its negation."""
    low, high = map(int, INT32)
    forms: list[Linear] = []
    for node in find(root, "lookup"):
        if node.kind == "int":
            entry = linear(node)
            forms += [entry.plus(-high), (-entry).plus(low)]
    fixed = build.both(*(build.not_positive(form) for form in forms if not form.varies))
    varying = [form for form in forms if form.varies]
    return (
        every(Fixed(fixed), *map(not_positive, varying)),
        some(Fixed(build.negation(fixed)), *(not_positive((-f).plus(1)) for f in varying)),
    )


def _comparison(op: str, form: Linear, wanted: bool) -> Predicate:
    if op in ("lt", "le"):
        form = form.plus(1) if op == "lt" else form
        return not_positive(form if wanted else (-form).plus(1))
    if (op == "eq") == wanted:
        return every(not_positive(form), not_positive(-form))
    return some(not_positive(form.plus(1)), not_positive((-form).plus(1)))
