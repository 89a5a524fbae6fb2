"""Operators of expressions: kinds checked, nodes built."""

from __future__ import annotations

from attndsl.ir.nodes import Node, constant, make
from attndsl.semantics.arithmetic import (
    binary,
    checked,
    comparison,
    is_zero,
    joined,
    negative,
    promote,
)
from attndsl.semantics.checker import Checker, Step
from attndsl.semantics.findings import shown
from attndsl.semantics.scope import Scope
from attndsl.semantics.types import WRONG, describe
from attndsl.semantics.walk import chain
from attndsl.syntax.ast import Binary, Boolean, Comparison, Conditional, Number, Unary


def number_step(checker: Checker, expression: Number, scope: Scope) -> Step:
    yield from ()
    value = expression.value
    if isinstance(value, float):
        return constant(value)
    return checker.built(expression, scope, lambda: checked(value))


def boolean_step(checker: Checker, expression: Boolean, scope: Scope) -> Step:
    yield from ()
    return constant(expression.value)


def unary_step(checker: Checker, expression: Unary, scope: Scope) -> Step:
    operator, operand = expression.operator, expression.operand
    value = yield operand, scope
    if operator == "not":
        node = checker.boolean(value, operand, scope, "`not` takes a bool", "not {}")
        return WRONG if node is None else make("not", node)
    node = checker.number(value, operand, scope, f"`{operator}` takes a number")
    if node is None:
        return WRONG
    return checker.built(expression, scope, lambda: node if operator == "+" else negative(node))


def binary_step(checker: Checker, expression: Binary, scope: Scope) -> Step:
    operator = expression.operator
    if operator in ("and", "or"):
        return (yield from junction(checker, expression, scope))
    a = yield expression.left, scope
    b = yield expression.right, scope
    what = f"`{operator}` takes numbers"
    left = checker.number(a, expression.left, scope, what)
    right = checker.number(b, expression.right, scope, what)
    if left is None or right is None:
        return WRONG
    if operator in ("/", "//", "%") and is_zero(right):
        divisor = shown(expression.right.span)
        which = "" if isinstance(expression.right, Number) else f": `{divisor}` is 0"
        message = f"`{shown(expression.span)}` divides by zero{which}"
        return checker.report("E113", expression.span, scope, message)
    is_literal = isinstance(expression.right, Number)
    return checker.built(expression, scope, lambda: binary(operator, left, right, is_literal))


def junction(checker: Checker, expression: Binary, scope: Scope) -> Step:
    found: list[Node | None] = []
    for operand in chain(expression):
        value = yield operand, scope
        what = f"`{expression.operator}` takes bools"
        found.append(checker.boolean(value, operand, scope, what))
    nodes = [node for node in found if node is not None]
    return joined(expression.operator, nodes) if len(nodes) == len(found) else WRONG


def comparison_step(checker: Checker, expression: Comparison, scope: Scope) -> Step:
    found: list[Node | None] = []
    for operand in expression.operands:
        value = yield operand, scope
        found.append(checker.node(value, operand, scope))
    pairs: list[Node] = []
    for i, operator in enumerate(expression.operators):
        left, right = found[i], found[i + 1]
        if left is None or right is None:
            continue
        if "bool" in (left.kind, right.kind) and not (
            left.kind == right.kind and operator in ("==", "!=")
        ):
            report_comparison(checker, expression, i, left, right, scope)
        else:
            pairs.append(comparison(operator, left, right))
            checker.note_origin(pairs[-1], expression.span, scope)
    return joined("and", pairs) if len(pairs) == len(expression.operators) else WRONG


def report_comparison(
    checker: Checker, expression: Comparison, i: int, left: Node, right: Node, scope: Scope
) -> None:
    operator = expression.operators[i]
    a, b = expression.operands[i : i + 2]
    span = expression.span if len(expression.operators) == 1 else a.span.to(b.span)
    if left.kind == right.kind:
        message, hint = f"`{operator}` compares numbers, but both sides are bools", ""
    else:
        sides = f"`{shown(a.span)}` is {describe(left)} and `{shown(b.span)}` {describe(right)}"
        message = f"`{operator}` compares two values of one kind, but {sides}"
        side, other = (a, b) if left.kind == "bool" else (b, a)
        hint = f"write `int({shown(side.span)})` to compare it with `{shown(other.span)}`"
    checker.report("E104", span, scope, message, hint)


def conditional_step(checker: Checker, expression: Conditional, scope: Scope) -> Step:
    value = yield expression.condition, scope
    condition = checker.boolean(
        value, expression.condition, scope, "the condition after `if` must be a bool"
    )
    a = yield expression.then, scope
    b = yield expression.otherwise, scope
    then = checker.node(a, expression.then, scope)
    otherwise = checker.node(b, expression.otherwise, scope)
    if condition is None or then is None or otherwise is None:
        return WRONG
    if (then.kind == "bool") != (otherwise.kind == "bool"):
        message = (
            f"both values of a choice must be bools or both numbers, but "
            f"`{shown(expression.then.span)}` is {describe(then)} and "
            f"`{shown(expression.otherwise.span)}` {describe(otherwise)}"
        )
        return checker.report("E104", expression.span, scope, message)
    if then.kind != "bool":
        then, otherwise = promote(then, otherwise)
    return make("where", condition, then, otherwise)
