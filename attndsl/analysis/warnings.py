"""warnings_of: what is allowed but surely not meant, at the user's own lines."""

from __future__ import annotations

import re

from attndsl.analysis.boxes import Box
from attndsl.analysis.intervals import INT32, int_range
from attndsl.analysis.lookups import unproved_lookups
from attndsl.analysis.predicates import All, Any, Predicate, every, normal_form
from attndsl.analysis.prover import Prover, literals
from attndsl.diagnostics import Diagnostic
from attndsl.ir.nodes import FALSE, Node, scalar, topological
from attndsl.ir.program import Program, Scalar
from attndsl.source import Span

MOST_CASES = 32  # disjunctions taken apart to show that a mask is never true


def warnings_of(program: Program) -> list[Diagnostic]:
    """Warnings W201, W202 and W203, in the order of the text. One without a place is left out."""
    found = [*lookup_warnings(program), *mask_warnings(program), *parameter_warnings(program)]
    return sorted(found, key=lambda d: d.span.start)


def lookup_warnings(program: Program) -> list[Diagnostic]:
    """Lookups that were not proved to be in range: outside a lookup gives 0."""
    found = []
    for node, axis, dim, reason in unproved_lookups(program):
        span = place(program, node)
        if span is not None:
            low, high = int_range(node.args[axis])
            notes = [f"{reason}; dimension {axis} of `{node.name}` is {_words(program, dim)}"]
            if low >= INT32[0] and high <= INT32[1]:
                notes.append(f"all that is known of the index is that it lies in {low} .. {high}")
            index = place(program, node.args[axis])
            text = f"`{index.text}`" if index is not None else f"index {axis}"
            message = f"{text} may fall outside `{node.name}`, where a lookup gives 0"
            hint = "limit it with `clamp(...)`, or with a mask that keeps it inside"
            found.append(Diagnostic("W201", message, span, hint, "", tuple(notes)))
    return found


def _words(program: Program, dim: Node) -> str:
    span = place(program, dim)
    if dim.op in ("size", "scalar"):
        return f"`{dim.name}`"
    if dim.op == "const":
        return f"{dim.value}"
    return f"`{span.text}`" if span is not None else "an expression"


def mask_warnings(program: Program) -> list[Diagnostic]:
    """A mask that no pair can meet."""
    if not is_never_true(program.mask):
        return []
    span = place(program, program.mask) or _declaration(program, program.name)
    if span is None:
        return []
    hint = "every row of the result is 0; look for two conditions that exclude each other"
    return [Diagnostic("W202", "no pair of positions can meet this mask", span, hint)]


def is_never_true(mask: Node) -> bool:
    """Whether it is proved that a mask is false for every pair of every call."""
    part = normal_form(mask)
    if Box((None, None), (None, None)).truth(part).possible is FALSE:
        return True
    return _is_impossible(part, [MOST_CASES])


def _is_impossible(part: Predicate, left: list[int]) -> bool:
    if isinstance(part, Any):
        return all(_is_impossible(p, left) for p in part.parts)
    left[0] -= 1
    if left[0] < 0:
        return False
    if isinstance(part, All):
        if Prover(literals(part)).is_contradictory():
            return True
        split = next((p for p in part.parts if isinstance(p, Any)), None)
        if split is None:
            return False
        rest = [p for p in part.parts if p is not split]
        return all(_is_impossible(every(option, *rest), left) for option in split.parts)
    return any(f.is_constant and f.constant > 0 for f in literals(part))


def parameter_warnings(program: Program) -> list[Diagnostic]:
    """Parameters that no statement uses, nor the grid, nor the shape of a tensor that one uses."""
    used = _used_names(program)
    found = []
    for parameter in program.parameters:
        own = scalar(parameter.name, parameter.kind) if isinstance(parameter, Scalar) else None
        span = (place(program, own) if own else None) or _declaration(program, parameter.name)
        if parameter.name not in used and span is not None:
            message = f"parameter `{parameter.name}` has no effect"
            hint = "remove it, or use it in a statement"
            found.append(Diagnostic("W203", message, span, hint))
    return found


def _used_names(program: Program) -> set[str]:
    roots = [
        program.mask,
        program.score,
        program.weights.value,
        program.weights.sink,
        program.output,
    ]
    if program.grid is not None:
        roots += [*program.grid.extents, program.grid.start]
    used = _names(*(root for root in roots if root is not None))
    for tensor in program.tensors:
        if tensor.name in used:
            used |= _names(*tensor.dims)
    return used


def _names(*roots: Node) -> set[str]:
    return {n.name for n in topological(*roots) if n.op in ("scalar", "lookup", "dot")}


def place(program: Program, node: Node) -> Span | None:
    """Where the user wrote a node."""
    spans = program.origins.get(node)
    return spans[0] if spans else None


def _declaration(program: Program, name: str) -> Span | None:
    """Where a parameter (or the attention itself) is declared."""
    source = next((spans[0].source for spans in program.origins.values() if spans), None)
    if source is None or source.text != program.text:
        return None
    head = re.search(rf"^attention\s+{re.escape(program.name)}\b", source.text, re.MULTILINE)
    if head is None:
        return None
    if name == program.name:
        return Span(source, head.start(), head.end())
    found = re.compile(rf"\b{re.escape(name)}\b(?=\s*:)").search(source.text, head.end())
    return None if found is None else Span(source, found.start(), found.end())
