"""order_of: the work it counts is that of the positions, and boxes are chosen where they pay."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor

from attndsl.ir.program import Program
from attndsl.plan.boxes import attn_box, attn_counts, attn_positions
from attndsl.reference import Values, evaluate
from attndsl.runtime import order
from attndsl.runtime.order import BOXES_PAY, Order, Tiles, order_of
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify

HEAD = "from std import neighborhood, strided_neighborhood, disc\n"
IMAGE = "attention a(height: int, width: int, r: int, s: int):\n    grid y = height, x = width\n"
WINDOWS = "    mask {0}(q.y, k.y, {1}, height) and {0}(q.x, k.x, {1}, width)\n"
NEIGHBORHOOD = HEAD + IMAGE + WINDOWS.format("neighborhood", "r")
STRIDED = HEAD + IMAGE + WINDOWS.format("strided_neighborhood", "r, s")
DISC = HEAD + IMAGE + "    mask disc(q.y - k.y, q.x - k.x, r)\n"
SHIFTED = (
    HEAD
    + IMAGE
    + "    mask (q.y - s) // r == (k.y - s) // r and (q.x - s) // r == (k.x - s) // r\n"
)
VIDEO = (
    HEAD
    + "attention a(frames: int, height: int, width: int, r: int, s: int):\n"
    + "    grid t = frames, y = height, x = width\n"
    + "    mask strided_neighborhood(q.t, k.t, r, s, frames)\n"
    + WINDOWS.format("strided_neighborhood", "r, s")
)


def program(text: str) -> Program:
    return simplify(analyse(Source("<test>", text), None, {}))


def sizes_of(n: int, heads: int = 4) -> dict[str, int]:
    return {"B": 1, "H": heads, "Hk": heads, "G": 1, "Nq": n, "Nk": n, "D": 64}


def order_for(
    text: str, grid: tuple[int, ...], r: int, s: int, block: tuple[int, int]
) -> tuple[Order, Program, dict[str, int]]:
    made = program(text)
    names = ("frames", "height", "width")[-len(grid) :]
    scalars = {**dict(zip(names, grid, strict=True)), "r": r, "s": s}
    found = order_of(made, sizes_of(prod(grid)), scalars, *block)
    return found, made, scalars


def tile_counts(
    made: Program, scalars: dict[str, int], queries: Tensor, keys: Tensor
) -> tuple[int, int]:
    """Tiles with a pair that takes part, and tiles of which every pair does; by enumeration."""
    n = int(queries.max()) + 1
    values = Values(torch.float32, torch.device("cpu"), sizes_of(n), scalars, {}, {})
    values.leaves["q"], values.leaves["k"] = (torch.arange(n)[:, None], torch.arange(n)[None, :])
    matrix = evaluate(made.mask, values).expand(n, n)
    some = every = 0
    for rows in queries:
        kept = matrix[rows[rows >= 0]][:, keys.clamp(min=0).reshape(-1)]
        kept = kept.view(len(kept), *keys.shape)
        some += int((kept & (keys >= 0)).any(2).any(0).sum())
        every += int((kept | (keys < 0)).all(2).all(0).sum())
    return some, every


CASES = [
    ("neighborhood", NEIGHBORHOOD, (24, 40), 3, 0),
    ("neighborhood at odd sizes", NEIGHBORHOOD, (23, 37), 2, 0),
    ("strided, a multiple of the boxes", STRIDED, (32, 32), 16, 8),
    ("strided", STRIDED, (30, 34), 9, 4),
    ("disc", DISC, (28, 33), 6, 0),
    ("windows", SHIFTED, (28, 28), 7, 0),
    ("shifted windows", SHIFTED, (28, 28), 7, 3),
    ("video", VIDEO, (6, 12, 14), 5, 1),
    ("strided video", VIDEO, (8, 8, 16), 4, 4),
]


@pytest.mark.parametrize("block", [(32, 16), (64, 64)])
@pytest.mark.parametrize(
    ("text", "grid", "r", "s"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_boxes_visit_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    grid: tuple[int, ...],
    r: int,
    s: int,
    block: tuple[int, int],
) -> None:
    monkeypatch.setattr(order, "MOST_TESTS", 2**20)
    monkeypatch.setattr(order, "MOST_SAMPLES", 2**10)
    order._order.cache_clear()
    found, made, scalars = order_for(text, grid, r, s, block)
    order._order.cache_clear()
    queries, keys = attn_positions(grid, found.query_box), attn_positions(grid, found.key_box)
    some, every = tile_counts(made, scalars, queries, keys)
    assert found.boxes is not None
    assert found.boxes.visited == some
    if text is not DISC:
        assert found.boxes.full == every
    assert found.boxes.full <= every
    assert found.boxes.tiles == len(queries) * len(keys)
    assert found.boxes.pairs == found.boxes.visited * prod(block)


def test_a_stride_of_whole_boxes_leaves_no_partial_tile() -> None:
    found, _, _ = order_for(STRIDED, (64, 64), 32, 16, (128, 64))
    assert found.name == "boxes"
    assert found.boxes is not None
    assert 0 < found.boxes.visited == found.boxes.full


@pytest.mark.parametrize(
    ("text", "grid", "r", "s", "expected"),
    [
        (NEIGHBORHOOD, (256, 256), 3, 0, "boxes"),
        (NEIGHBORHOOD, (56, 56), 3, 0, "linear"),  # a run of 128 is two rows and covers as much
        (STRIDED, (256, 256), 80, 16, "boxes"),
        (STRIDED, (256, 256), 256, 1, "linear"),  # everything
        (DISC, (128, 128), 16, 0, "boxes"),
        (SHIFTED, (128, 128), 16, 0, "boxes"),
        (VIDEO, (30, 48, 80), 18, 8, "boxes"),
    ],
)
def test_boxes_are_chosen_where_they_pay(
    text: str, grid: tuple[int, ...], r: int, s: int, expected: str
) -> None:
    found, _, _ = order_for(text, grid, r, s, (128, 64))
    assert found.name == expected, found.reason
    assert found.linear is not None
    assert found.boxes is not None
    cost = found.boxes.pairs + found.boxes.prepared
    assert (cost <= BOXES_PAY * found.linear.pairs) == (expected == "boxes")


def test_a_sample_comes_near_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, _, _ = order_for(NEIGHBORHOOD, (96, 96), 5, 0, (32, 32))
    monkeypatch.setattr(order, "MOST_TESTS", 2**22)
    monkeypatch.setattr(order, "MOST_SAMPLES", 2**12)
    order._order.cache_clear()
    whole, _, _ = order_for(NEIGHBORHOOD, (96, 96), 5, 0, (32, 32))
    order._order.cache_clear()
    for one, other in ((sampled.linear, whole.linear), (sampled.boxes, whole.boxes)):
        assert one is not None
        assert other is not None
        assert one.visited == pytest.approx(other.visited, rel=0.05)


START = IMAGE.replace("width\n", "width, start = s\n") + "    mask q.y == k.y\n"


@pytest.mark.parametrize(
    ("text", "scalars", "lengths", "reason"),
    [
        (HEAD + IMAGE + "    mask k <= q\n", {}, (64, 64), "no coordinates"),
        (START, {"s": 1}, (64, 64), "does not begin at position 0"),
        (NEIGHBORHOOD, {}, (64, 65), "is not all of the queries and keys"),
        (NEIGHBORHOOD, {}, (65, 65), "is not all of the queries and keys"),
        (NEIGHBORHOOD, {"height": -8, "width": -8}, (64, 64), "is not all"),
        (NEIGHBORHOOD, {"height": 0}, (0, 0), "is not all"),
    ],
)
def test_when_there_can_be_no_boxes(
    text: str, scalars: dict[str, int], lengths: tuple[int, int], reason: str
) -> None:
    sizes = {**sizes_of(64), "Nq": lengths[0], "Nk": lengths[1]}
    found = order_of(
        program(text), sizes, {"height": 8, "width": 8, "r": 1, "s": 0} | scalars, 16, 16
    )
    assert found.name == "linear"
    assert reason in found.reason


def test_a_start_that_is_0_allows_boxes() -> None:
    scalars = {"height": 128, "width": 128, "r": 1, "s": 0}
    found = order_of(program(START), sizes_of(128 * 128), scalars, 128, 64)
    assert found.boxes is not None


def test_tables_are_unknown_and_the_rest_decides() -> None:
    text = (
        HEAD
        + "attention a(doc: int[B, Nk], reach: int[H], height: int, width: int, r: int, s: int):\n"
        + "    grid y = height, x = width\n"
        + WINDOWS.format("neighborhood", "r")
        + "    mask doc[b, q] == doc[b, k] and (q.x - k.x <= reach[h] or reach[h] < 0)\n"
    )
    found, _, _ = order_for(text, (256, 256), 3, 0, (128, 64))
    plain, _, _ = order_for(NEIGHBORHOOD, (256, 256), 3, 0, (128, 64))
    assert found.name == "boxes"
    assert found.boxes is not None
    assert plain.boxes is not None
    assert found.boxes.visited == plain.boxes.visited
    assert found.boxes.full == 0


def test_masks_that_differ_by_head_are_looked_at_for_several() -> None:
    text = HEAD + IMAGE + "    mask abs(q.x - k.x) <= h * r and abs(q.y - k.y) <= h * r\n"
    scalars = {"height": 64, "width": 64, "r": 1, "s": 0}
    found = order_of(program(text), sizes_of(64 * 64, heads=3), scalars, 64, 64)
    plain = HEAD + IMAGE + "    mask abs(q.x - k.x) <= r and abs(q.y - k.y) <= r\n"
    works = [
        order_of(program(plain), sizes_of(64 * 64), scalars | {"r": h}, 64, 64).boxes
        for h in range(3)
    ]
    assert found.boxes is not None
    mean = sum(work.visited for work in works if work is not None) / 3
    assert found.boxes.visited == pytest.approx(mean, abs=1)


GRIDS = [(56, 56), (23, 37), (4, 1000), (30, 48, 80), (1, 7, 9), (2, 3, 4, 5), (1, 1), (300, 3)]


@pytest.mark.parametrize("positions", [16, 32, 64, 128])
@pytest.mark.parametrize("grid", GRIDS)
def test_boxes_hold_every_position_once(grid: tuple[int, ...], positions: int) -> None:
    box = attn_box(positions, grid)
    assert prod(box) == positions
    assert all(extent & (extent - 1) == 0 for extent in box)
    found = attn_positions(grid, box)
    assert found.shape == (prod(attn_counts(grid, box)), positions)
    held = found[found >= 0]
    assert held.sort().values.tolist() == list(range(prod(grid)))
    axes = ("t", "y", "x", "w")[: len(grid)]
    ends = Tiles(axes, grid, box).ends("q", torch.arange(len(found)))
    for number, rows in enumerate(found):
        places = torch.unravel_index(rows[rows >= 0], grid)
        for axis, place in zip(axes, places, strict=True):
            assert int(ends[f"q_{axis}_lo"][number]) == int(place.min())
            assert int(ends[f"q_{axis}_hi"][number]) == int(place.max())
        assert int(ends["q_lo"][number]) == int(rows[rows >= 0].min())
        assert int(ends["q_hi"][number]) == int(rows.max())


def test_rows_of_a_box_follow_the_formula() -> None:
    """position = sum of (corner[j] + offset[j]) * strides[j], as the module states it."""
    grid, box = (5, 6, 7), (2, 4, 2)
    counts, found = attn_counts(grid, box), attn_positions(grid, box)
    for number in range(prod(counts)):
        for row in range(prod(box)):
            place = [
                number // prod(counts[j + 1 :]) % counts[j] * box[j]
                + row // prod(box[j + 1 :]) % box[j]
                for j in range(3)
            ]
            is_there = all(p < e for p, e in zip(place, grid, strict=True))
            position = sum(p * prod(grid[j + 1 :]) for j, p in enumerate(place))
            assert int(found[number, row]) == (position if is_there else -1)


def test_a_flat_image_gets_flat_boxes() -> None:
    assert attn_box(128, (4, 1000)) == (4, 32)
    assert attn_box(64, (1, 1, 4096)) == (1, 1, 64)


def test_a_decision_is_remembered() -> None:
    first, _, _ = order_for(NEIGHBORHOOD, (48, 48), 3, 0, (128, 64))
    hits = order._order.cache_info().hits
    again, _, _ = order_for(NEIGHBORHOOD, (48, 48), 3, 5, (128, 64))  # `s` is not used
    assert again is first
    assert order._order.cache_info().hits == hits + 1
