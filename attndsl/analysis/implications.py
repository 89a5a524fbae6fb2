"""is_impossible, implies: what follows from masks for every pair of every call."""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.analysis import build
from attndsl.analysis.intervals import may_wrap
from attndsl.analysis.linear import Linear
from attndsl.analysis.predicates import (
    All,
    Any,
    Choice,
    Fixed,
    Literal,
    Opaque,
    Predicate,
    every,
    normal_form,
    normal_forms,
    some,
)
from attndsl.analysis.prover import A_KEY, Prover, literals
from attndsl.analysis.samples import samples
from attndsl.ir.nodes import TRUE, Node, index, make

MOST_CASES = 64  # disjunctions taken apart in one proof
Leaf = tuple[Node, bool]  # a bool node, and the value that it has


def implies(x: Node, y: Node, facts: Iterable[Linear] = (), without_offsets: bool = False) -> bool:
    """Whether it is proved that a pair of positions which meets mask x meets mask y.

    facts            forms that are <= 0 in the calls that this is about
    without_offsets  whether it is about calls whose offsets are 0

    >>> from attndsl.ir.nodes import index
    >>> implies(make("lt", index("k"), index("q")), make("le", index("k"), index("q")))
    True
    """
    if x is y:
        return True
    known = tuple(facts)
    if not known and any(a and not b for a, b in samples((x, y), without_offsets=without_offsets)):
        return False
    part = every(normal_form(x), normal_forms(y)[1])
    return is_impossible(part, (A_KEY, *known), without_offsets)


def follows(part: Predicate, facts: Iterable[Linear]) -> bool:
    """Whether it is proved that a predicate holds wherever the facts (forms <= 0) do."""
    return is_impossible(opposite(part), facts)


def is_impossible(
    part: Predicate, facts: Iterable[Linear] = (A_KEY,), without_offsets: bool = False
) -> bool:
    """Whether it is proved that no pair meets a predicate where the facts (forms <= 0) hold."""
    return _Search(without_offsets).closes([part], tuple(facts), frozenset([(TRUE, True)]))


class _Search:
    """Takes a conjunction apart into cases, until each of them contradicts itself."""

    def __init__(self, without_offsets: bool) -> None:
        self.without_offsets = without_offsets
        self.left = MOST_CASES

    def closes(
        self, parts: list[Predicate], facts: tuple[Linear, ...], leaves: frozenset[Leaf]
    ) -> bool:
        """Whether the parts, the facts and the leaves cannot all hold."""
        self.left -= 1
        if self.left < 0:
            return False
        choices: list[Any] = []
        found: list[Linear] = []
        waiting, known = list(parts), set(leaves)
        while waiting:
            part = opened(waiting.pop())
            if isinstance(part, All):
                waiting += part.parts
            elif isinstance(part, Any):
                choices.append(part)
            else:
                if not (isinstance(part, Fixed) and may_wrap(part.node)):
                    found += literals(part)
                leaf = leaf_of(part)
                if leaf is not None:
                    if (leaf[0], not leaf[1]) in known:
                        return True
                    known.add(leaf)
        new = [fact for fact in dict.fromkeys(found) if fact not in facts]
        if Prover([*new, *facts], self.without_offsets).is_contradictory(len(new)):
            return True
        if not choices:
            return False
        split = min(choices, key=lambda choice: len(choice.parts))
        rest: list[Predicate] = [choice for choice in choices if choice is not split]
        known_facts, known_leaves = (*new, *facts), frozenset(known)
        return all(self.closes([p, *rest], known_facts, known_leaves) for p in split.parts)


def opened(part: Predicate) -> Predicate:
    """A predicate with its outermost conditional, or fixed connective, as `and` and `or`."""
    if isinstance(part, Choice):
        return some(every(part.condition, part.then), every(part.otherwise, part.other))
    if isinstance(part, Fixed) and not may_wrap(part.node):
        op, args = part.node.op, part.node.args
        if op == "and":
            return every(*map(Fixed, args))
        if op == "or":
            return some(*map(Fixed, args))
        if op == "not" and args[0].op in ("and", "or"):
            join = some if args[0].op == "and" else every
            return join(*(Fixed(build.negation(arg)) for arg in args[0].args))
        if op == "where":
            condition, then, other = args
            return some(
                every(Fixed(condition), Fixed(then)),
                every(Fixed(build.negation(condition)), Fixed(other)),
            )
    return part


def leaf_of(part: Predicate) -> Leaf | None:
    """A bool node that a predicate gives a value, in one way of writing it."""
    if isinstance(part, Fixed):
        node, value = part.node, True
    elif isinstance(part, Opaque):
        node, value = part.node, not part.negated
    else:
        return None
    while node.op == "not":
        node, value = node.args[0], not value
    if node.op == "ne":  # of floats too: `x != y` is `not x == y`, for NaN as well
        node, value = make("eq", *node.args), not value
    return (node, value) if node.op != "const" else (TRUE, node.value is value)


def opposite(part: Predicate) -> Predicate:
    """The negation of a predicate, in normal form."""
    done: dict[int, Predicate] = {}

    def negated(part: Predicate) -> Predicate:
        if id(part) not in done:
            done[id(part)] = _opposite(part)
        return done[id(part)]

    def _opposite(part: Predicate) -> Predicate:
        if isinstance(part, Literal):
            return Literal((-part.form).plus(1))
        if isinstance(part, Fixed):
            return Fixed(build.negation(part.node))
        if isinstance(part, Opaque):
            return Opaque(part.node, not part.negated)
        if isinstance(part, All):
            return some(*map(negated, part.parts))
        if isinstance(part, Any):
            return every(*map(negated, part.parts))
        # (c and t or not c and o) is false where (c and not t or not c and not o) is true
        then, other = negated(part.then), negated(part.other)
        depth = 1 + max(p.depth for p in (part.condition, part.otherwise, then, other))
        return Choice(part.condition, part.otherwise, then, other, depth)

    return negated(part)


def sees_no_future(mask: Node) -> bool:
    """Whether it is proved that no pair of a mask has its key after its query."""
    return implies(mask, make("le", index("k"), index("q")))
