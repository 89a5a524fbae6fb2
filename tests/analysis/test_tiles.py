"""classify against enumeration: sound for everything, exact for the masks that must be."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import Node, constant, index, make, scalar
from tests.analysis.evaluate import judge_tiles
from tests.analysis.masks import TIGHT, expressions, is_tight_in_tiles, world

POSITIONS = range(0, 14)
ANY_POSITIONS = range(-5, 8)


@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_tight(name: str) -> None:
    facts = classify(TIGHT[name])
    for seed in range(8):
        verdict = judge_tiles(TIGHT[name], facts, world(seed, positive=True), POSITIONS)
        assert verdict.is_sound
        assert verdict.is_tight or not is_tight_in_tiles(name), seed


@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_sound_for_odd_values(name: str) -> None:
    facts = classify(TIGHT[name])
    for seed in range(20):
        assert judge_tiles(TIGHT[name], facts, world(seed), ANY_POSITIONS).is_sound, seed


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=expressions(), seed=st.integers(0, 10**6))
def test_random_masks_are_sound(mask: Node, seed: int) -> None:
    assert judge_tiles(mask, classify(mask), world(seed, wide=False), ANY_POSITIONS).is_sound


@pytest.mark.sweep
@settings(
    max_examples=4000,
    derandomize=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(mask=expressions(), seed=st.integers(0, 10**6))
def test_many_random_masks_are_sound(mask: Node, seed: int) -> None:
    assert judge_tiles(mask, classify(mask), world(seed, wide=False), ANY_POSITIONS).is_sound


def test_the_reciprocal_root_of_minus_zero_is_minus_infinity() -> None:
    zero = make("mul", constant(0.0), make("to_float", index("q")))  # -0.0 for q < 0
    mask = make("lt", scalar("x", "float"), make("rsqrt", zero))
    assert judge_tiles(mask, classify(mask), world(0, wide=False), ANY_POSITIONS).is_sound
