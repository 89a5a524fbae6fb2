"""Tiles that `explain` says kernels visit: against kernels that count, and against enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from attndsl.codegen.triton.host import LIST_FUNCTIONS
from torch import Tensor

import attndsl
from attndsl.ir.nodes import is_const
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import MOST_LISTED, KernelPlan, Request
from attndsl.plan.planner import plan
from attndsl.report.choices.call import shown_call
from attndsl.report.requests import request_for
from attndsl.report.tiles import lists, loops, needed, visits
from attndsl.report.tiles.visits import Visits, table_of_tiles, visits_of
from attndsl.runtime import cache, views
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.views import View
from tests.codegen.visits import count_tiles, counting
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs
from tests.report.room import sizes_of

WINDOW = "attention a(window: int = 100):\n    mask 0 <= q - k < window"
GLOBAL = "attention a():\n    mask k <= q and (k < 40 or q - k < 90)"
BEHIND = "attention a():\n    mask k < 30 or k >= q"
NO_MASK = "attention a():\n    score score"
DOCUMENTS = "attention a(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k] and k <= q"
NEAR = "attention a(place: float[B, N]):\n    mask abs(place[b, q] - place[b, k]) < 0.5"
VALID = "attention a(valid: bool[B, Nk]):\n    mask valid[b, k] and abs(q - k) < 100"
DENSE = "attention a(kept: bool[H, Nq, Nk]):\n    mask kept[h, q, k] and k <= q + 40"
REACH = "attention a(reach: int[H]):\n    mask 0 <= q - k < reach[h]"


def seen_by(attention: attndsl.Attention, **call: Any) -> View:
    sizes = {name: call.pop(name, None) for name in ("B", "H", "Hk", "D", "Nq", "Nk")}
    sizes |= {name: 1 if size is None and name == "B" else size for name, size in sizes.items()}
    offsets = (call.pop("q_offset", 0), call.pop("k_offset", 0), call.pop("k_len", None))
    slots = slots_of(attention.program)
    return views.view(attention.program, slots, sizes, *offsets, call)


def planned(attention: attndsl.Attention, **changes: Any) -> KernelPlan:
    request = request_for(attention.program, "sm_90", "bfloat16", 64, 64)
    return plan(attention.program, replace(request, **changes))


@contextmanager
def requests() -> Iterator[list[tuple[Program, Request]]]:
    """The programs and requests of the modules that are asked for meanwhile."""
    made: list[tuple[Program, Request]] = []
    inner = cache.module_of

    def recorded(handle: str, program: Program, request: Request) -> ModuleType:
        made.append((program, request))
        return inner(handle, program, request)

    with patch.object(cache, "module_of", recorded):
        yield made


def sorted_ids(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 5, shape, generator=generator).sort(-1).values


def loose_ids(*shape: int) -> Tensor:
    return torch.randint(0, 70, shape, generator=torch.Generator().manual_seed(2))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


N = 150
# text, sizes (batch, heads, key heads, Nq, Nk), arguments
CALLS: dict[str, tuple[str, tuple[int, int, int, int, int], dict[str, Any]]] = {
    "window": (WINDOW, (1, 2, 1, N, N), {"window": 50}),
    "global": (GLOBAL, (2, 1, 1, N, N), {}),
    "behind": (BEHIND, (1, 1, 1, 70, 201), {"q_offset": 131}),
    "no mask": (NO_MASK, (1, 1, 1, 90, 70), {}),
    "lengths": (NO_MASK, (3, 2, 2, 90, N), {"k_len": torch.tensor([0, 64, 133])}),
    "reach": (REACH, (1, 3, 1, N, N), {"reach": torch.tensor([1, 40, 300])}),
    "offsets": (WINDOW, (2, 1, 1, 70, N), {"window": 33, "q_offset": torch.tensor([80, 3])}),
    "documents": (DOCUMENTS, (2, 2, 1, N, N), {"doc": sorted_ids(2, N)}),
    "loose documents": (DOCUMENTS, (1, 1, 1, N, N), {"doc": loose_ids(1, N)}),
    "short documents": (DOCUMENTS, (1, 1, 1, N, N), {"doc": sorted_ids(1, 100), "q_offset": 3}),
    "documents, lengths": (
        DOCUMENTS,
        (2, 1, 1, N, N),
        {"doc": sorted_ids(2, N), "k_len": torch.tensor([100, 7])},
    ),
    "near": (NEAR, (1, 1, 1, N, N), {"place": noise(1, N).sort(-1).values}),
    "valid": (VALID, (2, 1, 1, N, N), {"valid": torch.arange(N) < torch.tensor([[40], [130]])}),
    "dense": (DENSE, (1, 2, 1, 90, N), {"kept": noise(2, 90, N) > 2.5}),
}


def same(found: list[Visits], counts: dict[str, tuple[int, int]]) -> None:
    assert {v.kernel for v in found} <= counts.keys()
    assert {v.kernel: (v.visited, v.full) for v in found} == {
        v.kernel: counts[v.kernel] for v in found
    }


def run_counted(
    attention: attndsl.Attention, inputs: tuple[Tensor, Tensor, Tensor], call: dict[str, Any]
) -> tuple[KernelPlan, dict[str, tuple[int, int]]]:
    """The plan of a call in Triton's interpreter, and what its kernels count."""
    query = inputs[0].detach().requires_grad_()
    with counting(query.device) as counter, requests() as made:
        attention(query, *inputs[1:], **call).sum().backward()
    program, request = made[-1]
    return plan(replace(program, selects=()), request), counter.counts


@pytest.mark.parametrize("name", CALLS)
def test_triton_kernels_visit_what_is_said(name: str) -> None:
    text, (batch, heads, key_heads, rows, columns), call = CALLS[name]
    attention = attndsl.compile(text=text, backend="triton")
    inputs = (noise(batch, heads, rows, 16), *(noise(batch, key_heads, columns, 16),) * 2)
    made, counts = run_counted(attention, inputs, call)
    sizes = {"B": batch, "H": heads, "Hk": key_heads, "Nq": rows, "Nk": columns, "D": 16}
    seen = seen_by(attention, **sizes, **call)
    found = list(visits_of(made, seen))
    same(found, counts)
    check_needed(attention, found, {**sizes, **call})


def check_needed(
    attention: attndsl.Attention,
    found: list[Visits],
    call: dict[str, Any],
    mask: Tensor | None = None,
) -> None:
    """What is needed, from the mask of every pair; that of the attention unless it is given."""
    mask = attention.mask(**call) if mask is None else mask
    mask = mask.expand(call["B"], call["H"], -1, -1)
    whole = torch.full((call["B"],), mask.shape[3])
    for visit in found:
        config = replace(planned(attention).forward, block_m=visit.block[0], block_n=visit.block[1])
        tiles, _ = count_tiles(mask, config, visit.kernel == "backward_dkv", whole)
        assert visit.are_needed_known and visit.are_pairs_known and visit.is_counted
        assert (visit.needed, visit.needed_pairs) == (tiles, int(mask.sum()))


@pytest.mark.parametrize("name", NAMES)
def test_examples_visit_what_is_said(name: str) -> None:
    *floats, inputs = example_inputs(name, Sizes(batch=1, heads=2, key_heads=1, length=100))
    given = {
        n: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
        for n, x in inputs.arguments.items()
    }
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend="triton", **inputs.consts)
    query, key, value = (x.float() for x in floats)
    made, counts = run_counted(attention, (query, key, value), {**inputs.call, **given})
    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": inputs.rows, "Nk": inputs.columns, "D": 16}
    offsets = {name: inputs.call.get(name, 0) for name in ("q_offset", "k_offset")}
    lengths = inputs.call.get("k_len")
    shown = shown_call(attention.program, sizes, *offsets.values(), lengths, given, (query, key))
    if is_const(shown.program.mask, False):
        return  # lists have all of it
    found = list(visits_of(made, shown.seen))
    same(found, counts)
    check_needed(attention, found, sizes, views.mask_pairs(shown.program, shown.seen))


@pytest.mark.parametrize("name", CALLS)
def test_pytorch_visits_what_is_said(name: str) -> None:
    """Every pair that takes part lies in a tile that is visited, and the pairs of full tiles do."""
    text, (batch, heads, key_heads, _, _), call = CALLS[name]
    given = {n: x for n, x in call.items() if n not in ("valid", "kept", "doc", "place")}
    tables = {
        n: x.repeat_interleave(4, -1) if n != "kept" else x.repeat_interleave(4, 2).repeat(1, 4, 1)
        for n, x in call.items()
        if n not in given
    }
    sizes = {"B": batch, "H": heads, "Hk": key_heads, "Nq": 360, "Nk": 4 * N, "D": 16}
    attention = attndsl.compile(text=text, backend="torch")
    seen = seen_by(attention, **sizes, **given, **tables)
    made = planned(attention, backend="torch", target="cpu", dtype="float32")
    forward, backward = visits_of(made, seen)
    assert replace(backward, kernel="forward") == forward
    check_needed(attention, [forward], {**sizes, **given, **tables})
    assert forward.needed <= forward.visited
    assert forward.needed_pairs <= forward.computed_pairs
    tiles = attention.tiles(block=forward.block, **sizes, **given, **tables)
    tiles = tiles.expand(batch, heads, -1, -1)
    if "k_len" not in given:  # values beyond it count for the summaries of a call
        assert forward.visited <= int((tiles > 0).sum())  # no more than the facts of tiles keep


# -- long calls ------------------------------------------------------------------------------------


def test_a_sample_of_rows_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attndsl.compile(text=DOCUMENTS)
    seen = seen_by(attention, Nq=40_000, Nk=40_000, doc=torch.arange(40_000)[None] // 3000)
    made = planned(attention, sizes=sizes_of((128, 128), (128, 64), (64, 128)))
    exact = list(visits_of(made, seen))
    assert all(v.is_counted for v in exact)
    monkeypatch.setattr(lists, "SAMPLES", (64, 8))
    about = list(visits_of(made, seen))
    for right, guess in zip(exact, about, strict=True):
        assert not guess.is_counted
        assert abs(guess.visited - right.visited) < 0.1 * right.visited
        assert abs(guess.full - right.full) < 0.2 * right.full
    assert f"~{about[0].visited:,}" in table_of_tiles(about)
    assert exact[2].visited < 10_000  # larger figures have commas
    assert f" {exact[2].visited} " in table_of_tiles(exact)


def test_too_many_tiles_for_all_rows_are_estimated_from_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention = attndsl.compile(text=DOCUMENTS)
    doc = loose_ids(1, 8192)
    seen = seen_by(attention, Nq=8192, Nk=8192, doc=doc)
    exact = next(visits_of(planned(attention), seen))
    monkeypatch.setattr(lists, "MOST_RUNS", 300)
    monkeypatch.setattr(lists, "SAMPLES", (64, 32, 8))
    about = next(visits_of(planned(attention), seen))
    assert exact.is_counted and not about.is_counted
    assert abs(about.visited - exact.visited) < 0.05 * exact.visited


def test_a_row_with_too_many_tiles_visits_all_from_its_first_to_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention = attndsl.compile(text=DOCUMENTS)
    doc = torch.arange(1024)[None] // 128 % 2  # a row of tiles needs every other two
    doc[0, :128] = 7  # none but the first needs those
    seen = seen_by(attention, Nq=1024, Nk=1024, doc=doc)
    made = planned(attention, sizes=sizes_of(*((128, 128),) * 3))
    listed = next(visits_of(made, seen))
    assert listed.block == (128, 128)
    tiles = attention.tiles(block=listed.block, Nq=1024, Nk=1024, doc=doc)[0, 0] > 0
    rows = [row.nonzero().flatten().tolist() for row in tiles]
    assert listed.visited == listed.needed == sum(map(len, rows))
    monkeypatch.setattr(lists, "MOST_LISTED", 3)
    limited = next(visits_of(made, seen))
    hulls = [len(row) if len(row) <= 3 else row[-1] + 1 - row[0] for row in rows]
    assert limited.visited == sum(hulls) > listed.visited
    assert limited.full < listed.full
    assert (limited.needed, limited.needed_pairs) == (listed.needed, listed.needed_pairs)


def shorten_lists(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Lets the lists of kernels have so few tiles, and reports say so."""
    shorter = LIST_FUNCTIONS.replace(f"MOST_LISTED = {MOST_LISTED} ", f"MOST_LISTED = {most} ")
    monkeypatch.setattr("attndsl.codegen.triton.LIST_FUNCTIONS", shorter)
    monkeypatch.setattr(lists, "MOST_LISTED", most)


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("name", ["loose documents", "documents, lengths", "valid", "dense"])
def test_kernels_with_short_lists_visit_what_is_said(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_lists(monkeypatch, most)
    test_triton_kernels_visit_what_is_said(name)


def test_kernels_list_as_many_tiles_as_is_said() -> None:
    assert f"MOST_LISTED = {MOST_LISTED} " in LIST_FUNCTIONS


@pytest.mark.parametrize("rows", [1, 1000, 3_000_000])
@pytest.mark.parametrize("tiles", [1, 1024, 5000])
def test_rows_of_long_lists_are_as_long_as_is_said(rows: int, tiles: int) -> None:
    """Where there are many of them, their places would else leave an int32."""
    names: dict[str, Any] = {"torch": torch}
    exec(LIST_FUNCTIONS, names)
    counts, entries, most = names["attn_lists"](rows, tiles, torch.device("meta"))
    assert most == lists.most_listed(rows, tiles)
    assert rows * most + tiles < len(entries) <= 2**31 - 1 and len(counts) == rows


def near(guess: int, right: int, error: float) -> bool:
    return abs(guess - right) <= max(error, 1e-9) * right


@pytest.mark.parametrize("lanes", [16, 200])
def test_tiles_that_are_not_full_are_sampled(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attndsl.compile(text=DOCUMENTS)
    doc = (torch.arange(8192) // 300 * 7 % 11)[None]  # the same number now and then
    made, seen = planned(attention), seen_by(attention, Nq=8192, Nk=8192, doc=doc)
    exact = list(visits_of(made, seen, 1 << 30))
    monkeypatch.setattr(needed, "MOST_PAIRS", 0)
    monkeypatch.setattr(needed, "SAMPLED_PAIRS", 1 << 19)
    monkeypatch.setattr(lists, "SAMPLES", (lanes, 8))
    about = list(visits_of(made, seen))
    assert len({v.needed_pairs for v in about}) == 1
    for right, guess in zip(exact, about, strict=True):
        assert right.are_needed_known and right.are_pairs_known
        assert not (guess.are_needed_known or guess.are_pairs_known)
        assert guess.needed_error < 0.3 and 0 < guess.pairs_error < 0.3
        assert near(guess.needed, right.needed, guess.needed_error)
        assert near(guess.needed_pairs, right.needed_pairs, guess.pairs_error)


STRIDE = "attention a(s: int = 100):\n    mask k <= q and (q - k < 128 or k % s == 0)"
HEAVY = "attention a(reach: int[H]):\n    mask k < 3 or 0 <= q - k < reach[h]"


@pytest.mark.parametrize("step", [37, 300, 1000])
def test_what_repeats_is_not_missed_by_a_sample(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of keys with a multiple of the step are visited by all that follow, others by few."""
    attention = attndsl.compile(text=STRIDE)
    made, seen = planned(attention), seen_by(attention, Nq=30_000, Nk=30_000, s=step)
    with monkeypatch.context() as patched:
        patched.setattr(lists, "MOST_RUNS", 1 << 24)
        exact = list(visits_of(made, seen))
    monkeypatch.setattr(lists, "SAMPLES", (32, 16))
    monkeypatch.setattr(lists, "MOST_RUNS", 1000)
    for right, guess in zip(exact, visits_of(made, seen), strict=True):
        assert right.is_counted and not guess.is_counted
        assert near(guess.visited, right.visited, guess.visited_error) and guess.visited_error < 0.2
        assert near(guess.needed, right.needed, guess.needed_error)
        assert guess.are_pairs_known and guess.needed_pairs == exact[0].needed_pairs


def test_the_few_tiles_that_visit_most_are_among_those_that_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention = attndsl.compile(text=HEAVY)
    reach = torch.arange(64) * 5
    made, seen = planned(attention), seen_by(attention, H=64, Nq=9000, Nk=9000, reach=reach)
    exact = list(visits_of(made, seen))
    monkeypatch.setattr(loops, "MOST_LANES", 500)
    for right, guess in zip(exact, visits_of(made, seen), strict=True):
        assert right.is_counted and not guess.is_counted
        assert near(guess.visited, right.visited, 0.001)  # they were chosen by this very figure
        assert near(guess.full, right.full, 0.15)
        assert guess.needed_pairs == right.needed_pairs


def test_what_may_be_far_off_is_not_told() -> None:
    attention = attndsl.compile(text=WINDOW)
    seen = seen_by(attention, Nq=4096, Nk=4096)
    found = list(visits_of(planned(attention), seen))
    bad = [replace(v, is_counted=False, visited_error=0.5, needed_error=0.5) for v in found]
    assert table_of_tiles(bad).count("not counted") == 4 * len(bad)
    assert str(found[0].visited) not in table_of_tiles(bad)


def test_ten_million_tokens() -> None:
    length = 10_000_000
    attention = attndsl.compile(text=WINDOW)
    made = planned(attention, sizes=sizes_of((32, 64), (64, 32), (32, 64)))
    forward = next(visits_of(made, seen_by(attention, Nq=length, Nk=length)))
    block_m, block_n = forward.block
    last = torch.arange(0, length, block_m) + block_m - 1
    first = (last - (block_m - 1) - 99).clamp(min=0)
    assert forward.visited == int((last // block_n - first // block_n + 1).sum())
    assert forward.needed == forward.visited and forward.are_needed_known


def test_pytorch_estimates_what_is_too_long_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, call in ((WINDOW, {}), (DOCUMENTS, {"doc": torch.arange(4096)[None] // 300})):
        attention = attndsl.compile(text=text, backend="torch")
        seen = seen_by(attention, Nq=4096, Nk=4096, **call)
        made = planned(attention, backend="torch", target="cpu", dtype="float32")
        asked = next(visits_of(made, seen))
        with monkeypatch.context() as patched:
            patched.setattr(visits, "MOST_SPANS", 0)
            told = next(visits_of(made, seen))
        assert (told.visited, told.needed) == (asked.visited, asked.needed)
        if made.strategy == "ranges":
            assert replace(told, full=asked.full) == asked
        assert told.full <= asked.full


def test_an_empty_call_visits_nothing() -> None:
    for text, call in ((WINDOW, {}), (DOCUMENTS, {"doc": torch.zeros(1, 0, dtype=torch.int64)})):
        for backend in ("triton", "torch"):
            attention = attndsl.compile(text=text)
            made = planned(attention, backend=backend)
            for sizes in ({"Nq": 0, "Nk": 8}, {"Nq": 8, "Nk": 0}):
                for found in visits_of(made, seen_by(attention, **sizes, **call)):
                    assert (found.visited, found.full, found.needed) == (0, 0, 0)
