"""summarise and classify against enumeration, with the extremes that a call's tables have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.summaries import Summarised, Summary, meets, summarise
from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import Node, constant, lookup, make, topological
from tests.analysis.evaluate import Verdict, World, counts, evaluate, mask_matrix, tiles
from tests.analysis.masks import B, K, Q, expressions, node, world

ANY_POSITIONS = range(-5, 8)
POSITIONS = range(0, 14)
Array = Any


def values_at(summary: Summary, call: World, positions: range) -> Array:
    """The summarised value at all positions, [n] or [n, n]."""
    p = np.array(positions)
    leaves = {Q: p[:, None], K: p[None, :]} if len(summary.axes) == 2 else {Q: p, K: p}
    shape = (len(p),) * len(summary.axes)
    return np.broadcast_to(evaluate(summary.node, call, leaves), shape)


def extremes(summary: Summary, call: World, positions: range, largest: bool) -> Array:
    """The extreme over each tile, [q tiles, 1], [1, k tiles] or both."""
    values = values_at(summary, call, positions)
    lows, highs = (ends - positions[0] for ends in tiles(positions))
    reduce = np.max if largest else np.min
    if len(summary.axes) == 2:
        spans = list(zip(lows, highs + 1, strict=True))
        return np.array([[reduce(values[a:z, c:e]) for c, e in spans] for a, z in spans])
    found = np.array([reduce(values[a:z]) for a, z in zip(lows, highs + 1, strict=True)])
    return found[:, None] if summary.axes == ("q",) else found[None, :]


def meeting(one: Summary, other: Summary, call: World, positions: range) -> Array:
    """Whether a tile's queries and keys have a value in common."""
    lows, highs = (ends - positions[0] for ends in tiles(positions))
    spans = list(zip(lows, highs + 1, strict=True))
    first, second = (values_at(s, call, positions) for s in (one, other))
    if one.axes == ("k",):
        first, second = second, first
    kept = [[set(values[a:z].tolist()) for a, z in spans] for values in (first, second)]
    return np.array([[bool(x & y) for y in kept[1]] for x in kept[0]])


def judge(mask: Node, found: Summarised, call: World, positions: range) -> Verdict:
    facts = classify(found.mask, found.extremes)
    lows, highs = tiles(positions)
    leaves: dict[Node, Array] = {
        make("bound", attr=f"{axis}_{end}", kind="int"): ends.reshape(shape)
        for axis, shape in (("q", (-1, 1)), ("k", (1, -1)))
        for end, ends in (("lo", lows), ("hi", highs))
    }
    for summary in found.summaries:
        leaves[summary.least] = extremes(summary, call, positions, largest=False)
        leaves[summary.greatest] = extremes(summary, call, positions, largest=True)
    for pair in found.meetings.values():
        leaves[meets(*pair)] = meeting(*pair, call, positions)
    kept = counts(mask_matrix(mask, call, positions), (lows, highs), (lows, highs), positions[0])
    sizes = highs - lows + 1
    possible, certain = (
        np.broadcast_to(evaluate(fact, call, leaves), kept.shape).astype(bool)
        for fact in (facts.possible, facts.certain)
    )
    return Verdict(possible, certain, kept > 0, kept == sizes[:, None] * sizes[None, :])


def is_sound(mask: Node, seed: int) -> bool:
    return judge(mask, summarise(mask), world(seed, wide=False), ANY_POSITIONS).is_sound


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=expressions(), seed=st.integers(0, 10**6))
def test_random_masks_are_sound(mask: Node, seed: int) -> None:
    assert is_sound(mask, seed)


@pytest.mark.sweep
@settings(
    max_examples=5000, derandomize=False, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(mask=expressions(), seed=st.integers(0, 10**6))
def test_many_random_masks_are_sound(mask: Node, seed: int) -> None:
    assert is_sound(mask, seed)


def doc(axis: Node) -> Node:
    return lookup("doc", "int", axis)


CAUSAL = node("le", K, Q)
DOCUMENTS = make("eq", doc(Q), doc(K))
SORTED = np.sort(np.random.default_rng(0).integers(0, 4, 16))
UNSORTED = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9, 0, 0, 4, 4, 4, 7, 7])
FLAGS = np.random.default_rng(1).integers(0, 3, 16) == 0
PAIRS = np.random.default_rng(2).integers(0, 8, (16, 16)) == 0
TIGHT: dict[str, tuple[Node, dict[str, Array]]] = {
    "sorted documents": (DOCUMENTS, {"doc": SORTED}),
    "sorted documents, causal": (node("and", DOCUMENTS, CAUSAL), {"doc": SORTED}),
    "unsorted documents": (DOCUMENTS, {"doc": UNSORTED}),
    "other documents": (make("ne", doc(Q), doc(K)), {"doc": UNSORTED}),
    "valid keys": (lookup("flag", "bool", K), {"flag": FLAGS}),
    "valid queries and keys": (
        node("and", lookup("flag", "bool", Q), lookup("flag", "bool", K)),
        {"flag": FLAGS},
    ),
    "a type of key": (
        node("and", lookup("flag", "bool", K), node("eq", doc(K), 2)),
        {"flag": FLAGS, "doc": UNSORTED},
    ),
    "a prefix per query": (node("le", K, doc(Q)), {"doc": UNSORTED}),
    "pairs": (lookup("pairs", "bool", Q, K), {"pairs": PAIRS}),
    "a table of a table": (
        make("eq", lookup("of", "int", doc(K)), constant(1)),
        {"doc": SORTED, "of": np.array([0, 1, 0, 1])},
    ),
}


@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_tight(name: str) -> None:
    mask, tables = TIGHT[name]
    verdict = judge(mask, summarise(mask), World({}, tables), POSITIONS)
    assert verdict.is_sound
    assert verdict.is_tight


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: node("not", x)])
@pytest.mark.parametrize("name", TIGHT)
def test_named_masks_are_sound_with_any_table(name: str, wrap: Callable[[Node], Node]) -> None:
    mask, tables = TIGHT[name]
    mask = wrap(mask)
    for seed in range(10):
        random = np.random.default_rng(seed)
        low, high = [(-3, 3), (0, 2), (-(2**63), 2**63 - 1)][seed % 3]
        drawn = {
            key: random.random(t.shape) < 0.5 if t.dtype == bool else random.integers(low, high, 16)
            for key, t in tables.items()
        }
        with np.errstate(over="ignore"):
            call = World({}, drawn)
            assert judge(mask, summarise(mask), call, ANY_POSITIONS).is_sound, seed


def test_conditions_of_one_axis_become_one_summary() -> None:
    wanted = [lookup("flag", "bool", K), node("lt", K, 9), node("eq", doc(K), 2)]
    mask = node("and", node("and", wanted[0], CAUSAL), node("and", wanted[1], wanted[2]))
    (summary,) = summarise(mask).summaries
    assert summary.axes == ("k",)
    assert {wanted[0], wanted[2]} <= set(topological(summary.node))


def test_what_rounds_differently_elsewhere_is_no_summary() -> None:
    decay = lookup("decay", "float", K)
    mask = node("and", make("lt", make("exp", decay), constant(0.5)), CAUSAL)
    assert [s.node for s in summarise(mask).summaries] == [decay]


def test_a_table_over_pairs_needs_the_same_rows_in_every_batch() -> None:
    mask = lookup("pairs", "bool", Q, K)
    assert summarise(mask).summaries
    assert not summarise(mask, are_rows_aligned=False).summaries


def test_only_bare_indices_make_blocks_of_a_table() -> None:
    assert not summarise(lookup("pairs", "bool", Q, node("sub", K, Q))).summaries
    assert [s.axes for s in summarise(lookup("t", "bool", B, K, Q)).summaries] == [("q", "k")]
