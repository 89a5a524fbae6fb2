"""Operators on typed nodes: ints promoted to floats, powers, checked folding of int constants."""

from __future__ import annotations

import math
from functools import reduce

from attndsl.ir.nodes import Node, constant, make

INT64_MAX = 2**63 - 1
LARGEST_INT_EXPONENT = 64  # x ** n with more would be out of int64's range for any |x| > 1
LARGEST_FLOAT_EXPONENT = 8  # up to here x ** n is a product, which is exact in sign and derivative


class WrongConstant(Exception):
    """A constant that no program may hold; the caller knows the place."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def checked(value: int) -> Node:
    """The constant, if int64 can hold it."""
    if abs(value) > INT64_MAX:
        raise out_of_range()
    return constant(value)


def out_of_range() -> WrongConstant:
    return WrongConstant(
        "E006",
        "this int constant is out of range: the largest is 2 ** 63 - 1",
        "write a float, for example `1e20`",
    )


def int_value(node: Node) -> int | None:
    """The value of an int constant, else None."""
    if node.op == "const" and node.kind == "int" and isinstance(node.attr, int):
        return int(node.attr)
    return None


def to_float(node: Node) -> Node:
    """The number as a float node.

    >>> to_float(constant(2))
    const(2.0)
    """
    if node.kind == "float":
        return node
    value = int_value(node)
    return constant(float(value)) if value is not None else make("to_float", node)


def promote(*nodes: Node) -> tuple[Node, ...]:
    """Numbers of one kind: floats if any is a float."""
    if any(node.kind == "float" for node in nodes):
        return tuple(to_float(node) for node in nodes)
    return nodes


def binary(operator: str, left: Node, right: Node, is_literal: bool = False) -> Node:
    """`left operator right` for two numbers and one of `+ - * / // % **`.

    `is_literal`: the right side is written as a number, which decides the kind of a power.

    Raises WrongConstant for a literal zero divisor, an exponent that is too large, or int
    constants whose result int64 cannot hold.
    """
    if operator == "**":
        return power(left, right, is_literal)
    if operator in ("/", "//", "%") and is_zero(right):
        raise WrongConstant("E113", "division by zero")
    if operator == "/":
        return make("div", to_float(left), to_float(right))
    left, right = promote(left, right)
    a, b = int_value(left), int_value(right)
    if a is not None and b is not None:
        folded = {"+": a + b, "-": a - b, "*": a * b}
        if operator in folded:
            return checked(folded[operator])
        return checked(a // b if operator == "//" else a % b)
    if operator in ("//", "%"):
        op = "floordiv" if operator == "//" else "floormod"
        return make(op if left.kind == "int" else f"{op}_float", left, right)
    return make({"+": "add", "-": "sub", "*": "mul"}[operator], left, right)


def is_zero(node: Node) -> bool:
    return node.op == "const" and node.kind != "bool" and node.attr == 0


def power(base: Node, exponent: Node, is_literal: bool) -> Node:
    """`base ** exponent`: an int for int and non-negative int literal, else a float.

    A float power with a small whole constant is written as a product.
    """
    literal = int_value(exponent)
    if is_literal and base.kind == "int" and literal is not None and literal >= 0:
        return int_power(base, literal)
    number = int_value(base)
    if number is not None and literal is not None and not fits_float(number, literal):
        raise out_of_range()
    base = to_float(base)
    if literal is None and exponent.op == "const" and exponent.kind == "float":
        value = float(exponent.value)
        literal = int(value) if math.isfinite(value) and value.is_integer() else None
    if literal is None or abs(literal) > LARGEST_FLOAT_EXPONENT:
        return make("pow", base, to_float(exponent))
    product = repeated(base, abs(literal))
    return product if literal >= 0 else make("div", constant(1.0), product)


def fits_float(base: int, exponent: int) -> bool:
    """Whether a power of two ints is a finite float."""
    try:
        math.pow(base, exponent)
    except OverflowError:
        return False
    except ValueError:  # 0 ** -1: a division by zero, which floats have
        return True
    return True


def int_power(base: Node, exponent: int) -> Node:
    value = int_value(base)
    if value is not None:
        if abs(value) > 1 and exponent > 63:  # never computed: it may have a billion digits
            raise out_of_range()
        if abs(value) <= 1:
            exponent = min(exponent, 2 + exponent % 2)  # -1, 0, 1: only the parity counts
        return checked(value**exponent)
    if exponent > LARGEST_INT_EXPONENT:
        raise WrongConstant(
            "E113",
            f"the exponent {exponent} is too large: an int is raised to at most "
            f"{LARGEST_INT_EXPONENT}",
            "make the base a float: `float(x) ** n`",
        )
    return repeated(base, exponent)


def repeated(base: Node, times: int) -> Node:
    """The product of `times` factors, by squaring.

    >>> repeated(constant(3.0), 0)
    const(1.0)
    """
    if times == 0:
        return constant(1) if base.kind == "int" else constant(1.0)
    half = base if times == 1 else repeated(base, times // 2)
    if times == 1:
        return base
    square = make("mul", half, half)
    return make("mul", square, base) if times % 2 else square


def negative(node: Node) -> Node:
    value = int_value(node)
    if value is not None:
        return checked(-value)
    if node.op == "const":
        return constant(-float(node.value))
    return make("neg", node)


def comparison(operator: str, left: Node, right: Node) -> Node:
    """`left operator right`; `>` and `>=` are turned around."""
    if left.kind != "bool":
        left, right = promote(left, right)
    if operator in (">", ">="):
        left, right = right, left
    op = {"<": "lt", ">": "lt", "<=": "le", ">=": "le", "==": "eq", "!=": "ne"}[operator]
    return make(op, left, right)


def extreme(op: str, nodes: list[Node]) -> Node:
    """The `min` or `max` of several numbers."""
    return reduce(lambda a, b: make(op, a, b), promote(*nodes))


def joined(op: str, nodes: list[Node]) -> Node:
    """All of `nodes` under `and` or `or`, as a balanced tree: a long chain does not nest deeply."""
    while len(nodes) > 1:
        pairs = [
            make(op, nodes[i], nodes[i + 1]) if i + 1 < len(nodes) else nodes[i]
            for i in range(0, len(nodes), 2)
        ]
        nodes = pairs
    return nodes[0]
