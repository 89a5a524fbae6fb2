"""The value of an operation on constants, in Python's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from attndsl.ir.nodes import Node, constant, make
from attndsl.ir.ops import INT_OF_FLOAT

Value = bool | int | float
INT64 = range(-(2**63), 2**63)


def floordiv(a: int, b: int) -> int:
    return a // b if b else 0


def floormod(a: int, b: int) -> int:
    return a % b if b else 0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def saturated(function: Callable[[float], int]) -> Callable[[float], int]:
    """The int of a float, within +-INT_OF_FLOAT; NaN gives the lowest. Generators do the same."""

    def apply(x: float) -> int:
        if math.isnan(x):
            return -INT_OF_FLOAT
        return function(max(-INT_OF_FLOAT, min(x, INT_OF_FLOAT)))

    return apply


FOLD: dict[str, Callable[..., Value]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": floordiv,
    "floormod": floormod,
    "floordiv_float": lambda a, b: float(math.floor(a / b)),
    "floormod_float": lambda a, b: a - b * math.floor(a / b),
    "pow": math.pow,
    "neg": lambda a: -a,
    "abs": abs,
    "min": min,
    "max": max,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "where": lambda c, a, b: a if c else b,
    "exp": math.exp,
    "exp2": math.exp2,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "rsqrt": lambda a: 1 / math.sqrt(a),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": sigmoid,
    "relu": lambda a: a if a > 0 else 0.0,
    "softplus": lambda a: max(a, 0.0) + math.log1p(math.exp(-abs(a))),
    "floor": saturated(math.floor),
    "ceil": saturated(math.ceil),
    "round": saturated(round),
    "trunc": saturated(math.trunc),
    "to_float": float,
    "bool_to_int": int,
}


def fold(op: str, args: tuple[Node, ...]) -> Node | None:
    """The constant that an operation on constants gives, or None where Python has no value.

    Overflow, a division by zero and a NaN stay in the program: tensors give them their IEEE value.
    """
    values = [arg.value for arg in args]
    if op in ("min", "max") and any(isinstance(v, float) and math.isnan(v) for v in values):
        return None
    try:
        result = FOLD[op](*values)
    except (ArithmeticError, ValueError):
        return None
    if isinstance(result, int) and not isinstance(result, bool) and result not in INT64:
        return None
    if isinstance(result, float) and math.isnan(result):
        return None
    kind = make(op, *args).kind
    return constant(float(result) if kind == "float" else result)
