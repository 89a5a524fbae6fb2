"""Proves `form <= 0` for ints from facts of the same kind, by adding multiples of facts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

from attndsl.analysis.linear import Linear, Term, atom, collected, form_range, linear, number
from attndsl.analysis.predicates import All, Fixed, Literal, Predicate, normal_forms
from attndsl.ir.nodes import Node, index, size, topological

DEEPEST = 5  # facts used in one proof
MOST_STEPS = 200
MOST_NESTED = 2  # a question in a proof about a question in a proof
MOST_SPLITS = 24  # min, max, abs and conditionals taken apart in one proof

EXTENTS = {"b": "B", "h": "H"}
A_KEY = number(1) - atom(size("Nk"))  # a fact about each pair
PLACES = {"q": "Nq", "k": "Nk"}  # of rows and columns: of positions only while the offset is 0
AT_LEAST_ONE = ("B", "H", "Hk", "G", "Nq")  # where a row exists at all


class Prover:
    """Facts `form <= 0` about a row, and what follows from them. A False answer says nothing."""

    def __init__(
        self, facts: Iterable[Linear], without_offsets: bool = False, nested: int = 0
    ) -> None:
        """nested: how many proofs this one is a question of."""
        self.facts = [tightened(fact) for fact in facts]
        self.without_offsets, self.nested = without_offsets, nested
        self._known_atoms: set[Node] = set()
        self._steps, self._splits = MOST_STEPS, MOST_SPLITS
        for name in AT_LEAST_ONE:
            self.facts.append(number(1) - atom(size(name)))
        for fact in list(self.facts):
            self._learn(fact)

    def holds(self, form: Linear) -> bool:
        """Whether form <= 0 is proved."""
        self._steps, self._splits = MOST_STEPS, MOST_SPLITS
        return self._split(tightened(form))

    def is_contradictory(self, first: int | None = None) -> bool:
        """Whether the facts cannot all hold; only proofs that use one of the `first` given are
        looked for, where the others are known not to contradict each other."""
        own = list(self.facts)
        for i, fact in enumerate(own[:first]):
            rest = self._copy()
            rest.facts = own[:i] + own[i + 1 :]
            if fact.terms and rest.holds(number(1) - fact):
                return True
        return any(fact.is_constant and fact.constant > 0 for fact in own)

    def assuming(self, parts: Iterable[Linear]) -> Prover:
        return Prover([*self.facts, *parts], self.without_offsets, self.nested)

    def _quotient_facts(self, node: Node, x: Linear, m: Linear) -> list[Linear]:
        """Of x // m for m > 0: m * (x // m) <= x < m * (x // m) + m; each fact of it, times m."""
        whole = m.multiplied(atom(node))
        facts = [whole - x, x - whole - m.plus(-1)]
        for fact in self.facts:
            if any(term.atoms == (node,) for term in fact.terms):
                facts.append(fact.multiplied(m))
            limit = divided(fact - x, node.args[1]) if (fact - x).constant >= 1 else None
            if limit is not None:  # x < m * c, so x // m < c
                facts.append(atom(node) + limit.plus(1))
        if self._copy().holds(-x):
            facts += [-atom(node), atom(node) - x]  # x // m lies between 0 and x
        return facts

    def _copy(self) -> Prover:
        """The same facts, for a question asked in the middle of another."""
        other = Prover([], self.without_offsets, self.nested + 1)
        other.facts = list(self.facts)
        other._known_atoms = set(self._known_atoms)
        return other

    def _split(self, form: Linear) -> bool:
        self._learn(form)
        if self._add(form, DEEPEST, set()):
            return True
        for term in form.terms:
            node = term.atoms[0]
            if len(term.atoms) == 1 and node.op in ("min", "max", "abs", "where"):
                if self._splits <= 0:
                    return False
                self._splits -= 1
                return self._split_at(form.without(term), term, node)
        return False

    def _split_at(self, rest: Linear, term: Term, node: Node) -> bool:
        if node.op == "where":
            cases = zip(normal_forms(node.args[0]), node.args[1:], strict=True)
            for condition, value in cases:
                case = self.assuming(literals(condition))
                case._steps, case._splits = self._steps, self._splits
                proved = case._split(tightened(rest + linear(value).times(term.factor)))
                self._steps, self._splits = case._steps, case._splits
                if not proved:
                    return False
            return True
        first = linear(node.args[0])
        parts = [first, -first if node.op == "abs" else linear(node.args[1])]
        proofs = (self._split(tightened(rest + part.times(term.factor))) for part in parts)
        needs_all = (node.op != "min") == (term.factor > 0)
        return all(proofs) if needs_all else any(proofs)

    def _add(self, form: Linear, depth: int, seen: set[frozenset[tuple[object, int]]]) -> bool:
        """Whether form <= 0 follows by adding multiples of facts: form - m * fact <= 0 will do."""
        if form_range(form)[1] <= 0:
            return True
        signature = frozenset([*((t.key, t.factor) for t in form.terms), ((), form.constant)])
        if depth == 0 or self._steps <= 0 or signature in seen:
            return False
        seen.add(signature)
        self._steps -= 1
        factors = {term.key: term.factor for term in form.terms}
        for fact in self.facts:
            for term in fact.terms:
                factor = factors.get(term.key, 0)
                if factor * term.factor > 0 and self._steps > 0:
                    shared = math.gcd(factor, term.factor)
                    times = abs(term.factor) // shared
                    left = form.times(times).plus(1 - times)  # of ints: x <= 0 if m * x < m
                    right = fact.times(abs(factor) // shared)
                    if self._add(tightened(left - right), depth - 1, seen):
                        return True
        return False

    # What is known of the atoms themselves

    def _learn(self, form: Linear) -> None:
        for found in form.atoms():
            for node in topological(found):
                if node not in self._known_atoms and node.kind == "int":
                    self._known_atoms.add(node)
                    for fact in self._facts_of(node):
                        self.facts.append(tightened(fact))
                        self._learn(fact)

    def _facts_of(self, node: Node) -> list[Linear]:
        one, me = number(1), atom(node)
        if node.op == "index":
            extent = EXTENTS.get(node.name)
            if extent is None and self.without_offsets:
                extent = PLACES.get(node.name, "D")
            return [-me, me - atom(size(extent)) + one] if extent else []
        if node.op == "size":
            return [-me]
        if node.op == "floordiv":
            x, y = linear(node.args[0]), node.args[1]
            if node.args[0] is index("h") and y is size("G"):  # H = G * Hk
                return [-me, me - atom(size("Hk")) + one]
            if y.op == "const":
                m = int(y.value)
                return [me.times(m) - x, x - me.times(m) - number(m - 1)] if m > 0 else []
            if self._is_positive(y):
                return self._quotient_facts(node, x, linear(y))
            return []
        if node.op == "floormod" and self._is_positive(node.args[1]):
            return [-me, me - linear(node.args[1]) + one]
        return []

    def _is_positive(self, divisor: Node) -> bool:
        if divisor.op == "const":
            return int(divisor.value) > 0
        return self.nested < MOST_NESTED and self._copy().holds(number(1) - linear(divisor))


def divided(form: Linear, divisor: Node) -> Linear | None:
    """The terms of a form without a factor that all of them have; None where one lacks it."""
    terms = []
    for term in form.terms:
        if divisor not in term.atoms:
            return None
        rest = list(term.atoms)
        rest.remove(divisor)
        terms.append(Term(tuple(rest), term.factor))
    return collected((term for term in terms if term.atoms), 0).plus(
        sum(term.factor for term in terms if not term.atoms)
    )


def tightened(form: Linear) -> Linear:
    """form <= 0 with the common factor of its terms taken out: ints leave no fraction.

    >>> tightened(number(3) - atom(size("B")).times(2)).constant
    2
    """
    shared = reduce(math.gcd, (term.factor for term in form.terms), 0)
    if shared <= 1:
        return form
    terms = tuple(Term(term.atoms, term.factor // shared) for term in form.terms)
    return Linear(terms, -(-form.constant // shared))


def literals(part: Predicate) -> list[Linear]:
    """Forms that are <= 0 wherever the predicate holds."""
    if isinstance(part, Literal):
        return [part.form]
    if isinstance(part, All):
        return [form for p in part.parts for form in literals(p)]
    if isinstance(part, Fixed):
        node = part.node
        if node.op in ("le", "lt") and node.args[0].kind == "int":
            form = linear(node.args[0]) - linear(node.args[1])
            return [form.plus(1) if node.op == "lt" else form]
        if node.op == "eq" and node.args[0].kind == "int":
            form = linear(node.args[0]) - linear(node.args[1])
            return [form, -form]
        if node.op == "and":
            return [form for arg in node.args for form in literals(Fixed(arg))]
        if node.op == "const" and node.value is False:
            return [number(1)]
    return []
