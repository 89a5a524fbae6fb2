"""The derivative of a float expression by one of its inputs.

Branches stay branches: the derivative of `a if c else b` is `a' if c else b'`, never a product with
a condition, so that an infinity in the branch not taken cannot become NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attndsl.ir.nodes import Node, constant, is_const, make, topological
from attndsl.transform.simplify import build

MOST_FACTORS = 16
ZERO, HALF, ONE, TWO = constant(0.0), constant(0.5), constant(1.0), constant(2.0)


def differentiate(root: Node, by: Node) -> Node:
    """d root / d by, where `by` is a node below the root (the score, `out`, a lookup, a dot).

    >>> from attndsl.ir.nodes import SCORE
    >>> differentiate(make("mul", SCORE, SCORE), SCORE)
    add(score(), score())
    """
    slopes: dict[Node, Node] = {}
    for node in topological(root):
        if node is by:
            slopes[node] = ONE
        elif not node.args or node.kind != "float" or node.op in ("lookup", "dot"):
            slopes[node] = ZERO
        else:
            given = tuple(slopes[arg] for arg in node.args)
            slopes[node] = ZERO if all(s is ZERO for s in given) else RULES[node.op](node, *given)
    return slopes[root]


def plus(a: Node, b: Node) -> Node:
    return b if a is ZERO else a if b is ZERO else build("add", a, b)


def minus(a: Node, b: Node) -> Node:
    if b is ZERO:
        return a
    return build("neg", b) if a is ZERO else build("sub", a, b)


def choose(condition: Node, a: Node, b: Node) -> Node:
    return build("where", condition, a, b)


def times(a: Node, b: Node) -> Node:
    """A product of which at least one side is a slope, with structural zeros left out.

    A slope that is 0 on one branch selects: `a * (s if c else 0)` becomes `a * s if c else 0`, for
    a may be infinite where the branch is not taken (the slope of a square root at 0).
    Factors of scalars cancel: `cap * (x / cap)` becomes x if cap varies with nothing but b and h.
    Here alone: a derivative is ours to shorten, the user's own expression is not.
    """
    if a is ZERO or b is ZERO:
        return ZERO
    for x, y in ((a, b), (b, a)):
        if may_vanish(y):
            condition, then, other = y.args
            return choose(condition, times(x, then), times(x, other))
    return product(*(x + y for x, y in zip(factors(a), factors(b), strict=True)))


def over(a: Node, b: Node) -> Node:
    """A quotient whose dividend is a slope, in the same way."""
    if a is ZERO:
        return ZERO
    if may_vanish(a):
        condition, then, other = a.args
        return choose(condition, over(then, b), over(other, b))
    (above, below), (above_b, below_b) = factors(a), factors(b)
    return product(above + below_b, below + above_b)


def may_vanish(node: Node) -> bool:
    """Whether a node is a choice with a branch that is exactly 0."""
    while node.op == "where":
        if node.args[1] is ZERO or node.args[2] is ZERO:
            return True
        node = node.args[2]
    return False


def factors(node: Node) -> tuple[list[Node], list[Node]]:
    """The factors above and below the line of a product, at most `MOST_FACTORS` taken apart.

    The bound keeps shared squares (x2 = x * x, x4 = x2 * x2, ...) from being written out.
    """
    above: list[Node] = []
    below: list[Node] = []
    waiting = [(node, above, below)]
    taken = 0
    while waiting:
        node, up, down = waiting.pop()
        if node.op in ("mul", "div") and taken < MOST_FACTORS:
            left, right = node.args
            waiting.append((right, up, down) if node.op == "mul" else (right, down, up))
            waiting.append((left, up, down))
            taken += 1
        elif node.op == "neg":
            above.append(constant(-1.0))
            waiting.append((node.args[0], up, down))
        else:
            up.append(node)
    return above, below


def product(above: list[Node], below: list[Node]) -> Node:
    kept: list[Node] = []
    below = list(below)
    for factor in above:
        if factor in below and factor.varies <= {"b", "h"} and not is_const(factor, 0.0):
            below.remove(factor)
        else:
            kept.append(factor)
    ratio = 1.0
    for factor in [f for f in kept if f.op == "const"]:
        ratio *= factor.value
        kept.remove(factor)
    result = join("mul", kept)
    under = join("mul", below)
    if under is not ONE:
        result = build("div", result, under)
    return scaled(result, ratio)


def join(op: str, nodes: list[Node]) -> Node:
    result = ONE
    for node in nodes:
        result = node if result is ONE else build(op, result, node)
    return result


def scaled(node: Node, ratio: float) -> Node:
    if ratio == 2.0:
        return build("add", node, node) if node.op in ("score", "out") else build("mul", node, TWO)
    return build("mul", constant(ratio), node)


def negated(a: Node) -> Node:
    return times(constant(-1.0), a)


def sign_choice(x: Node, slope: Node) -> Node:
    return choose(
        make("lt", ZERO, x), slope, choose(make("lt", x, ZERO), build("neg", slope), ZERO)
    )


def extremum(node: Node, da: Node, db: Node) -> Node:
    # the winner's slope; half of each at a tie
    a, b = node.args
    first, second = (a, b) if node.op == "min" else (b, a)  # min: a < b; max: b < a
    tie = times(HALF, plus(da, db))
    return choose(make("lt", first, second), da, choose(make("lt", second, first), db, tie))


def power(node: Node, dx: Node, dy: Node) -> Node:
    # d x^y = y x^(y-1) dx + x^y log(x) dy; the second term is 0 at x = 0
    x, y = node.args
    by_x = ZERO
    if dx is not ZERO:
        by_x = times(times(y, build("pow", x, build("sub", y, ONE))), dx)
        by_x = choose(build("eq", y, ZERO), ZERO, by_x)  # x^0 is 1, at x = 0 too
    if dy is ZERO:
        return by_x
    slope = choose(make("eq", x, ZERO), ZERO, build("mul", node, build("log", x)))
    return plus(by_x, times(slope, dy))


Derivative = Callable[..., Node]
RULES: dict[str, Derivative] = {
    "add": lambda n, da, db: plus(da, db),
    "sub": lambda n, da, db: minus(da, db),
    "mul": lambda n, da, db: plus(times(n.args[1], da), times(n.args[0], db)),
    # (a / b)' = (a' - (a / b) b') / b
    "div": lambda n, da, db: over(minus(da, times(n, db)), n.args[1]),
    "floordiv_float": lambda n, da, db: ZERO,
    # a % b = a - b * (a // b)
    "floormod_float": lambda n, da, db: minus(da, times(make("floordiv_float", *n.args), db)),
    "pow": power,
    "neg": lambda n, da: negated(da),
    "abs": lambda n, da: sign_choice(n.args[0], da),
    "min": extremum,
    "max": extremum,
    "where": lambda n, _, da, db: choose(n.args[0], da, db),
    "exp": lambda n, da: times(n, da),
    "exp2": lambda n, da: times(times(constant(math.log(2)), n), da),
    "log": lambda n, da: over(da, n.args[0]),
    "log2": lambda n, da: over(times(constant(1 / math.log(2)), da), n.args[0]),
    "sqrt": lambda n, da: over(times(HALF, da), n),
    # x^(-1/2)' = -1/2 x^(-3/2)
    "rsqrt": lambda n, da: times(times(constant(-0.5), make("mul", n, make("mul", n, n))), da),
    "sin": lambda n, da: times(make("cos", n.args[0]), da),
    "cos": lambda n, da: negated(times(make("sin", n.args[0]), da)),
    "tanh": lambda n, da: times(make("sub", ONE, make("mul", n, n)), da),
    "erf": lambda n, da: times(
        times(
            constant(2 / math.sqrt(math.pi)),
            make("exp", make("neg", make("mul", n.args[0], n.args[0]))),
        ),
        da,
    ),
    "sigmoid": lambda n, da: times(make("mul", n, make("sub", ONE, n)), da),
    "relu": lambda n, da: choose(make("lt", ZERO, n.args[0]), da, ZERO),
    "softplus": lambda n, da: times(make("sigmoid", n.args[0]), da),
    "to_float": lambda n, da: ZERO,
}
