"""Linear forms and simplifying constructors: equal to what they replace, for every int."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis import build
from attndsl.analysis.linear import form_range, linear, written
from attndsl.analysis.predicates import normal_form
from attndsl.ir.nodes import Node, bound, constant, make
from tests.analysis.evaluate import evaluate
from tests.analysis.masks import K, Q, W, expressions, node, world

POSITIONS = np.arange(-7, 10)
LEAVES = {Q: POSITIONS[:, None], K: POSITIONS[None, :]}
RANDOM = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@RANDOM
@given(root=expressions(kind="int"), seed=st.integers(0, 10**6))
def test_a_form_has_the_same_value(root: Node, seed: int) -> None:
    values = world(seed, wide=False)
    same = written(linear(root))
    assert np.array_equal(
        np.broadcast_to(evaluate(same, values, LEAVES), (17, 17)),
        np.broadcast_to(evaluate(root, values, LEAVES), (17, 17)),
    )


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (node("sub", Q, node("floormod", Q, 4)), node("mul", 4, node("floordiv", Q, 4))),
        (node("sub", Q, node("mul", 4, node("floordiv", Q, 4))), node("floormod", Q, 4)),
        (node("floordiv", node("add", node("mul", 4, Q), 7), 4), node("add", Q, 1)),
        (node("floordiv", node("floordiv", Q, 3), 5), node("floordiv", Q, 15)),
        (node("floormod", node("add", node("mul", 6, Q), K), 3), node("floormod", K, 3)),
        (node("floordiv", node("mul", 6, Q), 4), node("floordiv", node("mul", 3, Q), 2)),
        (node("floordiv", Q, -1), node("neg", Q)),
        (node("floordiv", Q, 0), constant(0)),
    ],
)
def test_normal_forms(root: Node, expected: Node) -> None:
    assert written(linear(root)) is expected


@pytest.mark.parametrize("m", [*range(-5, 6), 12])
def test_division_by_constants(m: int) -> None:
    for factor in range(-6, 7):
        for shift in range(-4, 5):
            x = node("add", node("mul", factor, Q), shift)
            for op in ("floordiv", "floormod"):
                root = make(op, x, constant(m))
                values = evaluate(written(linear(root)), world(0), {Q: POSITIONS})
                assert np.array_equal(
                    np.broadcast_to(values, POSITIONS.shape),
                    np.broadcast_to(evaluate(root, world(0), {Q: POSITIONS}), POSITIONS.shape),
                )


def test_the_end_of_a_tile_is_not_before_its_start() -> None:
    lo, hi = bound("lo"), bound("hi")
    assert form_range(linear(hi) - linear(lo))[0] == 0
    assert build.at_most(lo, hi) is constant(True)
    assert build.less(hi, lo) is constant(False)
    assert build.at_most(build.floordiv(lo, constant(3)), build.floordiv(hi, constant(3))).value


def test_a_conditional_on_a_known_condition_is_decided() -> None:
    condition = node("lt", 0, W)
    inner = make("where", condition, Q, K)
    assert build.where(condition, inner, K) is make("where", condition, Q, K)


def test_negations() -> None:
    for p in (node("lt", Q, K), node("le", Q, K), node("eq", Q, K)):
        assert build.negation(build.negation(p)) is p
    floats = node("lt", make("to_float", Q), make("to_float", K))
    assert build.negation(floats).op == "not"  # NaN is neither below nor above


@pytest.mark.parametrize("op", ["and", "or", "where"])
def test_long_and_deep_masks_are_taken(op: str) -> None:
    mask, total = node("le", K, Q), Q
    for i in range(600):
        total = node("add", total, node("mul", K, i))
        part = node("lt", total, i)
        mask = (
            node("where", part, mask, node("not", mask)) if op == "where" else make(op, mask, part)
        )
    normal_form(mask)
