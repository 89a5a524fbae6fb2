"""Tiles that are boxes of a grid: what reports say of them, against enumeration of all pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.plan.boxes import attn_box
from attndsl.plan.kernel_plan import KernelPlan, Sizes
from attndsl.report.requests import request_for
from attndsl.report.tiles import boxes, lists, needed
from attndsl.report.tiles.orders import plan_of_call
from attndsl.report.tiles.visits import Visits, table_of_tiles, visits_of
from attndsl.runtime import order
from tests.oracle.examples import FOLDER
from tests.report.conftest import GiveTiles
from tests.report.room import bytes_of_lists, sizes_of
from tests.report.test_explain import section
from tests.report.test_visits import noise, run_counted, same, seen_by, shorten_lists

FLAT = (
    "attention a(height: int = 20, width: int = 30{more}):\n"
    "    grid y = height, x = width\n"
    "    mask {mask}"
)
DEEP = "attention a():\n    grid t = 5, y = 9, x = 11\n    mask {mask}"
NEAR = "abs(q.y - k.y) <= 4 and abs(q.x - k.x) <= 4"
DISC = "(q.y - k.y) ** 2 + (q.x - k.x) ** 2 <= 40"
SHIFTED = "(q.y - 4) // 8 == (k.y - 4) // 8 and (q.x - 4) // 8 == (k.x - 4) // 8"
VIDEO = "abs(q.t - k.t) <= 1 and q.y // 4 == k.y // 4 and k.x <= q.x"
SAME = NEAR + " and kind[b, q] == kind[b, k]"


def kinds(*shape: int) -> Tensor:
    """Tokens of a few kinds, many of them beside their like."""
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(5)).sort(-1).values


# text, grid, how many batches, arguments; whether exactly the needed boxes are visited
CALLS: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any], bool]] = {
    "near": (FLAT.format(mask=NEAR, more=""), (20, 30), 1, {}, True),
    "near, fits": (FLAT.format(mask=NEAR, more=""), (16, 32), 2, {"height": 16, "width": 32}, True),
    "thin": (FLAT.format(mask=NEAR, more=""), (3, 70), 1, {"height": 3, "width": 70}, True),
    "disc": (FLAT.format(mask=DISC, more=""), (20, 30), 1, {}, True),
    "shifted": (FLAT.format(mask=SHIFTED, more=""), (20, 30), 1, {}, True),
    "video": (DEEP.format(mask=VIDEO), (5, 9, 11), 1, {}, True),
    "reach of heads": (
        FLAT.format(mask="max(abs(q.y - k.y), abs(q.x - k.x)) <= reach[h]", more=", reach: int[H]"),
        (20, 30),
        1,
        {"reach": torch.tensor([0, 9])},
        True,
    ),
    "lengths": (
        FLAT.format(mask=NEAR, more=""),
        (20, 30),
        3,
        {"k_len": torch.tensor([0, 600, 333])},
        False,
    ),
    "kinds": (
        FLAT.format(mask=SAME, more=", kind: int[B, N]"),
        (20, 30),
        2,
        {"kind": kinds(2, 600)},
        False,
    ),
}


@pytest.fixture
def always_boxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Boxes wherever they are possible, though they do not pay for small grids."""
    order._order.cache_clear()
    monkeypatch.setattr(order, "BOXES_PAY", float("inf"))
    yield
    order._order.cache_clear()


def planned(
    attention: attndsl.Attention, call: dict[str, Any], sizes: Sizes | None = None
) -> KernelPlan:
    request = request_for(attention.program, "sm_90", "bfloat16", 64, 64)
    request = replace(request, sizes=sizes)
    plan, chosen = plan_of_call(attention.program, request, seen_by(attention, **call))
    assert chosen.name == plan.request.order == "boxes"
    return plan


def numbers_of(grid: tuple[int, ...], positions: int) -> Tensor:
    """The number of the box of every position."""
    box = attn_box(positions, grid)
    counts = [-(-extent // size) for extent, size in zip(grid, box, strict=True)]
    found = []
    for place in itertools.product(*map(range, grid)):
        number = 0
        for coordinate, size, count in zip(place, box, counts, strict=True):
            number = number * count + coordinate // size
        found.append(number)
    return torch.tensor(found)


def pairs_in_boxes(mask: Tensor, grid: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """How many pairs of every tile take part: [B, H, boxes of queries, boxes of keys]."""
    rows, columns = (torch.nn.functional.one_hot(numbers_of(grid, n)).double() for n in block)
    return rows.T @ mask.double() @ columns


def check(attention: attndsl.Attention, found: list[Visits], grid: Any, call: Any) -> None:
    """Needed tiles and pairs are those of the mask; what is full keeps all of its pairs."""
    mask = attention.mask(**call).expand(call["B"], call["H"], -1, -1)
    for visit in found:
        kept = pairs_in_boxes(mask, grid, visit.block)
        assert visit.is_counted and visit.are_needed_known and visit.are_pairs_known
        assert (visit.needed, visit.needed_pairs) == (int((kept > 0).sum()), int(mask.sum()))
        assert visit.total == kept.numel() and visit.needed <= visit.visited <= visit.total
        assert visit.full <= int((kept == pairs_in_boxes(mask | True, grid, visit.block)).sum())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("always_boxes")
def test_boxes_that_kernels_visit(name: str) -> None:
    text, grid, batches, given, is_tight = CALLS[name]
    attention = attndsl.compile(text=text)
    length = int(torch.tensor(grid).prod())
    call = {"B": batches, "H": 2, "Nq": length, "Nk": length, **given}
    found = list(visits_of(planned(attention, call), seen_by(attention, **call)))
    check(attention, found, grid, call)
    for visit in found:
        assert visit.computed_pairs == visit.visited * visit.block[0] * visit.block[1]
        if is_tight:
            assert visit.visited == visit.needed
        else:
            assert visit.visited < 1.5 * visit.needed


@pytest.mark.usefixtures("always_boxes")
def test_boxes_of_a_stride_that_fits_are_full() -> None:
    attention = attndsl.compile(FOLDER / "gna.attn")
    sizes = {"height": 64, "width": 96, "window": 48, "stride": 16}
    call = {"B": 1, "H": 1, "Nq": 64 * 96, "Nk": 64 * 96, **sizes}
    found = list(visits_of(planned(attention, call), seen_by(attention, **call)))
    check(attention, found, (64, 96), call)
    assert all(visit.visited == visit.full == visit.needed for visit in found)


@pytest.mark.usefixtures("always_boxes")
def test_full_boxes_that_reach_beyond_the_grid_are_masked() -> None:
    attention = attndsl.compile(text=FLAT.format(mask="abs(q.y - k.y) <= 99", more=""))
    call = {"B": 1, "H": 1, "Nq": 960, "Nk": 960, "height": 24, "width": 40}
    plan = planned(attention, call, sizes_of(*((128, 128),) * 3))
    forward = next(visits_of(plan, seen_by(attention, **call)))
    assert forward.block == (128, 128)
    # 24 x 40 by boxes of 8 x 16: 3 x 2 of 3 x 3 are whole
    assert (forward.visited, forward.full) == (81, 9 * 6)


@pytest.mark.usefixtures("always_boxes")
def test_samples_of_boxes_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attndsl.compile(text=FLAT.format(mask=NEAR, more=""))
    call = {"B": 1, "H": 1, "Nq": 6400, "Nk": 6400, "height": 80, "width": 80}
    plan, seen = planned(attention, call), seen_by(attention, **call)
    exact = next(visits_of(plan, seen))
    monkeypatch.setattr(needed, "MOST_PAIRS", 0)
    about = next(visits_of(plan, seen))
    assert (about.visited, about.are_needed_known) == (exact.visited, False)
    assert abs(about.needed - exact.needed) < 0.05 * exact.needed
    monkeypatch.setattr(boxes, "MOST_TESTS", exact.total // 3)
    about = next(visits_of(plan, seen))
    assert not about.is_counted and abs(about.visited - exact.visited) < 0.1 * exact.visited
    assert f"~{about.visited:,}" in table_of_tiles([about])


@pytest.mark.usefixtures("always_boxes")
def test_a_row_with_too_many_boxes_visits_all_between(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attndsl.compile(text=FLAT.format(mask=NEAR, more=""))
    call = {"B": 1, "H": 1, "Nq": 4096, "Nk": 4096, "height": 64, "width": 64}
    plan, seen = planned(attention, call), seen_by(attention, **call)
    free = next(visits_of(plan, seen))
    monkeypatch.setattr(lists, "MOST_LISTED", 0)
    limited = next(visits_of(plan, seen))
    assert free.visited < limited.visited < limited.total
    assert limited.full == 0
    assert (limited.needed, limited.needed_pairs) == (free.needed, free.needed_pairs)


@pytest.mark.usefixtures("always_boxes")
def test_kernels_with_short_lists_of_boxes_visit_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_lists(monkeypatch, 2)
    attention = attndsl.compile(text=FLAT.format(mask=SHIFTED, more=""), backend="triton")
    call = {"k_len": torch.tensor([240, 100]), "height": 20, "width": 12}
    made, counts = run_counted(attention, (noise(2, 1, 240, 16),) * 3, call)
    sizes = {"B": 2, "H": 1, "Hk": 1, "Nq": 240, "Nk": 240, "D": 16}
    same(list(visits_of(made, seen_by(attention, **sizes, **call))), counts)


# -- the order -------------------------------------------------------------------------------------


def test_explain_says_boxes_where_they_pay(give_tiles: GiveTiles) -> None:
    give_tiles((128, 64), (128, 64), (32, 128))
    told = attndsl.compile(FOLDER / "gna.attn").explain(Nq=65536, Nk=65536, H=2)
    found = section(told, "order")
    assert "boxes of 8 x 16 queries and 8 x 8 keys of the grid y = 256, x = 256" in found
    # A run of 128 queries reads 80 rows of pixels and 3 runs of 64 in each, a box 10 x 10 boxes.
    assert f"compute {100 / 240:.2f} of the pairs" in found
    assert "results come back in your order" in found
    assert "backward: boxes of 4 x 8 queries and 8 x 16 keys" in found
    assert "nothing is copied" in found and "reach beyond" not in found
    assert "q.y // stride" in told and "q // width" not in told
    assert f"{512 * 100:,} of {512 * 1024:,} tiles" in found
    tiles = section(told, "tiles for")
    assert "102,400        102,400  102,400" in tiles
    place = "queries at y 128 .. 135, x 128 .. 143 reach 100 boxes of keys, 100 of them full"
    assert f"{place}, at y 96 .. 175, x 96 .. 175" in tiles


def test_explain_says_why_not_boxes(give_tiles: GiveTiles) -> None:
    give_tiles(*((128, 128),) * 3)
    told = attndsl.compile(FOLDER / "neighborhood_2d.attn").explain(Nq=3136, Nk=3136)
    found = section(told, "order")
    assert "linear: a tile is a run of positions, because" in found
    assert "1.57 of the pairs" in found and "121 of 625 tiles" in found
    part = attndsl.compile(FOLDER / "gna.attn").explain(Nq=65536, Nk=65536, q_offset=1)
    assert "do not begin at position 0" in section(part, "order")
    short = attndsl.compile(FOLDER / "gna.attn").explain(Nq=65536, Nk=65000)
    assert "256 x 256 is not all of the queries and keys" in section(short, "order")
    assert "\norder\n" not in attndsl.compile(FOLDER / "causal.attn").explain(Nq=64, Nk=64)


def test_a_grid_of_unknown_extent_is_said_to_be() -> None:
    text = f"attention a(height: int, width: int):\n    grid y = height, x = width\n    mask {NEAR}"
    told = attndsl.compile(text=text).explain(Nq=600, Nk=600, width=30)
    assert "`height` is not given, on which the grid depends" in section(told, "order")


@pytest.mark.usefixtures("always_boxes")
def test_what_boxes_need_and_cost(give_tiles: GiveTiles) -> None:
    give_tiles((128, 64), (128, 64), (32, 128))
    attention = attndsl.compile(text=FLAT.format(mask=NEAR, more=""))
    told = attention.explain(Nq=600, Nk=600, H=2, Hk=1, D=64)
    needs = section(told, "boxes of queries")
    assert "needed   q_y_lo <= k_y_hi + 4\n           and k_y_lo <= q_y_hi + 4" in needs
    assert "full     q_y_hi <= k_y_lo + 4\n" in needs
    assert "640 rows for 600, 640 columns for 600" in section(told, "order")
    kernels = section(told, "kernels for")
    assert [kernels.count(tile) for tile in ("128 x 64", "32 x 128")] == [2, 1]
    many = {n: int(numbers_of((20, 30), n).max()) + 1 for n in (32, 64, 128)}
    size = 2 * bytes_of_lists(many[128], many[64]) + bytes_of_lists(many[128], many[32])
    assert f"{size / 1e3:.3g} kB of lists" in section(told, "how tiles are found")


@pytest.mark.usefixtures("always_boxes")
def test_values_in_the_order_of_boxes_are_counted() -> None:
    attention = attndsl.compile(text=CALLS["kinds"][0], backend="torch")
    found = section(attention.explain(Nq=600, Nk=600, kind=kinds(1, 600)), "how tiles are found")
    places = 128 * (int(numbers_of((20, 30), 128).max()) + 1)
    size = 2 * 8 * places + 8 * places  # kinds of rows and of columns, and one number of each
    assert f"{size / 1e3:.3g} kB of values in the order of boxes" in found
    assert "`kind[b, q]`, `kind[b, k]` are data" in found and "measured" in found
    kernels = attndsl.compile(text=CALLS["kinds"][0], backend="triton")
    found = section(kernels.explain(Nq=600, Nk=600, kind=kinds(1, 600)), "how tiles are found")
    assert "order of boxes" not in found and "of values by block" in found


@pytest.mark.usefixtures("always_boxes")
def test_kernels_visit_what_is_said() -> None:
    """Forward, dq and dkv, in Triton's interpreter."""
    attention = attndsl.compile(text=CALLS["kinds"][0], backend="triton")
    given = {"kind": kinds(2, 143), "height": 11, "width": 13}
    call = {"k_len": torch.tensor([143, 70]), **given}
    inputs = (noise(2, 2, 143, 16), *(noise(2, 1, 143, 16),) * 2)
    made, counts = run_counted(attention, inputs, call)
    assert made.grid is not None
    call |= {"B": 2, "H": 2, "Hk": 1, "Nq": 143, "Nk": 143, "D": 16}
    found = list(visits_of(made, seen_by(attention, **call)))
    same(found, counts)
    check(attention, found, (11, 13), call)


@pytest.mark.usefixtures("always_boxes")
@pytest.mark.parametrize("name", CALLS)
def test_pytorch_visits_what_is_said(name: str) -> None:
    text, grid, batches, given, is_tight = CALLS[name]
    attention = attndsl.compile(text=text, backend="torch")
    length = int(torch.tensor(grid).prod())
    call = {"B": batches, "H": 2, "Nq": length, "Nk": length, "D": 16, **given}
    seen = seen_by(attention, **call)
    plan, _ = plan_of_call(
        attention.program, request_for(attention.program, "cpu", "float32", 16, 16), seen
    )
    assert plan.grid is not None
    forward, _ = visits_of(plan, seen)
    check(attention, [forward], grid, call)
    assert forward.block == (128, 128)
    assert forward.needed_pairs <= forward.computed_pairs <= batches * 2 * length**2
    if is_tight:
        assert forward.visited == forward.needed
