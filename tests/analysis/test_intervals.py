"""Numeric ranges against values, and the table against the op table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.intervals import (
    TRANSFER,
    fits_int32,
    int_range,
    is_nonnegative,
    leaf_range,
)
from attndsl.ir.nodes import Node, constant, index, lookup, make, scalar, size
from attndsl.ir.ops import INT_OF_FLOAT, OPS
from tests.analysis.evaluate import FUNCTIONS, evaluate
from tests.analysis.masks import K, Q, R, W, expressions, node, world

POSITIONS = np.arange(-6, 9)


def test_every_op_has_a_transfer_and_the_oracle_a_meaning() -> None:
    operations = {name for name, entry in OPS.items() if not entry.is_leaf}
    assert set(TRANSFER) == operations
    assert set(FUNCTIONS) | {"to_float"} == operations


@pytest.mark.parametrize("op", ["add", "sub", "mul", "floordiv", "floormod", "min", "max"])
def test_transfers_of_two_ints_hold_for_all_small_intervals(op: str) -> None:
    ends = [(lo, hi) for lo in range(-4, 5) for hi in range(lo, 5)]
    for x, y in itertools.product(ends, ends):
        a, b = np.arange(x[0], x[1] + 1)[:, None], np.arange(y[0], y[1] + 1)[None, :]
        values = FUNCTIONS[op](a, b)
        low, high = TRANSFER[op](x, y)
        assert low <= values.min() and values.max() <= high, (x, y)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(root=expressions(kind="int"), seed=st.integers(0, 10**6))
def test_values_lie_in_their_ranges(root: Node, seed: int) -> None:
    low, high = int_range(root)
    leaves = {Q: POSITIONS[:, None], K: POSITIONS[None, :]}
    values = evaluate(root, world(seed, wide=False), leaves)
    assert (values >= low).all() and (values <= high).all()


def test_known_ranges_are_used() -> None:
    product = node("mul", W, Q)
    assert not fits_int32(product)
    assert fits_int32(product, {W: (0, 3)})
    assert int_range(node("add", W, 1), {W: (0, 3)}) == (1, 4)


def test_tables_have_the_range_of_their_dtype() -> None:
    entry = lookup("doc", "int", Q)
    assert int_range(entry) == (-(2**63), 2**63 - 1)
    assert int_range(entry, tables={"doc": "uint8"}) == (0, 255)
    assert not fits_int32(entry)
    assert fits_int32(node("sub", entry, 5), tables={"doc": "int16"})


def test_an_intermediate_value_counts() -> None:
    small = node("floormod", node("mul", Q, K), 4)
    assert int_range(small) == (0, 3)
    assert not fits_int32(small)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (node("floormod", Q, 4), True),
        (node("floormod", Q, size("Nk")), True),
        (node("floormod", Q, W), False),
        (node("floordiv", index("h"), size("G")), True),
        (node("abs", node("sub", Q, K)), True),
        (node("max", Q, 0), True),
        (node("mul", R, R), True),
        (Q, False),
        (node("sub", size("Nk"), 1), False),
    ],
)
def test_nonnegative(root: Node, expected: bool) -> None:
    assert is_nonnegative(root) is expected


def test_the_int_of_an_infinity_saturates() -> None:
    assert int_range(node("floor", scalar("x", "float"))) == (-INT_OF_FLOAT, INT_OF_FLOAT)
    assert int_range(node("floor", constant(float("inf")))) == (-INT_OF_FLOAT, INT_OF_FLOAT)
    assert int_range(node("ceil", constant(1e30)))[1] == INT_OF_FLOAT
    assert int_range(node("trunc", make("tanh", make("to_float", Q))))[1] == 1


def test_leaves_without_a_range() -> None:
    assert leaf_range(constant(float("nan")), {}) == (-float("inf"), float("inf"))
