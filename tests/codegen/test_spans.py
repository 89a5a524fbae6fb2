"""run_spans of generated PyTorch modules against the mask, pair by pair."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attndsl.plan.planner import plan
from tests.analysis.masks import SEVERAL, WRITTEN
from tests.codegen.test_torch import SMALL, TORCH, compiled, module_of, request, with_small_blocks
from tests.oracle.attention import Oracle
from tests.oracle.parsing import parse_text

ROWS, WIDTH = SMALL["ROWS"], SMALL["WIDTH"]
FEW = {"<= 1 << 14": "<= 8", "1 << 16": "5"}
Spans = list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]
Parts = list[tuple[tuple[int, ...], Spans]]


def spans_of(
    text: str,
    inputs: tuple[Tensor, ...],
    given: Mapping[str, Any],
    call: Mapping[str, Any],
    few: bool = False,
) -> Parts:
    """What run_spans returns; `few`: looking at few tiles at once, so that it halves them step by
    step."""
    program = compiled(text)
    source = TORCH.emit(plan(program, request(program, inputs[0], inputs[2], call)))
    source = with_small_blocks(source)
    for old, new in FEW.items() if few else ():
        source = source.replace(old, new)
    scalars = tuple(given.get(s.name, s.default) for s in program.scalars)
    tensors = tuple(given[t.name] for t in program.tensors)
    places = (call.get("q_offset", 0), call.get("k_offset", 0), call.get("k_len"))
    found: Parts = module_of(source)["run_spans"](*inputs, 0.5, *places, tensors, scalars)
    return found


def check(
    text: str,
    given: Mapping[str, Any] | None = None,
    sizes: tuple[int, ...] = (2, 4, 2, 70, 90),
    tight: bool = False,
    **call: Any,
) -> None:
    """No pair is left out, none that is masked lies in a full range; `tight`: tiles are reached
    that must be, and no other. sizes: B, H, Hk, Nq, Nk."""
    batch, heads, key_heads, rows, columns = sizes
    group = heads // key_heads
    query = torch.zeros(batch, heads, rows, 2)
    key = torch.zeros(batch, key_heads, columns, 2)
    given = dict(given or {})
    oracle = Oracle(parse_text(text), None, query, key, key, arguments=given, **call)
    mask, inputs = oracle.mask(), (query, key, key)
    times_seen = torch.zeros(batch, heads, dtype=torch.int64)
    parts = [part for few in (False, True) for part in spans_of(text, inputs, given, call, few)]
    for (b0, b1, j0, j1, g0, g1), spans in parts:
        chosen = [j * group + g for j in range(j0, j1) for g in range(g0, g1)]
        times_seen[b0:b1, chosen] += 1
        assert len(spans) == -(-rows // ROWS)
        for at, (reached, full) in enumerate(spans):
            block = mask[b0:b1, chosen, at * ROWS : (at + 1) * ROWS].flatten(0, 2)
            inside, sure = marked(reached, columns), marked(full, columns)
            assert not (block & ~inside).any()
            assert block[:, sure].all()
            if tight:
                assert torch.equal(touched(inside), touched(block.any(0)))
                assert torch.equal(~touched(~sure), ~touched(~block.all(0)))
    assert (times_seen == 2).all()


def marked(ranges: list[tuple[int, int]], columns: int) -> Tensor:
    """Which columns ranges hold: in order, none empty, and none touching the next."""
    found = torch.zeros(columns, dtype=torch.bool)
    last = -1
    for lo, hi in ranges:
        assert last < lo < hi <= columns
        found[lo:hi] = True
        last = hi
    return found


def touched(columns: Tensor) -> Tensor:
    """Which tiles hold one of these columns."""
    padded = torch.zeros(-(-len(columns) // WIDTH) * WIDTH, dtype=torch.bool)
    padded[: len(columns)] = columns
    return padded.view(-1, WIDTH).any(1)


def drawn(*shape: int, below: int = 5) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(7))


SORTED = (torch.arange(90) // 13).expand(2, 90)
VALID = torch.rand(2, 90, generator=torch.Generator().manual_seed(3)) < 0.1
TABLE = torch.rand(70, 90, generator=torch.Generator().manual_seed(4)) < 0.02
DOCUMENT = "attention f(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k]\n"
CAUSAL_DOCUMENT = DOCUMENT.rstrip() + " and k <= q\n"
EXTREMES = torch.tensor([-(2**63), 2**63 - 1, 0, -1])

# Masks of which every tile is told apart; with their arguments.
TIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "everything": ("attention f():\n    mask true\n", {}),
    "nothing": ("attention f():\n    mask k < k\n", {}),
    "causal": ("attention f():\n    mask k <= q\n", {}),
    "window": ("attention f(w: int = 20):\n    mask 0 <= q - k < w\n", {}),
    "by head": (
        "attention f(wide: bool[H]):\n    mask k <= q and (wide[h] or q - k < 9)\n",
        {"wide": torch.tensor([True, False, False, True])},
    ),
    "prefix": (
        "attention f(length: int[B]):\n    mask k <= q or k < length[b]\n",
        {"length": torch.tensor([50, 3])},
    ),
    "sorted documents": (DOCUMENT, {"doc": SORTED}),
    "sorted documents, causal": (CAUSAL_DOCUMENT, {"doc": SORTED.flip(0, 1)}),
    "unsorted documents": (DOCUMENT, {"doc": drawn(2, 8, below=6).repeat_interleave(13, 1)}),
    "documents of int32": (DOCUMENT, {"doc": SORTED.int()}),
    "ends of int64": (DOCUMENT, {"doc": EXTREMES[drawn(2, 8, below=4)].repeat_interleave(13, 1)}),
    "segments of heads": (
        "attention f(seg: int[H, N]):\n    mask seg[h, q] == seg[h, k]\n",
        {"seg": drawn(4, 8).repeat_interleave(13, 1)},
    ),
    "valid keys": ("attention f(ok: bool[B, Nk]):\n    mask ok[b, k]\n", {"ok": VALID}),
    "valid queries": (
        "attention f(ok: bool[B, N]):\n    mask ok[b, q] and k < 30\n",
        {"ok": VALID},
    ),
    "dense": ("attention f(t: bool[Nq, Nk]):\n    mask t[q, k]\n", {"t": TABLE}),
    "dense, turned": ("attention f(t: bool[Nk, Nq]):\n    mask t[k, q]\n", {"t": TABLE.T}),
    "dense, mostly true": ("attention f(t: bool[Nq, Nk]):\n    mask t[q, k]\n", {"t": ~TABLE}),
    "dense by head": (
        "attention f(t: bool[H, B, Nk, Nq]):\n    mask t[h, b, k, q]\n",
        {"t": torch.rand(4, 2, 90, 70, generator=torch.Generator().manual_seed(5)) < 0.01},
    ),
    "dense ints": (
        "attention f(t: int[Nq, Nk]):\n    mask t[q, k] > 5\n",
        {"t": torch.where(TABLE, 2**62, -(2**63))},
    ),
    "dense, too small": (
        "attention f(t: bool[X, Y]):\n    mask not t[q, k]\n",
        {"t": torch.ones(33, 41, dtype=torch.bool)},
    ),
    "dense, too large": (
        "attention f(t: bool[X, Y]):\n    mask t[q, k]\n",
        {"t": torch.nn.functional.pad(TABLE, (0, 37, 0, 21), value=True)},
    ),
}
# Masks of which a tile may stay open.
SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "documents or sinks": (CAUSAL_DOCUMENT.replace("==", "== 2 or k < 4 or 1 =="), {"doc": SORTED}),
    "other documents": (DOCUMENT.replace("==", "!="), {"doc": SORTED}),
    "ordered segments": (DOCUMENT.replace("==", ">="), {"doc": drawn(2, 90)}),
    "tables of tables": (
        "attention f(ids: int[B, N], kind: int[M]):\n"
        "    mask kind[ids[b, q]] == kind[ids[b, k] - 1] or q == k\n",
        {"ids": drawn(2, 91, below=9), "kind": drawn(7)},
    ),
    "floats with NaN": (
        "attention f(x: float[B, N], y: float):\n    mask x[b, q] - y < x[b, k]\n",
        {
            "x": torch.where(
                drawn(2, 90, below=9) == 0, torch.nan, torch.arange(180.0).view(2, 90)
            ).double(),
            "y": 11.5,
        },
    ),
    "dense floats with NaN": (
        "attention f(t: float[Nq, Nk]):\n    mask t[q, k] >= 0.5 or k == q\n",
        {"t": torch.where(TABLE, torch.nan, torch.arange(70)[:, None] / 60 + 0 * TABLE).double()},
    ),
    "limits from a table": (
        "attention f(first: int[B, N], last: int[B, N]):\n    mask first[b, q] <= k < last[b, q]\n",
        {"first": drawn(2, 90, below=60), "last": drawn(2, 90, below=80)},
    ),
    "positions from a table": (
        "attention f(place: int[N], w: int = 9):\n    mask abs(place[q] - place[k]) <= w\n",
        {"place": torch.randperm(90, generator=torch.Generator().manual_seed(1))},
    ),
    "dilated": ("attention f():\n    mask (q - k) % 3 == 0 and k // 30 == q // 30\n", {}),
    "grid": (
        "attention f(w: int = 10, r: int = 2):\n"
        "    mask abs(q // w - k // w) <= r and abs(q % w - k % w) <= r\n",
        {},
    ),
}
OFFSETS = torch.tensor([3, 40])
CALLS: list[dict[str, Any]] = [
    {},
    {"q_offset": 20},
    {"q_offset": -5, "k_offset": 7},
    {"q_offset": OFFSETS, "k_offset": OFFSETS - 9},
    {"k_len": OFFSETS},
    {"k_len": torch.tensor([0, 1000]), "q_offset": OFFSETS},
]


@pytest.mark.parametrize("name", TIGHT)
def test_tight_masks_reach_the_tiles_that_they_need(name: str) -> None:
    check(*TIGHT[name], tight=True)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_segments(name: str) -> None:
    prefix, full = torch.tensor([50, 3]), torch.tensor([True, False, False, True])
    given = {"w": 7, "r": 5, "g": 9, "prefix": prefix, "full": full}
    check(WRITTEN.format(SEVERAL[name]), given)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("name", [*TIGHT, *SOUND])
def test_no_pair_is_lost_wherever_rows_and_columns_lie(name: str, call: dict[str, Any]) -> None:
    check(*(TIGHT | SOUND)[name], **call)


def test_tiles_of_documents_by_offset() -> None:
    """Rows and columns that begin in the middle of the table."""
    given = {"doc": (torch.arange(200) // 31 * 5 % 7).expand(2, 200)}
    for call in ({"q_offset": 64, "k_offset": 33}, {"q_offset": OFFSETS, "k_offset": OFFSETS + 8}):
        check(CAUSAL_DOCUMENT, given, tight=True, **call)
    check(DOCUMENT, given, tight=True, k_len=torch.tensor([41, 90]))


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1),
        (2, 2, 1, 0, 5),
        (2, 2, 1, 5, 0),
        (0, 2, 1, 5, 5),
        (1, 6, 2, 1, 40),
        (3, 3, 3, 17, 16),
        (1, 5, 1, 33, 7),
        (1, 1, 1, 16, 8),
        (1, 2, 2, 15, 257),
    ],
)
@pytest.mark.parametrize("name", ["causal", "sorted documents", "dense, too small"])
def test_odd_sizes(name: str, sizes: tuple[int, ...]) -> None:
    text, given = TIGHT[name]
    if "doc" in given:
        given = {"doc": (torch.arange(300) // 13).expand(sizes[0], 300)}
    check(text, given, sizes)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_ids(data: st.DataObject) -> None:
    """Random runs of ids, offsets, lengths: sound always."""
    rows, columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 120))
    ids = data.draw(
        st.lists(st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)]), max_size=9)
    )
    doc = torch.tensor([*ids, 1]).repeat_interleave(data.draw(st.integers(1, 20)))
    text = data.draw(st.sampled_from([DOCUMENT, CAUSAL_DOCUMENT, DOCUMENT.replace("==", "<")]))
    call: dict[str, Any] = {"q_offset": data.draw(st.integers(-9, 50))}
    if data.draw(st.booleans()):
        call["k_len"] = torch.tensor([data.draw(st.integers(0, columns))])
    check(text, {"doc": doc[None]}, (1, 1, 1, rows, columns), **call)


def test_lists_are_shared_between_heads() -> None:
    """One list of Python objects for all heads where the mask does not vary with them."""
    query = torch.zeros(2, 6, 70, 2)
    parts = spans_of(DOCUMENT, (query, query[:, :3], query[:, :3]), {"doc": SORTED}, {})
    assert len({id(spans) for _, spans in parts}) == 2


def test_forward_and_backward_ask_run_spans() -> None:
    """Each calls it once, so that its count of tiles is theirs."""
    query = torch.zeros(1, 1, 90, 2, dtype=torch.float64)
    program = compiled(DOCUMENT)
    module = module_of(TORCH.emit(plan(program, request(program, query, query, {}))))
    found = module["run_spans"]
    calls: list[Parts] = []

    def counted(*args: Any) -> Parts:
        calls.append(found(*args))
        return calls[-1]

    module["run_spans"] = counted
    inputs = tuple(torch.randn(3, 1, 1, 90, 2, dtype=torch.float64))
    rest = (0.5, 0, 0, None, (SORTED[:1],), ())
    out, _, stat = module["run_forward"](*inputs, *rest)
    module["run_backward"](out, None, *inputs, out, stat, *rest)
    assert len(calls) == 2 and calls[0] == calls[1]


def test_a_million_tokens_take_no_list_of_tiles() -> None:
    """Documents of a thousand tokens among 2**20: 6.7e7 tiles in all, of which 16 a block are
    kept. Enumerating them, at a nanosecond and a byte each on many arrays, would take longer."""
    program = compiled(CAUSAL_DOCUMENT)
    query = torch.empty(1, 1, 1 << 20, 1)
    module = module_of(TORCH.emit(plan(program, request(program, query, query, {}))))
    doc = (torch.arange(1 << 20) >> 10)[None]
    start = time.perf_counter()
    ((_, spans),) = module["run_spans"](query, query, query, 0.5, 0, 0, None, (doc,), ())
    taken = time.perf_counter() - start
    assert sum(hi - lo for reached, _ in spans for lo, hi in reached) == 1024 * 36 * 128
    assert taken < 2, taken
