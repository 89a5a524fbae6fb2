"""Vectors in the rank of a select: pooled queries and keys, and `dot` and `sum` of them.

A vector is a node that varies with `d`, so the operators of the language work on its elements.
"""

from __future__ import annotations

from attndsl.ir.nodes import Node, make, pooled, total
from attndsl.semantics.arithmetic import to_float
from attndsl.semantics.calls import report_arity
from attndsl.semantics.checker import Checker, Step
from attndsl.semantics.findings import shown
from attndsl.semantics.scope import Scope
from attndsl.semantics.types import WRONG, Value, Vector, Wrong, describe
from attndsl.syntax.ast import Call, Expression

SIGNATURES = {
    "mean": "mean(query)",
    "max": "max(query)",
    "min": "min(query)",
    "sum": "sum(x)",
    "dot": "dot(x, y)",
}


def is_of_vectors(call: Call, scope: Scope) -> bool:
    """Whether a call is one of this file's: `max` and `min` are, of one argument. A name that the
    user defined stays the user's."""
    name = call.function.name
    if name not in SIGNATURES or name in scope.symbols or name in scope.module.visible:
        return False
    if name in ("max", "min"):
        return len(call.arguments) == 1
    return scope.context.place.has_vectors


def vector_step(checker: Checker, call: Call, scope: Scope) -> Step:
    name = call.function.name
    values: list[Value] = []
    for argument in call.arguments:
        values.append((yield argument, scope))
    wanted = 2 if name == "dot" else 1
    if len(values) != wanted:
        return report_arity(checker, call, SIGNATURES[name], str(wanted), scope)
    if name in ("mean", "max", "min"):
        return pool(checker, call, values[0], scope)
    vectors = [
        vector(checker, name, value, argument, scope)
        for value, argument in zip(values, call.arguments, strict=True)
    ]
    known = [node for node in vectors if node is not None]
    if len(known) < wanted:
        return WRONG
    return total(make("mul", *known) if name == "dot" else known[0])


def pool(checker: Checker, call: Call, value: Value, scope: Scope) -> Value:
    """`mean`, `max` or `min` over the rows of a block."""
    name, text = call.function.name, shown(call.span)
    if isinstance(value, Wrong):
        return WRONG
    if not isinstance(value, Vector):
        if isinstance(value, Node) and "d" in value.varies or name == "mean":
            message = f"`{name}` pools `query` or `key`, not `{shown(call.arguments[0].span)}`"
            hint = f"pool first, as in `2 * {name}(query)`"
            return checker.report("E115", call.arguments[0].span, scope, message, hint)
        return report_arity(checker, call, f"{name}(a, b)", "2 or more", scope)
    here = scope.context.place
    if not here.has_vectors:
        message = f"`{text}` is not available in {here.name}"
        hint = "pooling stands in the `rank` of a `select`"
        return checker.report("E106", call.span, scope, message, hint)
    if value.name == "value":
        return checker.report_vector(value, call.arguments[0].span, scope)
    return pooled(f"{value.name}_{name}")


def vector(
    checker: Checker, name: str, value: Value, argument: Expression, scope: Scope
) -> Node | None:
    """An argument of `dot` or `sum` as a float node that varies with d."""
    node = checker.number(value, argument, scope, f"`{name}` takes vectors of numbers")
    if node is None:
        return None
    if "d" not in node.varies:
        text = shown(argument.span)
        message = f"`{name}` takes vectors, but `{text}` is {describe(node)}"
        hint = "a vector is made of `mean(query)`, `max(key)`, ... or of `t[...]` over `D`"
        checker.report("E115", argument.span, scope, message, hint)
        return None
    return to_float(node)
