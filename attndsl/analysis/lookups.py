"""Which lookups are proved to lie inside their tensors, and under which assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from attndsl.analysis.linear import Linear, linear, number
from attndsl.analysis.predicates import normal_form
from attndsl.analysis.prover import A_KEY, Prover, literals
from attndsl.ir.nodes import Node, find
from attndsl.ir.program import Program

WHERE_KEPT = "where the mask holds"
NOT_EMPTY = "while no tensor is empty"


@dataclass(frozen=True)
class Proof:
    """0 <= index < dimension is proved for a pair of a call, if what it assumes holds.

    assumes   of: "where the mask holds"; "while q_offset is 0" and "while k_offset is 0" (and so
              for positions of real rows and columns only); "while value is as wide as query";
              "while no tensor is empty"
    """

    assumes: tuple[str, ...]


def lookups_of(program: Program) -> list[Node]:
    """Every lookup and dot of the program, once, in order of use."""
    roots = (
        program.mask,
        program.score,
        program.weights.value,
        program.weights.sink,
        program.output,
    )
    found = (node for root in roots if root is not None for node in find(root, "lookup", "dot"))
    return list(dict.fromkeys(found))


@lru_cache(maxsize=256)  # proofs and warnings ask for the same
def prove(program: Program, node: Node, axis: int) -> Proof | None:
    """The proof with the fewest assumptions that the index of a lookup or dot on an axis is in
    range; None where there is none (which does not say that it is out of range)."""
    index = node.args[axis]
    form = linear(index)
    over = form - linear(program.tensor(node.name).dims[axis]) + number(1)
    names = [name for name in PLACED if name in index.varies]
    mask_facts = _mask_facts(program, node)
    for filled in (False, True):
        for placed in (False, True) if names else (False,):
            for kept in (False, True) if mask_facts else (False,):
                facts = [*_basic_facts(program, node, filled), *(mask_facts if kept else [])]
                prover = Prover(facts, without_offsets=placed)
                if prover.holds(-form) and prover.holds(over):
                    assumed = [WHERE_KEPT] if kept else []
                    assumed += [PLACED[name] for name in names if placed]
                    return Proof((*assumed, *([NOT_EMPTY] if filled else [])))
    return None


def _basic_facts(program: Program, node: Node, filled: bool) -> list[Linear]:
    """No dimension is negative; none is 0 where all tensors are `filled`; a pair has a key."""
    dims = [linear(dim) for tensor in program.tensors for dim in tensor.dims]
    facts = [number(1) - dim if filled else -dim for dim in dims]
    return facts if _is_of_rows(program, node) else [A_KEY, *facts]


PLACED = {
    "q": "while q_offset is 0",
    "k": "while k_offset is 0",
    "d": "while value is as wide as query",
}


def _is_of_rows(program: Program, node: Node) -> bool:
    """Whether a lookup is needed for a row as such: it may have no key, and its pairs be masked."""
    roots = (program.weights.sink, program.output)
    return any(root is not None and node in find(root, node.op) for root in roots)


def _mask_facts(program: Program, node: Node) -> list[Linear]:
    """Linear facts of the mask that a lookup may rely on: none where it is also needed for a
    pair that does not take part, or for a row. Facts that look things up are left out: they may
    themselves be out of range."""
    if _is_of_rows(program, node):
        return []
    if node in find(program.mask, node.op):
        return []
    forms = literals(normal_form(program.mask))
    return [
        f for f in forms if not any(find(atom, "lookup", "dot", "chosen") for atom in f.atoms())
    ]


def is_in_range(program: Program, node: Node, axis: int) -> bool:
    """Whether the index is in range wherever the lookup is needed, for every call. A kernel that
    also evaluates it elsewhere (a masked pair, a row beyond the tensor) must guard it there."""
    proof = prove(program, node, axis)
    return proof is not None and not set(proof.assumes) - {WHERE_KEPT}


def unproved_lookups(program: Program) -> list[tuple[Node, int, Node, str]]:
    """(lookup or dot, axis, dimension, reason) where no proof was found, whatever is assumed."""
    found = []
    for node in lookups_of(program):
        for axis, index in enumerate(node.args):
            if prove(program, node, axis) is None:
                dim = program.tensor(node.name).dims[axis]
                found.append((node, axis, dim, _reason(program, node, index, dim)))
    return found


def assumed_lookups(program: Program) -> list[tuple[Node, int, Node, str]]:
    """Those proved only for calls without offsets, of equal widths or without empty tensors, with
    that as the reason."""
    found = []
    for node in lookups_of(program):
        for axis, dim in enumerate(program.tensor(node.name).dims[: len(node.args)]):
            proof = prove(program, node, axis)
            conditions = [a for a in proof.assumes if a != WHERE_KEPT] if proof else []
            if conditions:
                found.append((node, axis, dim, "in range " + " and ".join(conditions)))
    return found


def _reason(program: Program, node: Node, index: Node, dim: Node) -> str:
    """Which side could not be proved, with the most helpful assumptions."""
    if find(index, "lookup", "dot"):
        return "the index is itself looked up, its values are known only when the program runs"
    facts = [*_basic_facts(program, node, filled=True), *_mask_facts(program, node)]
    prover = Prover(facts, without_offsets=True)
    sides = []
    if not prover.holds(-linear(index)):
        sides.append("below 0")
    if not prover.holds(linear(index) - linear(dim) + number(1)):
        sides.append("beyond the last entry")
    return f"the index may lie {' or '.join(sides)}"
