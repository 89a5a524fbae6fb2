"""What is said to follow from masks follows in every call that is enumerated."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.implications import implies, sees_no_future
from attndsl.analysis.linear import linear
from attndsl.analysis.warnings import is_always_true, is_independent, is_never_true
from attndsl.ir.nodes import TRUE, Node
from tests.analysis.evaluate import World, mask_matrix
from tests.analysis.masks import CAUSAL, NK, NQ, TIGHT, R, W, expressions, node, world, written

POSITIONS = range(-9, 10)
WORLDS = 12


def calls(count: int = WORLDS) -> list[World]:
    """Calls in which there is a row and a key: nothing is said of others."""
    found = (world(seed, wide=False) for seed in range(4 * count))
    return [call for call in found if call.leaves[NK] and call.leaves[NQ]][:count]


def holds(x: Node, y: Node) -> bool:
    return all(
        not (mask_matrix(x, call, POSITIONS) & ~mask_matrix(y, call, POSITIONS)).any()
        for call in calls()
    )


def test_named_masks_pair_by_pair() -> None:
    """Every pair of some forty masks: what is proved holds, and much is proved."""
    masks = list(TIGHT.values())
    proved = [(x, y) for x, y in itertools.permutations(masks[::2], 2) if implies(x, y)]
    assert len(proved) > 40
    for x, y in proved:
        assert holds(x, y), (x, y)


def test_a_mask_implies_itself_however_it_is_written() -> None:
    for name, mask in TIGHT.items():
        assert implies(mask, node("not", node("not", mask))), name


ROUGH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@ROUGH
@given(expressions(depth=3), expressions(depth=3))
def test_random_masks(x: Node, y: Node) -> None:
    for a, b in ((x, y), (node("and", x, y), y), (x, node("or", x, y))):
        if implies(a, b):
            assert holds(a, b), (a, b)


@ROUGH
@given(expressions(depth=3))
def test_random_masks_alone(mask: Node) -> None:
    matrices = [mask_matrix(mask, call, POSITIONS) for call in calls()]
    if is_never_true(mask):
        assert not any(m.any() for m in matrices)
    if is_always_true(mask):
        assert all(m.all() for m in matrices)
    if sees_no_future(mask):
        later = ~mask_matrix(CAUSAL, calls()[0], POSITIONS)
        assert not any((m & later).any() for m in matrices)


@ROUGH
@given(expressions(depth=3), st.sampled_from([W, R]))
def test_a_parameter_that_changes_nothing(mask: Node, scalar: Node) -> None:
    if is_independent(mask, scalar.name):
        for call in calls(3):
            kept = [
                mask_matrix(mask, World({**call.leaves, scalar: value}, call.tables), POSITIONS)
                for value in (-5, 0, 1, 7)
            ]
            assert all((other == kept[0]).all() for other in kept)


NO_FUTURE = [
    "k <= q",
    "0 <= q - k < w",
    "k <= q and (full[h] or k < g or q - k < w)",
    "k // 4 * 4 + 3 <= q",
    "max(k, prefix[b]) <= q",
    "k <= q - abs(w)",
    "k <= q if full[h] else k < q",
    "abs(q - k) < 5 and q >= k",
]
FUTURE = ["abs(q - k) <= w", "k <= q + w", "k <= q or k < prefix[b]", "k // 4 <= q // 4"]


@pytest.mark.parametrize("text", NO_FUTURE)
def test_causal_masks_are_proved_so(text: str) -> None:
    assert sees_no_future(written(text))


@pytest.mark.parametrize("text", FUTURE)
def test_other_masks_are_not(text: str) -> None:
    assert not sees_no_future(written(text))


def test_what_is_assumed_counts() -> None:
    inside, outside = written("q // w == k // w"), written("abs(q - k) < w")
    assert not implies(inside, outside)  # w may be 0
    assert implies(inside, outside, facts=[linear(node("sub", 1, W))])


def test_negative_keys_only_where_there_are_offsets() -> None:
    assert not implies(TRUE, written("k >= 0"))
    assert implies(TRUE, written("k >= 0"), without_offsets=True)
