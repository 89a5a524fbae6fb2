"""Walking a tree of expressions without recursion, however deep it is."""

from __future__ import annotations

from collections.abc import Iterator

from attndsl.syntax.ast import (
    Binary,
    Call,
    Comparison,
    Conditional,
    Coordinate,
    Expression,
    Lookup,
    Name,
    Unary,
)


def children(expression: Expression) -> tuple[Expression, ...]:
    """The direct parts of an expression, names of functions and tensors included."""
    match expression:
        case Unary(operand=operand):
            return (operand,)
        case Binary(left=left, right=right):
            return (left, right)
        case Comparison(operands=operands):
            return operands
        case Conditional(condition=condition, then=then, otherwise=otherwise):
            return (condition, then, otherwise)
        case Call(function=function, arguments=arguments):
            return (function, *arguments)
        case Coordinate(base=base):
            return (base,)
        case Lookup(tensor=tensor, indices=indices):
            return (tensor, *indices)
    return ()


def names_in(*expressions: Expression) -> Iterator[Name]:
    """Every name that the expressions mention, in the order of the text."""
    stack = list(reversed(expressions))
    while stack:
        expression = stack.pop()
        if isinstance(expression, Name):
            yield expression
        stack.extend(reversed(children(expression)))


def chain(expression: Binary) -> list[Expression]:
    """The operands of a chain of one `and` or `or`: `a and b and c` gives three."""
    operator, operands = expression.operator, []
    stack: list[Expression] = [expression]
    while stack:
        part = stack.pop()
        if isinstance(part, Binary) and part.operator == operator:
            stack += [part.right, part.left]
        else:
            operands.append(part)
    return operands
