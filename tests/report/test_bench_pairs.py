"""Pairs of the measured masks, and FlexAttention's functions for them, against the programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import attndsl
from attndsl.report.bench import pairs
from attndsl.report.bench.dense import attend, some_rows
from attndsl.report.bench.inputs import Inputs
from attndsl.report.bench.masks import (
    ALIBI,
    CAUSAL,
    DECODE,
    NONE,
    PACKED,
    PROGRAMS,
    RAGGED,
    SOFTCAP,
    Mask,
    near,
    prefix_of,
    sinks_of,
    window_of,
)
from attndsl.report.bench.neighborhoods import COSMOS, FLUX, HUNYUAN, Problem
from attndsl.report.bench.pairs import arguments_of, count_one_by_one, count_pairs
from attndsl.report.bench.shapes import Shape

SQUARE = Shape(2, 4, 2, 37, 37, 16)
IMAGE = Problem("image", 2, (5, 7), (3, 4), (2, 3))
VIDEO = Problem("video", 2, (3, 4, 5), (2, 3, 3), (1, 1, 1))


def case_of(mask: Mask) -> tuple[Mask, Shape]:
    if mask in (DECODE, RAGGED):
        return mask, replace(SQUARE, queries=1)
    return mask, SQUARE


CASES = [
    *map(case_of, (NONE, CAUSAL, ALIBI, SOFTCAP, window_of(9), prefix_of(11), sinks_of(6))),
    *map(case_of, (PACKED, DECODE, RAGGED)),
    (near(IMAGE), replace(SQUARE, queries=35, keys=35)),
    (near(VIDEO), replace(SQUARE, queries=60, keys=60)),
]
NAMES = [mask.name for mask, _ in CASES]


@pytest.mark.parametrize(("mask", "shape"), CASES, ids=NAMES)
def test_pairs_are_counted_exactly(
    mask: Mask, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "AT_ONCE", 5 * shape.keys)
    attention = attndsl.compile(text=PROGRAMS, name=mask.program)
    given = mask.given(shape, 3)
    arguments = arguments_of(attention.program, given)
    sizes = {"B": shape.batch, "H": shape.heads, "Hk": shape.kv_heads, "D": shape.width}
    kept = attention.mask(Nq=shape.queries, Nk=shape.keys, **sizes, **arguments)
    wanted = int(kept.expand(shape.batch, shape.heads, -1, -1).sum())
    assert count_pairs(attention.program, mask, shape, given) == wanted
    assert count_one_by_one(mask, shape, given, "cpu") == wanted


@pytest.mark.parametrize(("mask", "shape"), CASES, ids=NAMES)
def test_the_functions_of_flex_attention_mean_the_program(mask: Mask, shape: Shape) -> None:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(shape.batch, shape.heads, shape.queries, 16, generator=random).double()
    key, value = torch.randn(2, shape.batch, 2, shape.keys, 16, generator=random).double()
    given = mask.given(shape, 1)
    out = attend(Inputs(query, key, value, query, given), mask)
    attention = attndsl.compile(text=PROGRAMS, name=mask.program)
    wanted = attention.reference(query, key, value, **arguments_of(attention.program, given))
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)  # slopes are float32


def test_pairs_of_long_calls_take_no_square_of_memory() -> None:
    """The problems at their real lengths: a window has as many pixels wherever it lies."""
    length = 131_072
    shape = Shape(1, 64, 8, length, length, 128)
    for mask, wanted in (
        (CAUSAL, length * (length + 1) // 2),
        (window_of(1024), 1024 * length - 1024 * 1023 // 2),
        (prefix_of(1024), length * (length + 1) // 2 + 1024 * 1023 // 2),
    ):
        program = attndsl.compile(text=PROGRAMS, name=mask.program).program
        assert count_pairs(program, mask, shape, mask.given(shape, 0)) == 64 * wanted


def test_documents_differ_by_step_and_sequence() -> None:
    shape = replace(SQUARE, queries=500, keys=500)
    first, second = (PACKED.given(shape, step)["doc"] for step in (0, 1))
    assert torch.equal(first, PACKED.given(shape, 0)["doc"]) and not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert int(first.min()) == 0 and first.max(1).values.tolist() == [11, 11]
    assert bool((first.diff(dim=1) >= 0).all())


def test_the_problems_of_natten() -> None:
    tokens = [problem.tokens for problem in (*COSMOS, *HUNYUAN, *FLUX)]
    assert tokens == [56_320, 56_320, 115_200, 115_200, 65_536, 65_536]
    assert HUNYUAN[1].name == "Hunyuan 30x48x80, 18x24x24 by 16x8x8"


def test_rows_that_are_compared_reach_from_the_first_to_the_last() -> None:
    for queries in (1, 40, 64, 65, 5000):
        rows = some_rows(replace(SQUARE, queries=queries, keys=queries)).tolist()
        assert rows[0] == 0 and rows[-1] == queries - 1 and len(rows) <= 64
        assert rows == sorted(set(rows))
