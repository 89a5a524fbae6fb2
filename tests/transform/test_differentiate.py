"""Derivatives against central differences and torch's autograd; a rule for every op."""

import math

import pytest

from attndsl.ir.nodes import SCORE, Node, constant, index, lookup, make, scalar, topological
from attndsl.ir.ops import OPS
from attndsl.transform.differentiate import RULES, differentiate
from attndsl.transform.fold import FOLD
from tests.transform.evaluate import evaluate

CAP = scalar("cap", "float")
GATE = lookup("gate", "float", index("h"))
S2 = make("mul", SCORE, SCORE)


def test_every_op_has_a_value_and_float_ops_a_derivative() -> None:
    for entry in OPS.values():
        if entry.is_leaf:
            continue
        assert entry.name in FOLD
        gives_float = any(signature.endswith("f") for signature in entry.signatures)
        assert (entry.name in RULES) == gives_float or entry.name == "floordiv_float", entry.name


def one(op: str) -> Node:
    return make(op, make("add", make("mul", SCORE, GATE), constant(0.25)))


EXPRESSIONS = [
    *(
        one(op)
        for op in (
            "neg abs exp exp2 log log2 sqrt rsqrt sin cos tanh erf sigmoid relu softplus".split()
        )
    ),
    *(
        make(op, make("add", S2, GATE), make("mul", GATE, make("sin", SCORE)))
        for op in "add sub mul div min max floormod_float".split()
    ),
    make("pow", make("abs", SCORE), make("add", GATE, constant(1.5))),
    make("where", make("lt", SCORE, constant(0.3)), make("exp", SCORE), make("mul", S2, GATE)),
    make("mul", CAP, make("tanh", make("div", SCORE, CAP))),
    make("div", make("neg", make("mul", SCORE, CAP)), make("mul", CAP, GATE)),
    make("floordiv_float", SCORE, GATE),
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_central_differences(expression: Node) -> None:
    for by in (SCORE, GATE):
        slope = differentiate(expression, by)
        for s, g in ((0.7, 1.3), (0.2, 0.6), (1.9, 0.45)):
            values: dict[Node, bool | int | float] = {SCORE: s, GATE: g, CAP: 1.7}
            step = 1e-5
            up = evaluate(expression, {**values, by: values[by] + step})
            down = evaluate(expression, {**values, by: values[by] - step})
            expected = (up - down) / (2 * step)
            assert evaluate(slope, values) == pytest.approx(expected, rel=2e-5, abs=2e-5)


def test_soft_cap_reuses_its_tanh() -> None:
    tanh = make("tanh", make("div", SCORE, CAP))
    slope = differentiate(make("mul", CAP, tanh), SCORE)
    assert slope is make("sub", constant(1.0), make("mul", tanh, tanh))


def test_ties_are_shared() -> None:
    larger = make("max", SCORE, GATE)
    assert evaluate(differentiate(larger, SCORE), {SCORE: 1.0, GATE: 1.0}) == 0.5
    assert evaluate(differentiate(make("relu", SCORE), SCORE), {SCORE: 0.0}) == 0.0
    assert evaluate(differentiate(make("abs", SCORE), SCORE), {SCORE: 0.0}) == 0.0


def test_branch_not_taken_cannot_become_nan() -> None:
    root = make(
        "where",
        make("lt", constant(0.0), SCORE),
        make("sqrt", SCORE),
        make("mul", constant(2.0), SCORE),
    )
    assert evaluate(differentiate(root, SCORE), {SCORE: 0.0}) == 2.0
    assert not math.isnan(evaluate(differentiate(root, SCORE), {SCORE: -1.0}))


def test_repeated_squares_stay_small() -> None:
    node = SCORE
    for _ in range(30):
        node = make("mul", node, node)
    assert len(topological(differentiate(node, SCORE))) < 2000


def test_long_chains_do_not_recurse() -> None:
    node = SCORE
    for _ in range(3000):
        node = make("mul", make("neg", node), GATE)
    assert differentiate(node, SCORE).kind == "float"
