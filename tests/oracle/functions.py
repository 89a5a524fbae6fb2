"""The operators and functions of the language on 1-D float64, int64 and bool vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def is_float(x: Tensor) -> bool:
    return x.dtype == torch.float64


def is_bool(x: Tensor) -> bool:
    return x.dtype == torch.bool


def as_float(x: Tensor) -> Tensor:
    return x if is_float(x) else x.to(torch.float64)


def join(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as floats where either is one; ints stay ints."""
    assert is_bool(a) == is_bool(b), "booleans are not numbers"
    if is_float(a) != is_float(b):
        return as_float(a), as_float(b)
    return a, b


def floor_divide(a: Tensor, b: Tensor) -> Tensor:
    a, b = join(a, b)
    if is_float(a):
        return torch.floor((a / b).detach())
    safe = torch.where(b == 0, torch.ones_like(b), b)
    return torch.where(b == 0, torch.zeros_like(a), torch.div(a, safe, rounding_mode="floor"))


def modulo(a: Tensor, b: Tensor) -> Tensor:
    a, b = join(a, b)
    if is_float(a):
        return a - b * floor_divide(a, b)
    return torch.where(b == 0, torch.zeros_like(a), a - b * floor_divide(a, b))


def power(a: Tensor, b: Tensor, literal: int | None) -> Tensor:
    """`literal` is the exponent where it is an int literal."""
    if literal is not None and literal >= 0 and not is_float(a):
        result = torch.ones_like(a)
        for _ in range(literal):
            result = result * a
        return result
    if literal is not None:
        return as_float(a) ** literal
    return as_float(a) ** as_float(b)


def compare(operator: str, a: Tensor, b: Tensor) -> Tensor:
    if is_bool(a) or is_bool(b):
        assert is_bool(a) and is_bool(b) and operator in ("==", "!=")
    else:
        a, b = join(a, b)
    table: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "<": torch.lt,
        "<=": torch.le,
        ">": torch.gt,
        ">=": torch.ge,
        "==": torch.eq,
        "!=": torch.ne,
    }
    return table[operator](a.detach(), b.detach())


def maximum(*values: Tensor) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.maximum(*join(result, value))
    return result


def minimum(*values: Tensor) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.minimum(*join(result, value))
    return result


def to_int(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    if is_float(x):
        return rounding(x.detach()).to(torch.int64)
    return x.to(torch.int64)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow."""
    return torch.logaddexp(as_float(x), torch.zeros_like(as_float(x)))


FLOAT_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
}

INT_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,  # ties to even, as Python's
    "int": torch.trunc,
}


def call(name: str, arguments: list[Tensor]) -> Tensor:
    """A function of the language applied to its arguments."""
    if name in FLOAT_FUNCTIONS:
        (x,) = arguments
        return FLOAT_FUNCTIONS[name](as_float(x))
    if name in INT_FUNCTIONS:
        (x,) = arguments
        return to_int(x, INT_FUNCTIONS[name])
    if name == "float":
        (x,) = arguments
        return as_float(x)
    if name == "abs":
        (x,) = arguments
        return torch.abs(x)
    if name == "relu":
        (x,) = arguments
        return torch.relu(x)
    if name == "max":
        return maximum(*arguments)
    if name == "min":
        return minimum(*arguments)
    if name == "clamp":
        x, low, high = arguments
        return minimum(maximum(x, low), high)
    raise AssertionError(f"the language has no function {name}")


CONSTANTS: dict[str, float] = {"inf": math.inf, "pi": math.pi}
