"""The tiles that generated kernels visit, counted as they run, against the mask of every pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW, Solution
from attndsl.backend import load
from attndsl.ir.nodes import Node, bound, constant, make
from attndsl.plan import planner
from attndsl.plan.kernel_plan import Segment
from attndsl.report.requests import request_for
from tests.codegen.visits import Counter, counting, needed_visits

LO, HI = bound("lo"), bound("hi")
LOWEST, HIGHEST = constant(EVERYTHING_LOW), constant(EVERYTHING_HIGH)
NOTHING = constant(0)


@dataclass
class Case:
    """A call: sizes (batch, heads, key heads, Nq, Nk), parameters and other arguments.

    exact  whether no tile is visited in vain and every full one is known
    """

    text: str
    sizes: tuple[int, int, int, int, int] = (1, 2, 1, 97, 97)
    call: dict[str, Any] = field(default_factory=dict)
    exact: bool = True


def compiled(text: str) -> attndsl.Attention:
    return attndsl.compile(text=text, backend="triton")


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, key_heads, rows, columns = case.sizes
    source = torch.Generator().manual_seed(3)
    shapes = ((batch, heads, rows, 16), *2 * ((batch, key_heads, columns, 16),))
    query, key, value = (torch.randn(shape, generator=source) for shape in shapes)
    return query, key, value


def gradients(run: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    inputs = [x.requires_grad_() for x in inputs_of(case)]
    out = run(*inputs, **case.call)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def check(case: Case) -> Counter:
    """Values and gradients as the reference has them, and the tiles that were needed."""
    attention = compiled(case.text)
    query, key, _ = inputs_of(case)
    with counting(query.device) as counter:
        got = gradients(attention, case)
    for mine, right in zip(got, gradients(attention.reference, case), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    needed = needed_visits(attention, counter, query, key, **case.call)
    if query.numel():
        assert counter.counts.keys() >= {"forward", "backward_dq", "backward_dkv"}
    if case.exact:
        assert counter.counts == needed
    for name, (visited, full) in counter.counts.items():
        assert visited >= needed[name][0]
        assert full <= needed[name][1]
    return counter


# -- segments ------------------------------------------------------------------------------------


def plus(x: Node, y: int) -> Node:
    return make("add", x, constant(y))


def band(near: int, far: int) -> tuple[Segment, Segment]:
    """The segments of near <= q - k < far: of keys, and of queries."""
    keys = Segment(plus(LO, 1 - far), plus(HI, 1 - near), plus(HI, 1 - far), plus(LO, 1 - near))
    queries = Segment(plus(LO, near), plus(HI, far), plus(HI, near), plus(LO, far))
    return keys, queries


def head(count: int) -> tuple[Segment, Segment]:
    """The segments of k < count."""
    keys = Segment(LOWEST, constant(count), LOWEST, constant(count))
    some, all_ = (make("lt", end, constant(count)) for end in (LO, HI))
    queries = Segment(
        LOWEST,
        make("where", some, HIGHEST, LOWEST),
        LOWEST,
        make("where", all_, HIGHEST, LOWEST),
    )
    return keys, queries


EMPTY = Segment(constant(5), constant(5), NOTHING, NOTHING)
# 0 <= q - k < 70 for tiles of at most 32: full parts that meet at a point of their own choice.
HALVES = [
    (
        Segment(plus(LO, -29), plus(HI, 1), plus(LO, -29), plus(LO, 1)),
        Segment(LO, plus(LO, 35), HI, plus(LO, 35)),
    ),
    (
        Segment(plus(LO, -69), plus(LO, -29), plus(HI, -69), plus(LO, -29)),
        Segment(plus(LO, 35), plus(HI, 70), plus(LO, 35), plus(LO, 70)),
    ),
]
SEGMENTS = {
    "one": ("0 <= q - k < 20", [band(0, 20)]),
    "window and prefix": ("k < 37 or 0 <= q - k < 20", [band(0, 20), head(37)]),
    "three": (
        "k < 5 or 0 <= q - k < 18 or 40 <= q - k < 61",
        [band(40, 61), head(5), band(0, 18)],
    ),
    "halves that touch": ("0 <= q - k < 70", [*HALVES, (EMPTY, EMPTY)]),
    "twice the same": ("0 <= q - k < 50", [band(0, 50), band(10, 50)]),
}


def solve_with(monkeypatch: pytest.MonkeyPatch, segments: list[tuple[Segment, Segment]]) -> None:
    """Lets the planner find these segments."""
    keys, queries = (tuple(pair[at] for pair in segments) for at in (0, 1))
    monkeypatch.setattr(planner, "solve_keys", lambda *_, **__: Solution(keys))
    monkeypatch.setattr(planner, "solve_queries", lambda *_, **__: Solution(queries))


NATURAL = {
    "two-sided window": Case("attention n(w: int = 9):\n    mask abs(q - k) <= w\n"),
    "bottom right": Case("attention n():\n    mask k <= q + Nk - Nq\n", (1, 1, 1, 60, 113)),
    "global and window": Case(
        "attention n(g: int, w: int):\n    mask k <= q and (k < g or q - k < w)\n",
        call={"g": 20, "w": 17},
    ),
    "heads of two kinds": Case(
        "attention n(all: bool[H], w: int = 20):\n"
        "    mask k <= q\n    mask all[h] or k < 16 or q - k < w\n",
        (2, 2, 1, 97, 97),
        {"all": torch.tensor([True, False])},
    ),
    "blocks": Case("attention n(w: int = 24):\n    mask q // w == k // w\n"),
    "either side": Case("attention n(w: int = 30):\n    mask abs(q - k) > w\n"),
    "prefix of each sequence": Case(
        "attention n(prefix: int[B]):\n    mask k <= q or k < prefix[b]\n",
        (3, 1, 1, 97, 97),
        {"prefix": torch.tensor([0, 40, 97])},
    ),
}


@pytest.mark.parametrize("name", NATURAL)
def test_natural_masks(name: str) -> None:
    check(NATURAL[name])


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, segments = SEGMENTS[name]
    solve_with(monkeypatch, segments)
    monkeypatch.setattr(planner, "strategy_of", lambda *_: "ranges")
    check(Case(f"attention s():\n    mask {mask}\n", (1, 2, 1, 97, 113)))


def test_segments_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No segments at all, and segments that are empty by their constants."""
    for segments in ([], [(EMPTY, EMPTY)]):
        solve_with(monkeypatch, segments)
        monkeypatch.setattr(planner, "strategy_of", lambda *_: "ranges")
        counter = check(Case(f"attention s{len(segments)}():\n    mask k < q - 200\n"))
        assert set(counter.counts.values()) == {(0, 0)}


def test_full_part_away_from_its_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, first_q), (second, second_q) = band(0, 30), band(45, 80)
    crossed = [
        (
            Segment(first.lo, first.hi, second.full_lo, second.full_hi),
            Segment(first_q.lo, first_q.hi, second_q.full_lo, second_q.full_hi),
        ),
        (
            Segment(second.lo, second.hi, first.full_lo, first.full_hi),
            Segment(second_q.lo, second_q.hi, first_q.full_lo, first_q.full_hi),
        ),
    ]
    solve_with(monkeypatch, crossed)
    monkeypatch.setattr(planner, "strategy_of", lambda *_: "ranges")
    check(Case("attention s():\n    mask 0 <= q - k < 30 or 45 <= q - k < 80\n"))


@pytest.mark.parametrize(
    "call",
    [
        {"q_offset": 40, "k_offset": -3},
        {"q_offset": torch.tensor([0, -30, 60])},
        {"k_len": torch.tensor([97, 0, 33])},
    ],
    ids=["offsets", "offsets of each sequence", "lengths"],
)
def test_segments_of_a_call(call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mask, segments = SEGMENTS["window and prefix"]
    solve_with(monkeypatch, segments)
    monkeypatch.setattr(planner, "strategy_of", lambda *_: "ranges")
    check(Case(f"attention s():\n    mask {mask}\n", (3, 1, 1, 60, 97), call))


# -- lists ---------------------------------------------------------------------------------------

DOCUMENTS = "attention documents(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k] and k <= q\n"
ALONE = "attention alone(doc: int[N]):\n    mask doc[q] == doc[k]\n"
TABLE = "attention table(near: bool[Nq, Nk]):\n    mask near[q, k]\n"
HEAD_TABLE = "attention heads(near: bool[H, Nq, Nk]):\n    mask near[h, q, k]\n"
VALID = "attention valid(there: bool[B, Nk]):\n    mask there[b, k]\n"
BOTH = "attention both(x: bool[B, Nq], y: bool[H, Nk]):\n    mask x[b, q] and y[h, k]\n"
LEVELS = "attention levels(x: float[Nq], y: float[H, Nk]):\n    mask x[q] < y[h, k]\n"
SOMETIMES = "attention some(near: bool[Nq, Nk], n: int):\n    mask near[q, k] or k < n\n"


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


def table(*shape: int) -> Tensor:
    """Blocks of 16 x 16 that are empty, full or mixed."""
    rows, columns = shape[-2:]
    coarse = ints(3, *shape[:-2], -(-rows // 16), -(-columns // 16))
    kind = coarse.repeat_interleave(16, -2).repeat_interleave(16, -1)[..., :rows, :columns]
    return (kind == 2) | ((kind == 1) & (ints(2, *shape) == 1))


def levels() -> tuple[Tensor, Tensor]:
    x, y = torch.arange(97.0) / 97, torch.arange(194.0).view(2, 97) / 97 - 0.3
    x[40], y[1, 70] = torch.nan, torch.nan
    return x, y


LISTS = {
    "sorted": Case(DOCUMENTS, (2, 2, 1, 97, 97), {"doc": (torch.arange(194) // 21).view(2, 97)}),
    "shuffled": Case(DOCUMENTS, (2, 2, 1, 97, 97), {"doc": ints(40, 2, 97)}, exact=False),
    "strewn": Case(ALONE, (1, 1, 1, 113, 113), {"doc": torch.arange(113) // 16 % 3}),
    "unsorted": Case(ALONE, (2, 1, 1, 97, 97), {"doc": (torch.arange(97) * 7 // 100 * 5) % 4}),
    "table": Case(TABLE, (2, 2, 1, 97, 113), {"near": table(97, 113)}),
    "table of heads": Case(HEAD_TABLE, (2, 2, 2, 97, 97), {"near": table(2, 97, 97)}),
    "validity": Case(VALID, (3, 1, 1, 60, 97), {"there": torch.arange(97) < ints(97, 3, 1)}),
    "validity, none": Case(VALID, (1, 1, 1, 60, 97), {"there": torch.zeros(1, 97).bool()}),
    "batch and head": Case(
        BOTH, (2, 3, 1, 60, 97), {"x": ints(40, 2, 60) > 30, "y": torch.arange(97) // 20 % 2 == 0}
    ),
    "floats, NaN": Case(LEVELS, (1, 2, 1, 97, 97), dict(zip("xy", levels(), strict=True)), False),
    "table or prefix": Case(SOMETIMES, (1, 1, 1, 97, 97), {"near": table(97, 97), "n": 32}),
    "no queries": Case(TABLE, (1, 1, 1, 0, 33), {"near": table(0, 33)}),
    "no keys": Case(TABLE, (1, 1, 1, 33, 0), {"near": table(33, 0)}),
}
LISTS["batch and head"].call["y"] = LISTS["batch and head"].call["y"].expand(3, 97)


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str) -> None:
    check(LISTS[name])


@pytest.mark.parametrize(
    "call",
    [
        {"q_offset": 20, "k_offset": 10},
        {"q_offset": torch.tensor([0, 37, -40])},
        {"k_len": torch.tensor([97, 0, 33])},
    ],
    ids=["offsets", "offsets of each sequence", "lengths"],
)
def test_lists_of_a_call(call: dict[str, Any]) -> None:
    """Rows beyond the table look up 0; a length cuts a block whose summary knows it whole."""
    doc = (torch.arange(3 * 97) // 25).view(3, 97)
    check(Case(DOCUMENTS, (3, 1, 1, 60, 97), {"doc": doc, **call}, exact=False))
    near = table(60, 97)
    check(Case(TABLE, (3, 1, 1, 60, 97), {"near": near, **call}, exact=False))


def test_lists_within_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, segments = SEGMENTS["window and prefix"]
    keys, queries = zip(*segments, strict=True)

    def without_full(found: tuple[Segment, ...]) -> list[Segment]:
        return [Segment(s.lo, s.hi, NOTHING, NOTHING) for s in found]

    solve_with(monkeypatch, list(zip(without_full(keys), without_full(queries), strict=True)))
    monkeypatch.setattr(planner, "strategy_of", lambda *_: "lists")
    text = f"attention s(doc: int[N]):\n    mask ({mask}) and doc[q] == doc[k]\n"
    case = Case(text, call={"doc": torch.arange(97) // 48}, exact=False)
    counter = check(case)
    needed = needed_visits(compiled(text), counter, *inputs_of(case)[:2], **case.call)
    visited = {name: count for name, (count, _) in counter.counts.items()}
    assert visited == {name: count for name, (count, _) in needed.items()}


def test_rows_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """They visit all from their first to their last, with the mask; shorter rows keep lists."""
    from attndsl.codegen.triton import host

    shorter = host.LIST_FUNCTIONS.replace("MOST_LISTED = 1024", "MOST_LISTED = 2")
    monkeypatch.setattr("attndsl.codegen.triton.LIST_FUNCTIONS", shorter)
    doc = torch.tensor([0, 1, 2, 1, 2, 0, 1, 0, 0, 2]).repeat_interleave(32)[None, :310]
    case = Case(DOCUMENTS, (1, 1, 1, 310, 310), {"doc": doc}, exact=False)
    counter = check(case)
    mask = compiled(DOCUMENTS).mask(Nq=310, Nk=310, **case.call)[0, 0]
    config = counter.configs["forward"]
    expected, longer, reached = 0, 0, 0
    for m in range(0, 310, config.block_m):
        rows = mask[m : m + config.block_m]
        kept = [n for n, part in enumerate(rows.split(config.block_n, 1)) if part.any()]
        longer += len(kept) > 2
        reached += -(-min(m + config.block_m, 310) // config.block_n)
        expected += len(kept) if len(kept) <= 2 else kept[-1] + 1 - kept[0]
    assert longer and counter.counts["forward"][0] == expected < reached


def test_lists_are_made_on_the_device() -> None:
    """Nothing that the generated code does waits for the device."""
    for text in (DOCUMENTS, TABLE, BOTH, LEVELS):
        program = compiled(text).program
        made = planner.plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))
        assert made.strategy == "lists"
        emitted = load("attndsl.codegen", "triton").emit(made)
        for waiting in (".item(", ".tolist(", ".cpu(", "nonzero", "unique", "masked_select"):
            assert waiting not in emitted


def test_classifying_kernels_are_described() -> None:
    """So that they can be compiled for a target that is not here."""
    generator = load("attndsl.codegen", "triton")
    program = compiled(DOCUMENTS).program
    made = planner.plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))
    names = [spec.name for spec in generator.kernels(made)]
    assert {"classify_rows", "classify_columns"} < set(names)
    assert len(names) == len(set(names))
