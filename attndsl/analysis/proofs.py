"""proofs_of: what holds for every call of a program, each with what it assumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

from attndsl.analysis.facts import Segment
from attndsl.analysis.implications import follows, sees_no_future
from attndsl.analysis.intervals import fits_int32
from attndsl.analysis.linear import Linear, atom, linear, number, written
from attndsl.analysis.lookups import WHERE_KEPT, lookups_of, prove
from attndsl.analysis.predicates import normal_form
from attndsl.analysis.prover import A_KEY, Prover
from attndsl.analysis.warnings import is_never_true
from attndsl.ir.nodes import Node, bound, find, index, scalar, size, substitute
from attndsl.ir.program import Program
from attndsl.ir.text import roots
from attndsl.transform.simplify import simplified

Subject = Literal["mask", "batch", "head", "future", "rows", "edge", "lookups", "integers"]
Facts = tuple[Linear, ...]

# Positions of the first query and of the first key; no parameter can have these names.
FIRST_QUERY, FIRST_KEY = scalar("q_offset", "int"), scalar("k_offset", "int")
QUERIES_END = linear(FIRST_QUERY) + linear(size("Nq"))  # exclusive
KEYS_END = linear(FIRST_KEY) + linear(size("Nk"))
CASES = ("where", "min", "max", "abs")
MOST_CASES = 6  # of an end that is compared with the end of the keys
AT_A_KEY = "while every query stands at the position of a key"
NO_LENGTHS = "while no k_len is given"


@dataclass(frozen=True)
class Proof:
    """A fact about every call for which all that it assumes holds.

    subject  "mask": no pair can meet it; "batch", "head": it is the same for all; "future": no
             query reads a later key; "rows": every query has a key; "edge": no full tile reaches
             beyond the keys; "lookups" of one tensor; "integers" fit in 32 bits
    what     the fact, for people
    assumes  such as "while Nk >= 1"; none where it holds for every call
    """

    subject: Subject
    what: str
    assumes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.assumes:
            return self.what
        first, *rest = self.assumes
        *middle, last = (first, *(text.removeprefix("while ") for text in rest))
        return f"{self.what}, {' and '.join((', '.join(middle), last) if middle else (last,))}"


@dataclass(frozen=True)
class Assumption:
    """`facts` are forms that are <= 0 in the calls which the text describes."""

    text: str
    facts: Facts


NOTHING = Assumption("", ())


def proofs_of(program: Program, keys: Sequence[Segment] = ()) -> tuple[Proof, ...]:
    """What is proved about a simplified program, in a fixed order.

    keys  the segments of keys of its plan; without them nothing is said of the edge
    """
    if is_never_true(program.mask):
        return (Proof("mask", "no pair of positions can meet the mask"),)
    found = list(_independence(program))
    if sees_no_future(program.mask):
        found.append(Proof("future", "no query reads a later key"))
    found += [*_rows(program), *_edge(program, keys), *_lookups(program), *_integers(program)]
    return tuple(found)


def _independence(program: Program) -> Iterator[Proof]:
    varies = program.mask.varies
    if not varies & {"b", "h"}:
        yield Proof("batch", "the mask is the same for every batch and head")
    elif "b" not in varies:
        yield Proof("batch", "the mask is the same for every batch")
    elif "h" not in varies:
        yield Proof("head", "the mask is the same for every head")


def _rows(program: Program) -> Iterator[Proof]:
    """That every query has a key, shown by one that it may read, with the fewest assumptions."""
    found = []
    last = written(KEYS_END.plus(-1))
    keys = {"its own position": index("q"), "the first key": FIRST_KEY, "the last key": last}
    for name, key in keys.items():
        needed = _needed_for(program, key)
        if needed is not None:
            cost = len(needed) + (AT_A_KEY in needed)  # which says more than the others
            found.append((cost, Proof("rows", f"every query has a key: {name}", needed)))
    if found:
        _, best = min(found, key=lambda one: one[0])
        yield replace(best, assumes=(*best.assumes, NO_LENGTHS))


def _needed_for(program: Program, key: Node) -> tuple[str, ...] | None:
    """What must be assumed for every query to read the key at a position; None: that is not
    enough."""
    part = normal_form(simplified(substitute(program.mask, {index("k"): key})))
    inside = (linear(FIRST_KEY) - linear(key), linear(key).plus(1) - KEYS_END)

    def holds(facts: Facts) -> bool:
        known = (*facts, *_between(index("q")))
        return all(map(Prover(known).holds, inside)) and follows(part, known)

    return fewest(holds, [*_placed("q"), _of_grid(program), *_of_scalars(program)])


def _edge(program: Program, keys: Sequence[Segment]) -> Iterator[Proof]:
    """That full tiles end before the keys do: their bounds need no test."""
    ends = [part.full_hi for part in keys]
    if not keys or any(len(find(end, *CASES)) > MOST_CASES for end in ends):
        return
    assumptions = [*_placed("lo"), *_of_scalars(program)]

    def holds(facts: Facts) -> bool:
        tile = linear(bound("lo")) - linear(bound("hi"))
        prover = Prover((*facts, tile, *_between(bound("lo"))))
        return all(prover.holds(linear(end) - KEYS_END) for end in ends)

    needed = fewest(holds, assumptions)
    if needed is not None:
        yield Proof("edge", "no full tile reaches beyond the last key", needed)


def _lookups(program: Program) -> Iterator[Proof]:
    """That all lookups of a tensor are in range."""
    assumed: dict[str, dict[str, None] | None] = {}
    for node in lookups_of(program):
        for axis in range(len(node.args)):
            proof = prove(program, node, axis)
            known = assumed.setdefault(node.name, {})
            if proof is None or known is None:
                assumed[node.name] = None
            else:
                known.update(dict.fromkeys(proof.assumes))
    for name, texts in assumed.items():
        if texts is not None:
            order = sorted(texts, key=lambda text: text != WHERE_KEPT)
            yield Proof("lookups", f"every lookup of `{name}` is in range", tuple(order))


def _integers(program: Program) -> Iterator[Proof]:
    """That ints need no more than 32 bits."""
    if all(map(fits_int32, roots(program))):
        yield Proof("integers", "every int fits in 32 bits")


# -- what may be assumed --------------------------------------------------------------------


def fewest(
    holds: Callable[[Facts], bool], assumptions: Iterable[Sequence[Assumption]]
) -> tuple[str, ...] | None:
    """The texts of assumptions that are enough, or None. Each is a sequence from the strongest to
    the weakest; none can be made weaker while the others stay as they are."""
    taken = [options[0] for options in assumptions]

    def are_enough() -> bool:
        return holds(tuple(fact for one in taken for fact in one.facts))

    if not are_enough():
        return None
    for at, options in enumerate(assumptions):
        for weaker in (NOTHING, *reversed(options[1:])):
            before, taken[at] = taken[at], weaker
            if are_enough():
                break
            taken[at] = before
    return tuple(one.text for one in taken if one.text)


def _between(position: Node) -> Facts:
    """A query's position lies between that of the first and of the last."""
    place = linear(position)
    return (linear(FIRST_QUERY) - place, place.plus(1) - QUERIES_END)


def _placed(query: str) -> list[tuple[Assumption, ...]]:
    """Where queries and keys stand."""
    place = atom(bound(query)) if query == "lo" else atom(index(query))
    first_query, first_key = linear(FIRST_QUERY), linear(FIRST_KEY)
    at_a_key = (first_key - place, place.plus(1) - KEYS_END)
    return [
        (Assumption("while q_offset is 0", (first_query, -first_query)),),
        (Assumption("while k_offset is 0", (first_key, -first_key)),),
        (Assumption("while Nq <= Nk", (atom(size("Nq")) - atom(size("Nk")),)),),
        (Assumption(AT_A_KEY, at_a_key),),
        (Assumption("while Nk >= 1", (A_KEY,)),),
    ]


def _of_grid(program: Program) -> tuple[Assumption, ...]:
    """All positions lie inside the grid."""
    if program.grid is None:
        return (NOTHING,)
    cells = reduce(Linear.multiplied, map(linear, program.grid.extents), number(1))
    start, q = linear(program.grid.start), atom(index("q"))
    sides = tuple(number(1) - linear(extent) for extent in program.grid.extents)
    return (
        Assumption(
            "while no query lies outside the grid", (start - q, q.plus(1) - start - cells, *sides)
        ),
    )


def _of_scalars(program: Program) -> list[tuple[Assumption, ...]]:
    """Every int parameter of the mask is positive, or at least not negative."""
    names = dict.fromkeys(node for node in find(program.mask, "scalar") if node.kind == "int")
    return [
        (
            Assumption(f"while {node.name} >= 1", (number(1) - atom(node),)),
            Assumption(f"while {node.name} >= 0", (-atom(node),)),
        )
        for node in names
    ]
