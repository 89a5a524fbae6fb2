"""Intervals against sets of numbers."""

from __future__ import annotations

import random

import torch

from attndsl.runtime.segments import Intervals

Pairs = list[tuple[int, int]]
HIGH = 24


def made(pairs: Pairs) -> Intervals:
    lo, hi = (torch.tensor([pair[at] for pair in pairs], dtype=torch.int64) for at in (0, 1))
    return Intervals(lo[:, None], hi[:, None])


def members(found: Intervals) -> list[int]:
    ends = zip(found.lo[:, 0].tolist(), found.hi[:, 0].tolist(), strict=True)
    return [x for lo, hi in ends for x in range(lo, hi)]


def drawn(pick: random.Random) -> Pairs:
    return [(pick.randrange(HIGH), pick.randrange(HIGH)) for _ in range(pick.randrange(5))]


def test_merged_is_the_union_in_order_and_apart() -> None:
    pick = random.Random(0)
    for _ in range(500):
        pairs = drawn(pick)
        found = made(pairs).merged()
        wanted = sorted({x for lo, hi in pairs for x in range(lo, hi)})
        assert members(found) == wanted  # in order, and none twice
        ends = [(lo, hi) for lo, hi in zip(found.lo[:, 0], found.hi[:, 0], strict=True) if lo < hi]
        assert all(before[1] < after[0] for before, after in zip(ends, ends[1:], strict=False))


def test_without_leaves_what_holes_do_not_cover() -> None:
    pick = random.Random(1)
    for _ in range(500):
        outer, holes = drawn(pick), drawn(pick)
        left = made(outer).merged().without(made(holes).merged())
        covered = set(members(made(holes)))
        wanted = {x for x in members(made(outer)) if x not in covered}
        assert sorted(members(left)) == sorted(wanted)


def test_tiles_are_those_that_are_reached_and_those_inside() -> None:
    pick = random.Random(2)
    for _ in range(500):
        pairs, block = drawn(pick), pick.randint(1, 6)
        merged, covered = made(pairs).merged(), set(members(made(pairs)))
        assert members(merged.tiles(block)) == sorted({x // block for x in covered})
        inside = [
            tile
            for tile in range(HIGH)
            if all(x in covered for x in range(tile * block, (tile + 1) * block))
        ]
        assert members(merged.whole_tiles(block)) == inside


def test_clipped() -> None:
    found = made([(-5, 3), (4, 4), (6, 90)]).clipped(0, 8)
    assert members(found) == [0, 1, 2, 6, 7]
    assert found.total.tolist() == [5]
