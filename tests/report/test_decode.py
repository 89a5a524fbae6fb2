"""`explain` of calls of few queries: what runs, and what its tiles are."""

from __future__ import annotations

from typing import Any

import torch

import attndsl
from attndsl.plan.kernel_plan import Decode, KernelPlan
from attndsl.plan.planner import plan
from attndsl.report.choices.call import shown_call
from attndsl.report.decode import plan_of_few, reach_of_call, shared_visits, tile_of_call
from attndsl.report.requests import request_for
from attndsl.report.tiles.visits import visits_of
from attndsl.runtime.views import View

CAUSAL = "attention causal():\n    mask k <= q\n"
WINDOW = "attention window(w: int = 100):\n    mask 0 <= q - k < w\n"
HEADS = "attention heads(near: int[H]):\n    mask 0 <= q - k < near[h]\n"


def told(text: str, **call: object) -> str:
    """The section on kernels, as if lines were never broken."""
    whole = attndsl.compile(text=text).explain(**call)
    return " ".join(whole[whole.index("kernels for") :].split())


def test_a_call_of_few_queries_says_how_its_keys_are_split() -> None:
    found = told(CAUSAL, B=1, H=32, Hk=4, Nq=1, Nk=65536, q_offset=65535)
    assert "calls of up to 64 queries run decode instead of forward" in found
    assert "this call has 4 tiles of 16 rows, whose keys are split into" in found
    assert "decode_merge joins their results" in found


def test_a_short_window_is_not_split() -> None:
    found = told(WINDOW, B=1, H=32, Hk=4, Nq=1, Nk=65536, q_offset=65535)
    assert "whose keys are not split" in found


def test_many_windows_share_programs() -> None:
    found = told(CAUSAL, B=4096, H=8, Nq=49, Nk=49)
    assert "this call runs windows: a program has" in found


def test_long_calls_run_forward() -> None:
    assert "this call" not in told(CAUSAL, H=8, Nq=2048, Nk=2048)


def seen_and_made(text: str, **call: Any) -> tuple[View, KernelPlan, Decode]:
    """A call, its plan, and how it runs where it has few queries."""
    attention = attndsl.compile(text=text)
    offset = call.pop("q_offset")
    seen = shown_call(attention.program, call, offset, 0, None, {}, None).seen
    made = plan(attention.program, request_for(attention.program, "sm_90", "bfloat16", 64, 64))
    assert made.decode is not None
    return seen, made, made.decode


SIZES = {"B": 2, "H": 8, "Hk": 2, "Nk": 1000, "D": 64}


def test_heads_that_share_tiles_are_counted_once() -> None:
    seen, made, decode = seen_and_made(CAUSAL, Nq=2, q_offset=998, **SIZES)
    rows, tile = tile_of_call(decode, seen)
    assert (rows, tile.block_m) == (8, 16)
    found = list(visits_of(plan_of_few(made, seen), seen))
    forward, *others = shared_visits(made, seen, found)
    columns = -(-1000 // tile.block_n)
    assert (forward.kernel, forward.full) == ("decode", 0)
    assert forward.visited == forward.needed == forward.total == 2 * 2 * columns
    assert forward.computed_pairs == forward.visited * 16 * tile.block_n
    assert others == found[1:]


def test_reach_is_that_of_the_last_rows_where_offsets_are_tensors() -> None:
    for offset in (torch.tensor([3, 900]), 999 - 7):
        seen, made, decode = seen_and_made(WINDOW, Nq=8, q_offset=offset, **SIZES)
        assert reach_of_call(made, decode, seen) == 107
    seen, made, decode = seen_and_made(CAUSAL, Nq=8, q_offset=20, **SIZES)
    assert reach_of_call(made, decode, seen) == 28


def test_reach_is_unknown_where_tensors_decide() -> None:
    attention = attndsl.compile(text=HEADS)
    request = request_for(attention.program, "sm_90", "bfloat16", 64, 64)
    decode = plan(attention.program, request).decode
    assert decode is not None and not decode.knows_reach
