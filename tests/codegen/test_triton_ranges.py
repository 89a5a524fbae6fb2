"""The loops over tiles of segments, run as plain Python: every tile once, full ones apart."""

from __future__ import annotations

import functools
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attndsl
from attndsl.backend import load
from attndsl.ir.nodes import Node, constant, make
from attndsl.plan.kernel_plan import Segment
from attndsl.plan.planner import plan
from attndsl.report.requests import request_for

load("attndsl.codegen", "triton")  # codegen is found by name, as the compiler finds it

from attndsl.codegen.lines import Lines  # noqa: E402
from attndsl.codegen.triton.library import library_text  # noqa: E402
from attndsl.codegen.triton.ranges import KEYS, write_range_loops  # noqa: E402
from attndsl.codegen.triton.values import Values  # noqa: E402

MOST = 4  # segments
NAMES = [f"{end}{at}" for at in range(MOST) for end in ("lo", "hi", "full_lo", "full_hi")]
LENGTH = 24
Ends = tuple[int, int, int, int]

TL = SimpleNamespace(
    cdiv=lambda x, y: -(-x // y),
    where=lambda c, x, y: x if c else y,
    minimum=min,
    maximum=max,
)


def clip(position: int, offset: int, length: int) -> int:
    return min(max(position - offset, 0), length)


@functools.cache
def code_of(count: int, with_full: bool = True) -> CodeType:
    """A function that appends (tile, whether it is full) of each step, for so many segments."""
    text = f"attention loops({', '.join(f'{n}: int' for n in NAMES)}):\n    mask k < lo0\n"
    program = attndsl.compile(text=text).program
    values = Values(plan(program, request_for(program, "sm_90", "bfloat16", 64, 64)))

    def scalar(name: str) -> Node:
        return make("scalar", attr=name, kind="int")

    ends = [[scalar(name) for name in NAMES[4 * at : 4 * at + 4]] for at in range(count)]
    if not with_full:
        ends = [[lo, hi, constant(0), constant(0)] for lo, hi, _, _ in ends]
    lines = Lines()
    with lines.block("def run(k_start, n_keys, BLOCK_N):"):
        loops = write_range_loops(lines, values, [Segment(*four) for four in ends], KEYS)
        for loop in loops:
            with lines.block(loop.header):
                lines.add(*loop.statements, f"found.append((tile, {not loop.partial}))")
        lines.add("return found")
    return compile(library_text(lines.text()) + "\n\n" + lines.text(), "<loops>", "exec")


def run(segments: list[Ends], start: int, block: int, with_full: bool = True) -> list[Any]:
    names = {f"p_{name}": end for name, end in zip(NAMES, sum(segments, ()), strict=False)}
    scope: dict[str, Any] = {"found": [], "tl": TL, "triton": SimpleNamespace(jit=lambda f: f)}
    exec(code_of(len(segments), with_full), scope)
    scope |= {**names, "attn_clip": clip}
    result: list[Any] = scope["run"](start, LENGTH, block)
    return result


def check(segments: list[Ends], start: int, block: int, with_full: bool = True) -> None:
    def inside(pairs: list[tuple[int, int]]) -> set[int]:
        every = range(start, start + LENGTH)
        return {x - start for x in every if any(lo <= x < hi for lo, hi in pairs)}

    reached = {x // block for x in inside([s[:2] for s in segments])}
    held = inside([s[2:] for s in segments]) if with_full else set()
    whole = {t for t in reached if set(range(t * block, (t + 1) * block)) <= held}
    found = run(segments, start, block, with_full)
    assert len(found) == len(reached)
    assert {tile for tile, _ in found} == reached
    assert {tile for tile, is_full in found if is_full} == whole


positions = st.integers(-6, LENGTH + 6)
segments_of = st.lists(st.tuples(positions, positions, positions, positions), max_size=MOST)


@settings(deadline=None)
@given(segments_of, st.integers(-3, 3), st.sampled_from([1, 2, 4, 5]), st.booleans())
def test_any_segments(segments: list[Ends], start: int, block: int, with_full: bool) -> None:
    """Overlapping, empty, in any order, beyond the axis, full parts anywhere."""
    check(segments, start, block, with_full)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_all_small_segments(count: int, block: int) -> None:
    """Every outer part of a few ends, with every full part of a few ends."""
    ends = [(0, 0), (0, 5), (2, 9), (5, 8), (9, 30), (24, 24), (12, 3)]
    pairs = [(*outer, *full) for outer in ends for full in ends]
    for first in pairs:
        for second in pairs if count == 2 else [first]:
            check([first, second][:count], 0, block)


def test_full_parts_that_touch_are_joined() -> None:
    found = run([(0, 24, 0, 6), (3, 20, 6, 24)], 0, 4)
    assert all(is_full for _, is_full in found)
    assert len(found) == 6
