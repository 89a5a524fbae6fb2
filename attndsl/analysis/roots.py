"""Integer square roots of scalars, on the safe side where floats are too coarse to be exact."""

from __future__ import annotations

import math

from attndsl.ir.nodes import Node, constant, make

LARGEST_SQUARE = constant(2**60)  # limits of squares beyond it are not solved
UNREACHED = constant(2**32)  # whose square no int64 holds
# sqrt(2**60) in float32, with the rounding of its argument: within this share of the true root.
ROOT_ROUNDING = 2.0**-20


def root_above(limit: Node) -> Node:
    """r >= isqrt(limit), equal to it where a float is near enough; 0 where the limit is negative.

    So x * x <= limit only if -r <= x <= r.

    >>> root_above(constant(24))
    const(4)
    """
    if limit.op == "const":
        return constant(math.isqrt(max(int(limit.value), 0)))
    base = _base_of(limit)
    if base is not None:
        return base
    near, guess = _guesses(limit)
    coarse = make("add", make("floor", make("mul", near, constant(1 + ROOT_ROUNDING))), ONE)
    root = make("where", _is_root(guess, limit), guess, coarse)
    return make("where", make("lt", LARGEST_SQUARE, limit), UNREACHED, root)


def root_below(limit: Node) -> Node:
    """r <= isqrt(limit), equal to it where a float is near enough; -1 where the limit is negative.

    So x * x > limit only if x >= r + 1 or x <= -r - 1.

    >>> root_below(constant(24)), root_below(constant(-3))
    (const(4), const(-1))
    """
    if limit.op == "const":
        return constant(math.isqrt(int(limit.value)) if int(limit.value) >= 0 else -1)
    base = _base_of(limit)
    if base is not None:
        return base
    near, guess = _guesses(limit)
    coarse = make("floor", make("mul", near, constant(1 - ROOT_ROUNDING)))
    coarse = make("max", make("sub", coarse, ONE), ZERO)
    root = make("where", _is_root(guess, limit), guess, coarse)
    return make("where", make("lt", limit, ZERO), constant(-1), root)


ZERO, ONE = constant(0), constant(1)


def _base_of(limit: Node) -> Node | None:
    """|x| where the limit is x * x."""
    if limit.op == "mul" and limit.args[0] is limit.args[1]:
        return make("abs", limit.args[0])
    return None


def _guesses(limit: Node) -> tuple[Node, Node]:
    """The float root of the limit, cut to what is solved, and an int that may be its root."""
    cut = make("max", make("min", limit, LARGEST_SQUARE), ZERO)
    near = make("sqrt", make("to_float", cut))
    guess = make("round", near)
    too_large = make("lt", cut, make("mul", guess, guess))
    return near, make("where", too_large, make("sub", guess, ONE), guess)


def _is_root(guess: Node, limit: Node) -> Node:
    above = make("add", guess, ONE)
    return make(
        "and",
        make("le", make("mul", guess, guess), limit),
        make("lt", limit, make("mul", above, above)),
    )
