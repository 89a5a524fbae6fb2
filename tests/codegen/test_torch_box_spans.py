"""run_spans of generated PyTorch modules whose tiles are boxes, against the mask, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.plan.boxes import attn_box, attn_positions
from attndsl.plan.planner import plan
from tests.codegen.test_spans import FEW, Parts, marked
from tests.codegen.test_torch import TORCH, compiled, module_of, request
from tests.codegen.test_torch_boxes import EXAMPLES, LENGTHS, PROGRAMS, image
from tests.oracle.attention import Oracle
from tests.oracle.parsing import parse_text

ROWS = 16  # of a box: 4 x 4 in most grids


def spans_of(
    text: str,
    grid: tuple[int, ...],
    given: Mapping[str, Any],
    rows: int,
    few: bool = False,
    **call: Any,
) -> Parts:
    """What run_spans returns for 2 batches and 4 heads, with boxes of so many positions; `few`:
    looking at few tiles at once, so that it halves them step by step."""
    program = compiled(text)
    query, key = torch.zeros(2, 4, prod(grid), 6), torch.zeros(2, 2, prod(grid), 6)
    source = TORCH.emit(
        plan(program, replace(request(program, query, key, call), order="boxes"))
    ).replace("ROWS = 128", f"ROWS = {rows}")
    for old, new in FEW.items() if few else ():
        assert old in source
        source = source.replace(old, new)
    scalars = tuple(given.get(s.name, s.default) for s in program.scalars)
    tensors = tuple(given[t.name] for t in program.tensors)
    rest = (0.5, 0, 0, call.get("k_len"), tensors, scalars)
    found: Parts = module_of(source)["run_spans"](query, key, key, *rest)
    return found


def check_spans(
    text: str, grid: tuple[int, ...], given: Mapping[str, Any], rows: int, tight: bool, **call: Any
) -> None:
    """No pair is left out and none that is masked lies in a full range; `tight`: boxes are reached
    that have a pair which takes part, those are full in which all do, and no other."""
    boxes = [box[box >= 0] for box in attn_positions(grid, attn_box(rows, grid))]
    order, starts = torch.cat(boxes), torch.tensor([0, *map(len, boxes)]).cumsum(0).tolist()
    query, key = torch.zeros(2, 4, len(order), 6), torch.zeros(2, 2, len(order), 6)
    oracle = Oracle(parse_text(text), None, query, key, key, arguments=given, **call)
    mask = oracle.mask().expand(2, 4, -1, -1)[..., order, :][..., order]
    times_seen = torch.zeros(2, 4, dtype=torch.int64)
    parts = [
        part for few in (False, True) for part in spans_of(text, grid, given, rows, few, **call)
    ]
    for (b0, b1, j0, j1, g0, g1), spans in parts:
        chosen = [j * 2 + g for j in range(j0, j1) for g in range(g0, g1)]
        times_seen[b0:b1, chosen] += 1
        assert len(spans) == len(boxes)
        for at, (reached, full) in enumerate(spans):
            block = mask[b0:b1, chosen, starts[at] : starts[at + 1]].flatten(0, 2)
            inside, sure = marked(reached, len(order)), marked(full, len(order))
            assert not (block & ~inside).any()
            assert block[:, sure].all() and not (sure & ~inside).any()
            for lo, hi in zip(starts, starts[1:], strict=False) if tight else ():
                assert bool(inside[lo:hi].any()) == bool(block[:, lo:hi].any())
                assert bool(sure[lo:hi].all()) == bool(block[:, lo:hi].all())
    assert (times_seen == 2).all()


TIGHT: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "near": (PROGRAMS["near"][0], (10, 13), {}),
    "corner": (image("    mask k.y <= q.y and k.x <= q.x\n", 10, 13), (10, 13), {}),
    "strided": (PROGRAMS["strided"][0], (16, 12), {}),
    "three axes": (PROGRAMS["three axes"][0], (5, 6, 7), {}),
    "shifted windows": (
        image(
            "    mask (q.y - 2) // 3 == (k.y - 2) // 3 and (q.x + 1) // 5 == (k.x + 1) // 5\n",
            11,
            9,
        ),
        (11, 9),
        {},
    ),
    "by head": (
        image("    mask abs(q.y - k.y) <= wide[h] and k.x <= q.x\n", 9, 14, "wide: int[H], "),
        (9, 14),
        {"wide": torch.tensor([0, 2, 5, 50])},
    ),
    "everything": (image("", 7, 9), (7, 9), {}),
    "nothing": (image("    mask k.y < q.y - 100\n", 7, 9), (7, 9), {}),
}


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("name", TIGHT)
def test_spans_are_the_needed_boxes(name: str, rows: int) -> None:
    check_spans(*TIGHT[name], rows, tight=True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_spans_are_sound(name: str) -> None:
    text, (height, width), given = PROGRAMS[name]
    grid = (5, 6, 7) if name == "three axes" else (height, width)
    check_spans(text, grid, given, 16, tight=False)
    for lengths in (LENGTHS, torch.tensor([0, 1000])):
        check_spans(text, grid, given, 16, tight=False, k_len=lengths)


SHAPES = (
    "(q.y - k.y) ** 2 + {a} * (q.x - k.x) ** 2 <= {b} ** 2",
    "neighborhood(q.y, k.y, {a}, height) and neighborhood(q.x, k.x, {b}, width)",
    "q.y // {a} == k.y // {a} or q.x % {b} == k.x % {a}",
    "k.y + {a} < q.y or not (k.x <= q.x - {b}) and k <= q + {a}",
    "abs(q.y - k.x) <= {b} and max(k.y, k.x) >= min(q.x, {a})",
    "id[b, q] == id[b, k] and k.x <= q.x + {a}",
    "id[b, k] < {b} or id[b, q] > id[b, k] + {a} and k.y < q.y",
)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_grid(data: st.DataObject) -> None:
    """Random extents, numbers, boxes and lengths: sound always."""
    height, width = (data.draw(st.integers(1, 13)) for _ in "yx")
    a, b = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    shape = data.draw(st.sampled_from(SHAPES))
    ids = data.draw(st.lists(st.integers(-3, 6), min_size=1, max_size=9))
    lasts = data.draw(st.integers(1, 30))
    given = {"id": torch.tensor(ids).repeat_interleave(lasts)[None].repeat(2, 1)}
    text = image(f"    mask {shape.format(a=a, b=b)}\n", height, width, "id: int[B, N], ")
    call = {}
    if data.draw(st.booleans()):
        call["k_len"] = torch.tensor([data.draw(st.integers(0, height * width)) for _ in "ab"])
    rows = data.draw(st.sampled_from((2, 8, 16)))
    check_spans(text, (height, width), given, rows, tight=False, **call)


def test_summaries_tell_boxes_apart() -> None:
    """Documents that are bands of an image: a box of another band is not visited."""
    text = image(
        "    mask doc[b, q] == doc[b, k] and abs(q.x - k.x) <= 99\n", 32, 8, "doc: int[B, N], "
    )
    doc = (torch.arange(256) // 64).expand(2, 256)
    for _, spans in spans_of(text, (32, 8), {"doc": doc}, ROWS):
        assert [span for span, _ in spans] == [
            [(at // 4 * 64, at // 4 * 64 + 64)] for at in range(16)
        ]


def test_strided_neighborhoods_have_no_masked_tile() -> None:
    """As the paper on them promises, where windows begin and end with the boxes."""
    text = image(
        "    mask strided_neighborhood(q.y, k.y, 12, 4, height)\n"
        "    mask strided_neighborhood(q.x, k.x, 12, 4, width)\n",
        32,
        24,
    )
    for _, spans in spans_of(text, (32, 24), {}, ROWS):
        assert all(reached and reached == full for reached, full in spans)
        assert all(sum(hi - lo for lo, hi in reached) == 12 * 12 for reached, _ in spans)
    text = (EXAMPLES / "gna.attn").read_text()  # a 4K image, and boxes of 8 x 16
    for _, spans in spans_of(text, (256, 256), {}, 128):
        assert all(reached == full for reached, full in spans)
        assert sum(hi - lo for reached, _ in spans for lo, hi in reached) == 512 * 80 * 80
