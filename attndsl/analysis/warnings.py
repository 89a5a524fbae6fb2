"""warnings_of: what is allowed but surely not meant, at the user's own lines."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import reduce

from attndsl.analysis.boxes import Box
from attndsl.analysis.implications import is_impossible, opened, opposite
from attndsl.analysis.intervals import INT32, int_range
from attndsl.analysis.lookups import unproved_lookups
from attndsl.analysis.predicates import (
    ALWAYS,
    NEVER,
    All,
    Any,
    Choice,
    Literal,
    Predicate,
    every,
    normal_form,
    normal_forms,
    some,
)
from attndsl.analysis.samples import samples
from attndsl.diagnostics import Diagnostic
from attndsl.ir.nodes import FALSE, TRUE, Node, chosen, find, make, scalar, substitute, topological
from attndsl.ir.program import Program, Scalar
from attndsl.source import Span


def warnings_of(program: Program) -> list[Diagnostic]:
    """Warnings W201 to W204 and W206, in the order of the text. One without a place is left out.
    Of lookups in selects nothing is said: what is outside of tables of blocks gives 0."""
    found = [*lookup_warnings(program), *mask_warnings(program), *parameter_warnings(program)]
    found += select_warnings(program)
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
    """A mask that no pair can meet; else parts of it that are the same for every pair."""
    if is_never_true(program.mask):
        return unsatisfiable(program)
    return [] if program.mask.op == "const" else idle_parts(program)


def unsatisfiable(program: Program) -> list[Diagnostic]:
    """W202 at the last of a few parts that exclude each other."""
    hint = "every row of the result is 0; look for two conditions that exclude each other"
    core = conflict(program.mask)
    spans = [place(program, part) for part in core]
    placed = sorted({span for span in spans if span is not None}, key=lambda span: span.start)
    if len(placed) < len(core) or len(core) == len(conjuncts(program.mask)) == 1:
        span = place(program, program.mask) or declaration(program, program.name)
        message = "no pair of positions can meet this mask"
        return [Diagnostic("W202", message, span, hint)] if span is not None else []
    *others, last = placed
    message = "no pair of positions can meet this part of the mask"
    if not others:
        return [Diagnostic("W202", message, last, hint)]
    notes = [f"the part of line {_line(other)} excludes it: `{other.text}`" for other in others]
    if len(others) > 1:
        notes = [f"these exclude it together: {', '.join(f'`{other.text}`' for other in others)}"]
    return [Diagnostic("W202", f"{message} and the others", last, hint, "", tuple(notes))]


def _line(span: Span) -> int:
    return span.source.position(span.start)[0]


def conjuncts(mask: Node) -> list[Node]:
    """The operands of nested conjunctions, in order."""
    if mask.op != "and":
        return [mask]
    return [part for arg in mask.args for part in conjuncts(arg)]


def conflict(mask: Node) -> list[Node]:
    """Parts of a mask that is never true which exclude each other; none of them can be spared."""
    core = list(dict.fromkeys(conjuncts(mask)))
    for part in list(core):
        rest = [other for other in core if other is not part]
        if rest and is_never_true(reduce(lambda x, y: make("and", x, y), rest)):
            core = rest
    return core


def idle_parts(program: Program) -> list[Diagnostic]:
    """W204: the largest parts of the mask that hold for every pair, or for none."""
    found: list[Diagnostic] = []
    waiting, seen = [program.mask], set[Node]()
    while waiting:
        part = waiting.pop()
        if part in seen or part.kind != "bool" or part.op == "const":
            continue
        seen.add(part)
        always = is_always_true(part)
        if not always and not is_never_true(part):
            if part.op in ("and", "or", "not", "where"):
                waiting += part.args
            continue
        span = place(program, part)
        if span is not None and not _mentions_const(program, span):
            what = "every pair" if always else "no pair"
            message = f"this part of the mask is true for {what}"
            hint = "it has no effect: remove it, or write what it should say"
            found.append(Diagnostic("W204", message, span, hint))
    return found


def _mentions_const(program: Program, span: Span) -> bool:
    """Whether a const decides it: what says nothing for one value may do so for another."""
    names = "|".join(re.escape(name) for name, _ in program.consts)
    return bool(names) and re.search(rf"\b({names})\b", span.text) is not None


def is_never_true(mask: Node) -> bool:
    """Whether it is proved that a mask is false for every pair of every call."""
    if any(value for (value,) in samples([mask])):
        return False
    part = normal_form(mask)
    if Box((None, None), (None, None)).truth(part).possible is FALSE:
        return True
    return is_impossible(part)


def is_always_true(mask: Node) -> bool:
    """Whether it is proved that a mask is true for every pair of every call."""
    if not all(value for (value,) in samples([mask])):
        return False
    positive, negative = normal_forms(mask)
    if Box((None, None), (None, None)).truth(positive).certain is TRUE:
        return True
    return is_impossible(negative)


def select_warnings(program: Program) -> list[Diagnostic]:
    """W206: selects that the mask does not mention."""
    used = {node.name for node in find(program.mask, "chosen")}
    found = []
    for select in program.selects:
        span = place(program, chosen(select.name))
        if select.name not in used and span is not None:
            message = f"no mask depends on what `{select.name}` chooses"
            hint = f"write for example `mask {select.name}`, or remove the select"
            found.append(Diagnostic("W206", message, span, hint))
    return found


def parameter_warnings(program: Program) -> list[Diagnostic]:
    """Parameters that no statement uses, nor the grid, nor the shape of a tensor that one uses; and
    those that the mask alone uses, without a pair that depends on them."""
    used = _used_names(program)
    others = _used_names(replace(program, mask=TRUE))
    is_satisfiable = not is_never_true(program.mask)
    found = []
    for parameter in program.parameters:
        own = scalar(parameter.name, parameter.kind) if isinstance(parameter, Scalar) else None
        span = declaration(program, parameter.name) or (place(program, own) if own else None)
        notes: tuple[str, ...] = ()
        if parameter.name in used:
            if parameter.name in others or not is_satisfiable:
                continue
            if not is_independent(program.mask, parameter.name):
                continue
            notes = ("whatever its value, the mask keeps the same pairs",)
        if span is not None:
            message = f"parameter `{parameter.name}` has no effect"
            hint = "remove it, or use it in a statement"
            found.append(Diagnostic("W203", message, span, hint, "", notes))
    return found


def is_independent(mask: Node, name: str) -> bool:
    """Whether it is proved that no pair of a mask depends on a parameter.

    In normal form nothing is negated: the mask lies between itself with all that mentions the
    parameter false, and itself with all of that true.
    """
    parameters = (n for n in topological(mask) if n.op in ("scalar", "lookup") and n.name == name)
    other = {node: renamed(node) for node in parameters}
    if any(one != two for one, two in samples([mask, substitute(mask, other)])):
        return False
    part = normal_form(mask)
    least, most = _without(part, name, NEVER), _without(part, name, ALWAYS)
    return is_impossible(every(most, opposite(least)))


def renamed(node: Node) -> Node:
    """A scalar or lookup of the same kind that no program has."""
    return make(node.op, *node.args, attr=f"other {node.name}", kind=node.kind)


def _without(part: Predicate, name: str, instead: Predicate) -> Predicate:
    """A predicate with `instead` for every comparison that mentions a parameter."""
    if isinstance(part, (All, Any)):
        parts = [_without(p, name, instead) for p in part.parts]
        return every(*parts) if isinstance(part, All) else some(*parts)
    if isinstance(part, Choice):
        return _without(opened(part), name, instead)
    roots = tuple(part.form.atoms()) if isinstance(part, Literal) else (part.node,)
    return instead if name in _names(*roots) else part


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
    for select in program.selects:
        roots += [select.rows, select.columns, select.rank, select.where, select.limit]
    used = _names(*(root for root in roots if root is not None))
    used |= {select.given for select in program.selects}
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


def declaration(program: Program, name: str) -> Span | None:
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
