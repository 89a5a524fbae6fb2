"""solve_keys and solve_queries against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.build import LOWEST
from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW, MOST_SEGMENTS, Segment
from attndsl.analysis.ranges import solve_keys, solve_queries
from attndsl.ir.nodes import Node, bound, lookup, topological
from tests.analysis.evaluate import World, evaluate, judge_segments
from tests.analysis.masks import (
    CAUSAL,
    LOSSY,
    NK,
    NQ,
    TIGHT,
    K,
    Q,
    W,
    every,
    expressions,
    node,
    world,
)

Test = Callable[..., Any]
POSITIONS = range(0, 14)
ANY_POSITIONS = range(-6, 9)
SOLVERS = {"k": solve_keys, "q": solve_queries}
MOST_NODES = 60  # in the ends of a mask's segments: a kernel computes them once per tile


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_tight(name: str, axis: str) -> None:
    found = SOLVERS[axis](TIGHT[name])
    assert not found.losses
    assert len(found.segments) <= MOST_SEGMENTS
    assert len(topological(*(n for s in found.segments for n in ends(s)))) <= MOST_NODES
    for seed in range(8):
        call = world(seed, positive=True)
        verdict = judge_segments(TIGHT[name], found.segments, call, POSITIONS, axis)
        assert verdict.is_sound, seed
        assert verdict.is_tight, seed


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_sound_for_odd_values(name: str, axis: str) -> None:
    segments = SOLVERS[axis](TIGHT[name]).segments
    for seed in range(20):
        world_ = world(seed)
        assert judge_segments(TIGHT[name], segments, world_, ANY_POSITIONS, axis).is_sound, seed


@pytest.mark.parametrize("name", ("clean and noisy", "halves", "rows of length"))
@pytest.mark.parametrize("axis", "kq")
def test_every_length(axis: str, name: str) -> None:
    mask = TIGHT[name]
    segments = SOLVERS[axis](mask).segments
    for length, other, width in itertools.product(range(1, 18), (3, 8), (1, 2, 3, 5)):
        call = world(0, positive=True)
        sizes = {NK: length, NQ: other if name == "rows of length" else length, W: width}
        call = World({**call.leaves, **sizes}, call.tables)
        verdict = judge_segments(mask, segments, call, range(length), axis)
        assert verdict.is_sound and verdict.is_tight, (length, other, width)


def random_case(axis: str, mask: Node, seed: int) -> None:
    found = SOLVERS[axis](mask)
    assert len(found.segments) <= MOST_SEGMENTS
    call = world(seed, wide=False)
    assert judge_segments(mask, found.segments, call, ANY_POSITIONS, axis).is_sound


def random_cases(count: int) -> Callable[[Test], Test]:
    def decorate(test: Test) -> Test:
        limits = settings(
            max_examples=count, deadline=None, suppress_health_check=list(HealthCheck)
        )
        decorated: Test = limits(given(mask=expressions(), seed=st.integers(0, 10**6))(test))
        return decorated

    return decorate


@pytest.mark.parametrize("axis", "kq")
@random_cases(500)
def test_random_masks_are_sound(axis: str, mask: Node, seed: int) -> None:
    random_case(axis, mask, seed)


@pytest.mark.sweep
@pytest.mark.parametrize("axis", "kq")
@random_cases(10_000)
def test_random_masks_are_sound_sweep(axis: str, mask: Node, seed: int) -> None:
    random_case(axis, mask, seed)


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("name", LOSSY)
def test_what_is_not_exact_is_a_loss(name: str, axis: str) -> None:
    mask, culprit = LOSSY[name]
    found = SOLVERS[axis](mask)
    assert culprit in {loss.node.op for loss in found.losses}
    assert {loss.node for loss in found.losses} <= set(topological(mask))
    for seed in range(8):
        call = world(seed, positive=True)
        assert judge_segments(mask, found.segments, call, POSITIONS, axis).is_sound, seed


@pytest.mark.parametrize("axis", "kq")
def test_a_lookup_costs_only_its_own_part(axis: str) -> None:
    """Causal with tokens that are left out: the ranges are those of causal."""
    mask = every(CAUSAL, lookup("flag", "bool", Q, K))
    (segment,), (causal,) = SOLVERS[axis](mask).segments, SOLVERS[axis](CAUSAL).segments
    assert (segment.lo, segment.hi) == (causal.lo, causal.hi)
    assert segment.full_hi is LOWEST


def test_more_ranges_than_segments() -> None:
    """Five columns: two of them lie in one segment."""
    columns = [node("eq", K, node("mul", c, NQ)) for c in (0, 2, 4, 6, 8)]
    mask = reduce(lambda a, b: node("or", a, b), columns)
    found = SOLVERS["k"](mask)
    assert len(found.segments) == MOST_SEGMENTS and found.losses
    assert judge_segments(mask, found.segments, world(0), ANY_POSITIONS, "k").is_sound


def test_divisors_that_are_not_positive_leave_everything() -> None:
    (segment,) = SOLVERS["k"](TIGHT["block causal"]).segments
    for width in (0, -3):
        call = World({W: width, bound("lo"): np.asarray(4), bound("hi"): np.asarray(7)})
        values = [int(evaluate(end, call)) for end in ends(segment)]
        assert values[:2] == [EVERYTHING_LOW, EVERYTHING_HIGH] and values[2] >= values[3]


def ends(segment: Segment) -> tuple[Node, Node, Node, Node]:
    return segment.lo, segment.hi, segment.full_lo, segment.full_hi
