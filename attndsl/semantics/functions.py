"""The functions of the language: their arity and the nodes that they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attndsl.ir.nodes import Node, constant, make
from attndsl.semantics.arithmetic import extreme, promote, to_float

Build = Callable[[list[Node]], Node]


@dataclass(frozen=True)
class Function:
    """`arguments` names them, for messages; `takes_more` allows any further ones."""

    arguments: tuple[str, ...]
    build: Build
    takes_more: bool = False
    takes_bool: bool = False

    def takes(self, count: int) -> bool:
        return count == len(self.arguments) or self.takes_more and count > len(self.arguments)


def float_function(op: str) -> Function:
    return Function(("x",), lambda args: make(op, to_float(args[0])))


def rounding(op: str) -> Function:
    """floor, ceil, round: an int stays what it is."""
    return Function(("x",), lambda args: args[0] if args[0].kind == "int" else make(op, args[0]))


def clamp(args: list[Node]) -> Node:
    x, low, high = promote(*args)
    return make("min", make("max", x, low), high)


def relu(args: list[Node]) -> Node:
    x = args[0]
    return make("relu", x) if x.kind == "float" else make("max", x, constant(0))


def to_int(args: list[Node]) -> Node:
    x = args[0]
    return x if x.kind == "int" else make("bool_to_int" if x.kind == "bool" else "trunc", x)


def from_any_to_float(args: list[Node]) -> Node:
    return to_float(to_int(args) if args[0].kind == "bool" else args[0])


FLOAT_OPS = (
    "exp exp2 log log2 sqrt rsqrt sin cos tanh erf sigmoid softplus"  # one float to one float
).split()

FUNCTIONS: dict[str, Function] = {
    "abs": Function(("x",), lambda args: make("abs", args[0])),
    "min": Function(("a", "b"), lambda args: extreme("min", args), takes_more=True),
    "max": Function(("a", "b"), lambda args: extreme("max", args), takes_more=True),
    "clamp": Function(("x", "low", "high"), clamp),
    **{name: float_function(name) for name in FLOAT_OPS},
    "relu": Function(("x",), relu),
    "floor": rounding("floor"),
    "ceil": rounding("ceil"),
    "round": rounding("round"),
    "int": Function(("x",), to_int, takes_bool=True),
    "float": Function(("x",), from_any_to_float, takes_bool=True),
}

FUNCTION_NAMES = frozenset(FUNCTIONS) | {"dot"}
