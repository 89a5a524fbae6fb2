"""Every rewrite keeps the value: exhaustively over small integers, by z3, and on random trees."""

import itertools
import math
import random

import pytest
import z3

from attndsl.ir.nodes import FALSE, SCORE, TRUE, Node, constant, index, make, scalar
from attndsl.ir.ops import OPS
from attndsl.transform.simplify import build, simplified
from tests.transform.evaluate import evaluate

Q, K = index("q"), index("k")
C = make("lt", Q, K)
X = scalar("x", "float")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (make("add", Q, constant(0)), Q),
        (make("add", make("add", Q, constant(2)), constant(3)), make("add", Q, constant(5))),
        (make("sub", Q, Q), constant(0)),
        (make("mul", Q, constant(0)), constant(0)),
        (make("mul", X, constant(0.0)), make("mul", X, constant(0.0))),  # x may be inf
        (make("floordiv", Q, constant(1)), Q),
        (make("floordiv", Q, constant(0)), constant(0)),
        (
            make("floordiv", make("floordiv", Q, constant(3)), constant(4)),
            make("floordiv", Q, constant(12)),
        ),
        (make("neg", make("sub", Q, K)), make("sub", K, Q)),
        (make("not", make("lt", Q, K)), make("le", K, Q)),
        (make("not", make("lt", X, SCORE)), make("not", make("lt", X, SCORE))),  # NaN
        (make("le", Q, Q), TRUE),
        (make("and", C, FALSE), FALSE),
        (make("or", C, C), C),
        (make("eq", C, TRUE), C),
        (make("ne", C, TRUE), make("le", K, Q)),
        (make("where", make("not", C), Q, K), make("where", make("le", K, Q), Q, K)),
        (
            make("where", make("not", make("lt", X, SCORE)), Q, K),
            make("where", make("lt", X, SCORE), K, Q),
        ),
        (make("where", C, TRUE, FALSE), C),
        (make("floor", make("to_float", Q)), Q),
        (make("exp", constant(0.0)), constant(1.0)),
        (make("log", constant(0.0)), make("log", constant(0.0))),
        (
            make("mul", constant(2**40), constant(2**40)),
            make("mul", constant(2**40), constant(2**40)),
        ),
    ],
    ids=str,
)
def test_rule(given: Node, expected: Node) -> None:
    assert simplified(given) is expected


def random_int(rng: random.Random, depth: int) -> Node:
    if depth == 0:
        return rng.choice([Q, K, *(constant(n) for n in (-2, -1, 0, 1, 2, 3))])
    op = rng.choice(["add", "sub", "mul", "floordiv", "floormod", "neg", "abs", "min", "max", "if"])
    if op == "if":
        condition = random_bool(rng, depth - 1)
        return make("where", condition, random_int(rng, depth - 1), random_int(rng, depth - 1))
    return make(op, *(random_int(rng, depth - 1) for _ in range(OPS[op].arity)))


def random_bool(rng: random.Random, depth: int) -> Node:
    if depth == 0:
        return rng.choice([TRUE, FALSE, C])
    op = rng.choice(["lt", "le", "eq", "ne", "and", "or", "not", "where"])
    if op in ("lt", "le", "eq", "ne") and rng.random() < 0.8:
        return make(op, random_int(rng, depth - 1), random_int(rng, depth - 1))
    if op in ("lt", "le"):
        op = "eq"
    return make(op, *(random_bool(rng, depth - 1) for _ in range(OPS[op].arity)))


def test_random_trees_keep_their_value() -> None:
    rng = random.Random(0)
    changed = 0
    for _ in range(2000):
        tree = random_bool(rng, rng.randint(1, 4))
        short = simplified(tree)
        changed += short is not tree
        for q, k in itertools.product(range(-3, 4), repeat=2):
            assert evaluate(tree, {Q: q, K: k}) == evaluate(short, {Q: q, K: k}), tree
    assert changed > 1000


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "relu", "neg", "abs", "where", "min"])
def test_float_rules_keep_infinities_and_nan(op: str) -> None:
    special = [0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan]
    operands = [X, constant(0.0), constant(1.0), constant(-1.0), make("neg", X), make("abs", X)]
    arity = OPS[op].arity - (op == "where")
    for args in itertools.product(operands, repeat=arity):
        given = (C, *args) if op == "where" else args
        plain, short = make(op, *given), build(op, *given)
        for x in special:
            values: dict[Node, bool | int | float] = {X: x, Q: 0, K: 1}
            a, b = evaluate(plain, values), evaluate(short, values)
            assert a == b or (math.isnan(a) and math.isnan(b)), (plain, short, x)


def test_integer_rules_by_z3() -> None:
    x, c, d = z3.Ints("x c d")

    def floordiv(a: z3.ArithRef, b: z3.ArithRef) -> z3.ArithRef:  # z3 rounds as floor for b > 0
        return a / b

    proofs = {
        "floordiv_twice": z3.Implies(
            z3.And(c > 0, c < 9, d > 0, d < 9, x > -100, x < 100),
            floordiv(floordiv(x, c), d) == floordiv(x, c * d),
        ),
        "floormod twice": z3.Implies(z3.And(c > 0, c < 50), (x % c) % c == x % c),
        "neg of sub": -(x - c) == c - x,
        "not lt": z3.Not(x < c) == (c <= x),
        "not le": z3.Not(x <= c) == (c < x),
        "add constants": (x + c) + d == x + (c + d),
    }
    for name, claim in proofs.items():
        solver = z3.Solver()
        solver.set("timeout", 10_000)
        solver.add(z3.Not(claim))
        assert solver.check() == z3.unsat, name
