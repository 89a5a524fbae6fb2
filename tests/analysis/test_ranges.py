"""solve_keys and solve_queries against enumeration."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.ranges import solve_keys, solve_queries
from attndsl.ir.nodes import Node
from tests.analysis.evaluate import judge_segments
from tests.analysis.masks import TIGHT, expressions, world

POSITIONS = range(0, 14)
ANY_POSITIONS = range(-6, 9)
SOLVERS = {"k": solve_keys, "q": solve_queries}
# Where queries (or keys) of a tile are not one interval a hull is all that one segment can say.
NOT_ONE_INTERVAL: set[tuple[str, str]] = set()


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_tight(name: str, axis: str) -> None:
    segments = SOLVERS[axis](TIGHT[name])
    for seed in range(8):
        verdict = judge_segments(TIGHT[name], segments, world(seed, positive=True), POSITIONS, axis)
        assert verdict.is_sound, seed
        assert verdict.is_tight or (name, axis) in NOT_ONE_INTERVAL, seed


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_sound_for_odd_values(name: str, axis: str) -> None:
    segments = SOLVERS[axis](TIGHT[name])
    for seed in range(20):
        world_ = world(seed)
        assert judge_segments(TIGHT[name], segments, world_, ANY_POSITIONS, axis).is_sound, seed


@pytest.mark.parametrize("axis", "kq")
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=expressions(), seed=st.integers(0, 10**6))
def test_random_masks_are_sound(axis: str, mask: Node, seed: int) -> None:
    segments = SOLVERS[axis](mask)
    assert judge_segments(mask, segments, world(seed, wide=False), ANY_POSITIONS, axis).is_sound
