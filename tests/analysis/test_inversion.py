"""Each rule of inversion against enumeration, over all small values of its parameters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from attndsl.analysis.ranges import solve_keys, solve_queries
from tests.analysis.evaluate import World, judge_segments
from tests.analysis.masks import G, H, R, W, written

POSITIONS = range(-5, 7)
SOLVERS = {"k": solve_keys, "q": solve_queries}
USUAL = [{R: r, W: w, G: 2} for r, w in itertools.product((1, 2, 3, 5), (1, 2, 3))]
ODD = [{R: r, W: w, G: -1} for r, w in itertools.product((-3, -1, 0), (-2, 0, 1, 3))]
COMPARISONS = ("<=", "==", "!=", ">")

# What each rule inverts; in the other index it is the rule for the end of a tile.
SIDES = (
    "{0}",
    "{0} + r",
    "r - {0}",
    "2 * {0}",
    "1 - 3 * {0}",
    "w * {0}",
    "w * {0} + r",
    "{0} // w",
    "{0} // 3",
    "{0} // -2",
    "({0} - r) // w",
    "(r - {0}) // w",
    "{0} // 2 // 3",
    "{0} // w // 2",
    "3 * ({0} // 3)",
    "w * ({0} // w)",
    "{0} - {0} % 3",
    "min({0}, r)",
    "max({0}, r)",
    "clamp({0}, r, r + w)",
    "min({0} // 2, r) + w",
    "abs({0} - r)",
    "abs({0}) // w",
    "-abs({0})",
    "({0} - r) ** 2",
    "-(({0} - r) ** 2)",
    "({0} + r if {0} >= w else {0})",
    "({0} if {0} >= w else -{0})",
    "({0} + 2 if full[h] else {0})",
    "int({0} >= r)",
)

# Values of both indices, compared with a parameter.
TOGETHER = (
    "q - k",
    "k - 2 * q",
    "(q - k) // w",
    "(q + k) // 2",
    "q // w - k // w",
    "q // 2 - (k + r) // 3",
    "abs(q - k)",
    "abs(q - k) // w",
    "abs(q // w - k // w)",
    "abs(q - r) + abs(k - w)",
    "(q - k) ** 2",
    "(q // 2 - k // 2) ** 2",
    "max(q, k)",
    "min(q, k) - max(q, k)",
    "max(q - k, 2 * k - r)",
    "(q - k if q >= w else k)",
    "(q - k if k >= q else q // 2)",
    "q * w - k",
    "k * w - q",
    "int(k <= q)",
    "q + q // 2 - k",
)
# Where some comparisons are not met exactly: between multiples of a position there is not always
# another one, and squares, turned distances and sums of several values of an index are not solved.
SQUARES = ("({0} - r) ** 2", "-(({0} - r) ** 2)", "abs({0}) // w")
MULTIPLES = ("2 * {0}", "1 - 3 * {0}", "w * {0}", "w * {0} + r", "3 * ({0} // 3)")
MULTIPLES += ("w * ({0} // w)", "{0} - {0} % 3", "{0} // -2", "(r - {0}) // w")
LOSSY: dict[str, tuple[str, ...]] = {
    "k": SQUARES,
    "q": SQUARES + MULTIPLES,
    "both": ("q // 2 - (k + r) // 3", "q + q // 2 - k", "k - 2 * q", "q * w - k", "k * w - q"),
}


def check(text: str, axis: str) -> bool:
    """Holds a mask against enumeration; whether it has no losses."""
    mask = written(text)
    found = SOLVERS[axis](mask)
    for leaves in (*USUAL, *ODD):
        for head in (0, 1):
            world = World({**leaves, H: head}, {"full": np.array([False, True])})
            verdict = judge_segments(mask, found.segments, world, POSITIONS, axis)
            assert verdict.is_sound, (text, leaves)
            if not found.losses and leaves in USUAL:
                assert verdict.is_tight, (text, leaves)
            if "full" not in text:
                break
    return not found.losses


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("side", SIDES)
def test_rule_for_one_index(side: str, axis: str) -> None:
    exact = [
        check(f"{side.format('k')} {comparison} {other}", axis)
        for comparison in COMPARISONS
        for other in ("q", "q // w")
    ]
    assert all(exact) or side in LOSSY[axis]


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("value", TOGETHER)
def test_rule_for_both(value: str, axis: str) -> None:
    exact = [check(f"{value} {c} {limit}", axis) for c in COMPARISONS for limit in ("r", "w - 2")]
    assert all(exact) or value in LOSSY["both"]


def test_most_rules_are_exact() -> None:
    """That the tests above compare more than soundness."""
    assert 4 * len(LOSSY["q"]) < 2 * len(SIDES) and 4 * len(LOSSY["both"]) < len(TOGETHER)
