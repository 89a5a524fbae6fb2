"""No tile is wrongly empty or full: random programs, sizes, arguments and tile shapes, against the
mask that the oracle gives pair by pair."""

from __future__ import annotations

import random

import pytest
from torch import Tensor

import attndsl
from tests.oracle.attention import Oracle
from tests.oracle.parsing import parse_text
from tests.oracle.random_programs import Case, seeded

EMPTY, FULL = 0, 2
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 16, 32, 128)


def kept_pairs(case: Case) -> Tensor:
    """bool [B, H, Nq, Nk]: the pairs that take part, by the oracle."""
    given = {**case.consts, **case.arguments}
    oracle = Oracle(
        parse_text(case.text), None, case.query, case.key, case.value, arguments=given, **case.call
    )
    return oracle.mask()


def claimed(case: Case, block: tuple[int, int]) -> Tensor:
    """int8 [B, H, Nq, Nk]: for every pair what is claimed of its tile."""
    attention = attndsl.compile(text=case.text, **case.consts)
    batch, heads, rows, width = case.query.shape
    sizes = {"B": batch, "H": heads, "Hk": case.key.shape[1], "D": width}
    call = {name: given for name, given in case.call.items() if name != "scale"}
    columns = case.key.shape[2]
    tiles = attention.tiles(block=block, Nq=rows, Nk=columns, **sizes, **call, **case.arguments)
    tiles = tiles.repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)
    return tiles[:, :, :rows, :columns].expand(batch, heads, rows, columns)


def block_of(seed: int) -> tuple[int, int]:
    pick = random.Random(seed)
    return pick.choice(EXTENTS), pick.choice(EXTENTS)


def check(seed: int) -> None:
    case, block = seeded(seed), block_of(seed)
    kept, tiles = kept_pairs(case), claimed(case, block)
    assert not (kept & (tiles == EMPTY)).any(), (seed, block, case)
    assert not (~kept & (tiles == FULL)).any(), (seed, block, case)


@pytest.mark.filterwarnings("ignore")  # what the compiler finds odd in a random program
@pytest.mark.parametrize("part", range(10))
def test_tiles(part: int) -> None:
    """1,000 programs."""
    for seed in range(100 * part, 100 * (part + 1)):
        check(seed)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(40))
def test_tiles_sweep(part: int) -> None:
    """20,000 programs."""
    for seed in range(10_000 + 500 * part, 10_000 + 500 * (part + 1)):
        check(seed)


@pytest.mark.filterwarnings("ignore")
def test_most_tiles_are_decided() -> None:
    """The tests above would pass if nothing were claimed: of 200 programs' empty and full tiles
    more than nine in ten are known to be that."""
    known = {EMPTY: 0, FULL: 0}
    there = {EMPTY: 0, FULL: 0}
    for seed in range(200):
        case, (high, wide) = seeded(seed), block_of(seed)
        kept, tiles = kept_pairs(case), claimed(case, (high, wide))
        for row in range(0, kept.shape[2], high):
            for column in range(0, kept.shape[3], wide):
                part = (..., slice(row, row + high), slice(column, column + wide))
                pairs = kept[part].flatten(2)
                said = tiles[part].flatten(2)[..., 0]
                for kind, holds in ((EMPTY, ~pairs.any(-1)), (FULL, pairs.all(-1))):
                    there[kind] += int(holds.sum())
                    known[kind] += int((said == kind).sum())
    assert known[EMPTY] > 0.9 * there[EMPTY] > 1000
    assert known[FULL] > 0.9 * there[FULL] > 1000
