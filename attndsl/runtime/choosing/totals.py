"""Sums over the head dimension as products of matrices: what can be one is found here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce

from attndsl.ir.nodes import Node, constant, make

NOUGHT, ONE = constant(0.0), constant(1.0)


@dataclass(frozen=True)
class Product:
    """sign * the sum over d of x * y, where x does not vary with j, and y not with i.

    is_bounded  whether that is so for finite x and y only
    """

    sign: int
    x: Node
    y: Node
    is_bounded: bool = False


@lru_cache(maxsize=256)
def products_of(node: Node, sign: int = 1) -> tuple[Product, ...] | None:
    """Products whose sum is the sum over d of a node; None where it is not made of such."""
    if "i" not in node.varies or "j" not in node.varies:
        return None  # a row or a column: small, and needs none
    match node.op:
        case "add" | "sub":
            first = products_of(node.args[0], sign)
            second = products_of(node.args[1], sign if node.op == "add" else -sign)
            return None if first is None or second is None else (*first, *second)
        case "neg":
            return products_of(node.args[0], -sign)
        case "max" | "min":
            return bounds_of(node, sign)
        case "mul":
            sides = sides_of(factors_of(node))
            return None if sides is None else (Product(sign, *sides),)
    return None


def bounds_of(node: Node, sign: int) -> tuple[Product, ...] | None:
    """max(x * a, x * b) is max(a, b) times what x has above 0 and min(a, b) times what it has
    below; min the other way round."""
    first, second = (factors_of(arg) for arg in node.args)
    shared = [factor for factor in first if factor in second]
    rests = [[f for f in factors if f not in shared] for factors in (first, second)]
    if not shared or not all(rests):
        return None
    if len(shared) + len(rests[0]) != len(first) or len(shared) + len(rests[1]) != len(second):
        return None  # a factor stands there twice
    x, a, b = (multiplied(factors) for factors in (shared, *rests))
    other = "min" if node.op == "max" else "max"
    pairs = ((make("max", x, NOUGHT), node.op), (make("min", x, NOUGHT), other))
    found = []
    for part, op in pairs:
        sides = sides_of([part, make(op, a, b)])
        if sides is None:
            return None
        found.append(Product(sign, *sides, is_bounded=True))
    return tuple(found)


def factors_of(node: Node) -> list[Node]:
    if node.op == "mul":
        return [*factors_of(node.args[0]), *factors_of(node.args[1])]
    return [node]


def sides_of(factors: list[Node]) -> tuple[Node, Node] | None:
    """The factors of rows and those of columns; what varies with neither goes to the rows."""
    columns = [factor for factor in factors if "j" in factor.varies]
    rows = [factor for factor in factors if "j" not in factor.varies]
    if any("i" in factor.varies for factor in columns):
        return None
    return multiplied(rows), multiplied(columns)


def multiplied(factors: list[Node]) -> Node:
    return reduce(lambda a, b: make("mul", a, b), factors) if factors else ONE
