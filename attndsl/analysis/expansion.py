"""A predicate in normal form -> cases, whose clauses limit one index; and what that costs."""

from __future__ import annotations

from attndsl.analysis import build, predicates
from attndsl.analysis.boxes import Box, cofactor
from attndsl.analysis.cases import Case, Unsolved, conjunction, disjunction, single
from attndsl.analysis.facts import Loss
from attndsl.analysis.limits import (
    OTHER,
    Signs,
    atoms_of,
    divided,
    is_usual,
    limit_of,
    tamed,
    undivided,
    without,
)
from attndsl.analysis.linear import Linear, linear, written
from attndsl.analysis.predicates import (
    All,
    Any,
    Choice,
    Fixed,
    Literal,
    Opaque,
    Predicate,
    is_fixed,
    normal_forms,
)
from attndsl.analysis.roots import root_above, root_below
from attndsl.ir.nodes import FALSE, TRUE, Node, constant, substitute, topological

MOST_CASES = 32  # beyond it a part is taken as one, by its interval over the tile
MOST_STEPS = 400  # comparisons taken apart in one mask
REASONS = {
    "lookup": "a lookup that varies with {} is data",
    "chosen": "chosen blocks are data",
    "dot": "a product of vectors is data",
    "floormod": "a remainder of {} repeats",
    "mul": "a product of positions neither rises nor falls",
    "floordiv": "a quotient by a position",
    "pow": "a power of floats",
    "to_float": "floats are compared by their range over a tile",
    "abs": "a distance from {} turns",
}
ARITHMETIC = frozenset("add sub neg mul floordiv floormod min max abs where".split())


class Expansion:
    """Finds cases for one index, given a tile of the other in `box`."""

    def __init__(self, mask: Node, axis: str, box: Box, signs: Signs) -> None:
        self.mask, self.axis, self.other = mask, axis, OTHER[axis]
        self.box, self.signs = box, signs
        self.losses: dict[Loss, None] = {}
        self._nodes = frozenset(topological(mask))
        self._sources = _sources(mask)
        self._kept: list[Predicate] = []  # so that their ids stay theirs
        self._steps = MOST_STEPS

    # Losses

    def lose(self, node: Node, reason: str) -> None:
        self.losses[Loss(node, reason)] = None

    def lose_at(self, source: Node | None, reason: str) -> None:
        """A loss at a comparison of the mask."""
        self.lose(self.mask if source is None else source, reason)

    def lose_form(self, form: Linear, source: Node | None) -> None:
        """A loss in a comparison: at the value that is to blame, where the mask has it."""
        self._blame([atom for atom in form.atoms() if not is_fixed(atom)], source)

    def lose_part(self, part: Predicate, source: Node | None) -> None:
        if isinstance(part, Opaque):
            self._blame([part.node], part.node if part.node in self._nodes else source)
        elif isinstance(part, Literal):
            self.lose_form(part.form, self._sources.get(id(part), source))
        elif isinstance(part, Choice):
            for one in (part.condition, part.then, part.other):
                self.lose_part(one, source)
        elif not isinstance(part, Fixed):
            for one in part.parts:
                self.lose_part(one, source)

    def _blame(self, roots: list[Node], source: Node | None) -> None:
        below = topological(*roots)
        for op, reason in REASONS.items():
            found = [node for node in below if node.op == op and _is_to_blame(node)]
            for node in found:
                names = " and ".join(f"`{name}`" for name in ("q", "k") if name in node.varies)
                self.lose_at(node if node in self._nodes else source, reason.format(names))
            if found:
                return
        self.lose_at(source, "no range was found for it")

    # Cases

    def cases(self, part: Predicate, source: Node | None = None) -> list[Case]:
        """Cases of which one holds wherever the predicate does (and only there, but for what is
        unsolved in them)."""
        if isinstance(part, Fixed):
            if part.node is FALSE:
                return []
            return [Case(fixed=() if part.node is TRUE else (part.node,))]
        if isinstance(part, Literal):
            return self._literal(part, self._sources.get(id(part), source))
        if isinstance(part, All):
            return self._all([self.cases(p, source) for p in part.parts], part, source)
        if isinstance(part, Any):
            return self._any([self.cases(p, source) for p in part.parts], part, source)
        if isinstance(part, Choice):
            if part.is_usual:
                return self._usual(part, source)
            taken = (part.condition, part.then), (part.otherwise, part.other)
            options = [
                self._all([self.cases(p, source) for p in two], part, source) for two in taken
            ]
            return self._any(options, part, source)
        return [self._unsolved(part, source)]

    def _usual(self, part: Choice, source: Node | None) -> list[Case]:
        """A choice whose condition is taken as given, where it is known before a kernel loops."""
        if not isinstance(part.condition, Fixed):
            return [self._unsolved(part, source)]
        self.signs.given[part.condition.node] = None
        return self.cases(part.then, source)

    def _unsolved(self, part: Predicate, source: Node | None) -> Case:
        self._kept.append(part)
        return Case(others=(Unsolved(part, source),))

    def _all(self, options: list[list[Case]], part: Predicate, source: Node | None) -> list[Case]:
        found = [Case()]
        for option in sorted(options, key=len):
            if len(found) * len(option) > MOST_CASES**2:
                return self._as_one(part, source)
            joined = (conjunction(x, y, self.signs) for x in found for y in option)
            found = disjunction([case for case in joined if case is not None], self.signs)
            if len(found) > MOST_CASES:
                return self._as_one(part, source)
        return self._tidied(found, part, source)

    def _any(self, options: list[list[Case]], part: Predicate, source: Node | None) -> list[Case]:
        found = disjunction([case for option in options for case in option], self.signs)
        if len(found) > MOST_CASES:
            return self._as_one(part, source)
        return self._tidied(found, part, source)

    def _as_one(self, part: Predicate, source: Node | None) -> list[Case]:
        self.lose_at(source, "more cases than are told apart")
        return [self._unsolved(part, source)]

    def _tidied(self, found: list[Case], part: Predicate, source: Node | None) -> list[Case]:
        """The cases; one where none of them limits anything."""
        if any(case.clauses or not case.others for case in found):
            return found
        return [self._unsolved(part, source)] if len(found) > 1 else found

    # Comparisons

    def _literal(
        self, part: Literal, source: Node | None, origin: Linear | None = None
    ) -> list[Case]:
        self._steps -= 1
        if self._steps < 0:
            return [self._unsolved(part, source)]
        form = part.form
        axis = self.axis if any(self.axis in t.varies for t in form.atoms()) else self.other
        inner = _nested(form, axis)
        if inner is not None:
            return self._split_at(inner, form, source)
        limit = limit_of(form, axis, self.signs, source, origin)
        if limit is not None:
            return [single(limit)]
        simpler = undivided(form, axis, self.signs) or self._without_square(form, axis)
        if simpler is not None:
            if isinstance(simpler, Linear):
                simpler = predicates.not_positive(simpler)
            self._kept.append(simpler)
            if isinstance(simpler, Literal):
                return self._literal(simpler, source, form if origin is None else origin)
            return self.cases(simpler, source)
        weaker = list(self._relaxed(form, axis))
        if not weaker:
            return [self._unsolved(part, source)]
        self.lose_form(form, source)
        return self._all([self.cases(p, source) for p in weaker], part, source)

    def _split_at(self, inner: Node, form: Linear, source: Node | None) -> list[Case]:
        """The comparison by cases of a conditional or a distance inside of it."""
        if inner.op == "abs":
            x = linear(inner.args[0])
            taken = [(-x, written(x)), (x.plus(1), written(-x))]
            options = [(predicates.not_positive(c), value) for c, value in taken]
        elif inner.op == "bool_to_int":
            options = list(zip(normal_forms(inner.args[0]), map(constant, (1, 0)), strict=True))
        else:
            options = list(zip(normal_forms(inner.args[0]), inner.args[1:], strict=True))
        parts = []
        for condition, value in options:
            instead = linear(substitute(written(form), {inner: value}))
            parts.append(predicates.every(condition, predicates.not_positive(instead)))
        found = predicates.some(*parts)
        self._kept.append(found)
        return self.cases(found, source)

    def _without_square(self, form: Linear, axis: str) -> Predicate | None:
        """x * x <= c as -r <= x <= r with r = isqrt(c); x * x >= c as what lies outside of that
        for c - 1."""
        groups = atoms_of(form, axis)
        atom = next(iter(groups))
        if len(groups) > 1 or atom is None or atom.op != "mul" or atom.args[0] is not atom.args[1]:
            return None
        factor, rest = cofactor(groups[atom], atom), without(form, groups[atom])
        if factor.varies:
            return None
        possible: Predicate = predicates.ALWAYS
        if rest.varies:
            least = self.box.form(rest)
            if least.lo is None or least.sound is not TRUE:
                return None
            self.lose_at(None, "a square beside another value of a position")
            rest = linear(least.lo)
        x, sign = linear(atom.args[0]), self.signs.assume(factor)
        limit = divided(-tamed(rest, Linear(tuple(groups[atom]))), factor.times(sign))
        if sign > 0:
            if not is_usual(-limit):
                possible = Fixed(build.not_positive(-limit))
            root = linear(root_above(written(limit)))
            parts = [predicates.not_positive(x - root), predicates.not_positive(-x - root)]
            return predicates.every(possible, *parts)
        root = linear(root_below(written((-limit).plus(-1)))).plus(1)
        return predicates.some(predicates.not_positive(root - x), predicates.not_positive(root + x))

    def _relaxed(self, form: Linear, axis: str) -> list[Predicate]:
        """What follows from the comparison for one value of the index, whatever its others are."""
        found: list[Predicate] = []
        groups = atoms_of(form, axis)
        for atom in groups:
            if atom is None or not _is_solvable(atom):
                continue
            others = [term for a, group in groups.items() if a is not atom for term in group]
            if not others:
                continue
            least = self.box.form(Linear(tuple(others)))
            if least.lo is None or least.sound is not TRUE or not is_fixed(least.lo):
                continue
            rest = Linear(tuple(t for t in form.terms if t not in others), form.constant)
            found.append(predicates.not_positive(rest + linear(least.lo)))
        self._kept += found
        return found


def _is_to_blame(node: Node) -> bool:
    if node.op in ("mul", "floordiv"):
        return all(not is_fixed(arg) for arg in node.args[-1 if node.op == "floordiv" else 0 :])
    return not is_fixed(node)


def _is_solvable(atom: Node) -> bool:
    if atom.op in ("index", "floordiv"):
        return True
    return atom.op == "mul" and atom.args[0] is atom.args[1]


def _nested(form: Linear, axis: str) -> Node | None:
    """A conditional inside of the values of a form, or a distance inside of one that does not
    vary with the index: the form is monotone on either side of it."""
    for atom in form.atoms():
        waiting = [atom]
        while waiting:
            node = waiting.pop()
            if is_fixed(node) or (node.op not in ARITHMETIC and node.op != "bool_to_int"):
                continue
            if node.op in ("where", "bool_to_int") and node.kind == "int":
                return node
            if node.op == "abs" and len({"q", "k"} & node.varies) == 1 and axis not in node.varies:
                return node
            waiting += [arg for arg in node.args if arg.kind == "int"]
    return None


def _sources(mask: Node) -> dict[int, Node]:
    """The comparison of the mask that each literal of its normal form came from."""
    found: dict[int, Node] = {}
    for node in topological(mask):
        if node.op in ("lt", "le", "eq", "ne") and node.args[0].kind == "int":
            waiting: list[Predicate] = list(normal_forms(node))
            while waiting:
                part = waiting.pop()
                if isinstance(part, Literal):
                    found.setdefault(id(part), node)
                elif isinstance(part, (All, Any)):
                    waiting += part.parts
                elif isinstance(part, Choice):
                    waiting += [part.condition, part.otherwise, part.then, part.other]
    return found
