"""An expression's tree becomes a node: the table of steps and the loop that drives them."""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.ir.nodes import Node, topological
from attndsl.semantics import calls, operators, vectors
from attndsl.semantics.checker import Checker, Step
from attndsl.semantics.findings import Findings
from attndsl.semantics.scope import Scope
from attndsl.semantics.types import WRONG, Value
from attndsl.source import Span
from attndsl.syntax.ast import (
    Binary,
    Boolean,
    Call,
    Comparison,
    Conditional,
    Coordinate,
    Expression,
    Lookup,
    Name,
    Number,
    Unary,
)

MAX_DEPTH = 100  # operations from a leaf to the root: generated text nests as deeply


def lower(checker: Checker, expression: Expression, scope: Scope) -> Value:
    """The value of an expression; WRONG where an error was reported."""
    stack: list[tuple[Expression, Scope, Step]] = []
    request: tuple[Expression, Scope] | None = (expression, scope)
    value: Value = WRONG
    while request is not None or stack:
        try:
            if request is not None:
                stack.append((*request, start(checker, *request)))
                request = next(stack[-1][2])
            else:
                request = stack[-1][2].send(value)
        except StopIteration as stop:
            value = stop.value
            done, its_scope, _ = stack.pop()
            checker.note_origin(value, done.span, its_scope)
            request = None
    return value


def start(checker: Checker, expression: Expression, scope: Scope) -> Step:
    if scope.use is not None:
        checker.expansion += 1
    match expression:
        case Number():
            return operators.number_step(checker, expression, scope)
        case Boolean():
            return operators.boolean_step(checker, expression, scope)
        case Unary():
            return operators.unary_step(checker, expression, scope)
        case Binary():
            return operators.binary_step(checker, expression, scope)
        case Comparison():
            return operators.comparison_step(checker, expression, scope)
        case Conditional():
            return operators.conditional_step(checker, expression, scope)
        case Name():
            return calls.name_step(checker, expression, scope)
        case Coordinate():
            return calls.coordinate_step(checker, expression, scope)
        case Call() if vectors.is_of_vectors(expression, scope):
            return vectors.vector_step(checker, expression, scope)
        case Call():
            return calls.call_step(checker, expression, scope)
        case Lookup():
            return calls.lookup_step(checker, expression, scope)
    raise TypeError(f"not an expression: {type(expression).__name__}")


def depth(roots: Iterable[Node]) -> int:
    """Operations on the longest way from a leaf to one of the roots."""
    levels: dict[Node, int] = {}
    for node in topological(*roots):
        levels[node] = 1 + max((levels[arg] for arg in node.args), default=0)
    return max(levels.values(), default=0)


def bounded(findings: Findings, node: Node, span: Span) -> Node | None:
    """The node, unless it is nested too deeply to be written out, which is reported."""
    levels = depth([node])
    if levels <= MAX_DEPTH:
        return node
    findings.report(
        "E005",
        span,
        f"this is nested {levels} operations deep; at most {MAX_DEPTH} are allowed",
        "put brackets around groups of terms: `(a + b) + (c + d)` nests less than `a + b + c + d`",
    )
    return None
