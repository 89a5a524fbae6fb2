"""How many pairs of a query and a key take part: exactly, in memory of O(N)."""

from __future__ import annotations

from typing import Any

import torch

from attndsl.ir.program import Program
from attndsl.report.bench.masks import Mask
from attndsl.report.bench.shapes import Shape
from attndsl.report.requests import request_for
from attndsl.report.tiles.orders import plan_of_call
from attndsl.report.tiles.pairs import count_by_lines
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.views import view

AT_ONCE = 1 << 25  # pairs that are looked at together, some 30 arrays of 8 bytes each


def count_pairs(
    program: Program, mask: Mask, shape: Shape, given: dict[str, Any], device: str = "cpu"
) -> int:
    """Pairs of all batches and heads; `given` lies on the device.

    From the segments of single rows where they say all, in time of O(N); else every pair is looked
    at, some rows at a time.
    """
    sizes = {"B": shape.batch, "H": shape.heads, "Hk": shape.kv_heads, "D": shape.width}
    sizes |= {"Nq": shape.queries, "Nk": shape.keys}
    given_to_program = arguments_of(program, given)
    offset, lengths = given_to_program.pop("q_offset", 0), given_to_program.pop("k_len", None)
    seen = view(program, slots_of(program), sizes, offset, 0, lengths, given_to_program)
    request = request_for(program, "cpu", "float32", shape.width, shape.width)
    plan, _ = plan_of_call(program, request, seen)
    found = count_by_lines(plan, seen)
    if found is not None and found.is_known:
        return found.count
    return count_one_by_one(mask, shape, given, device)


def arguments_of(program: Program, given: dict[str, Any]) -> dict[str, Any]:
    """Those of `given` that a call of the program takes; the others are FlexAttention's alone."""
    names = {slot.name for slot in slots_of(program)} | {"q_offset", "k_offset", "k_len"}
    return {name: value for name, value in given.items() if name in names}


def count_one_by_one(mask: Mask, shape: Shape, given: dict[str, Any], device: str) -> int:
    """Pairs that the mask_mod keeps, looked at one by one."""
    if mask.kept is None:
        return shape.batch * shape.heads * shape.queries * shape.keys
    kept = mask.kept(given)
    keys = torch.arange(shape.keys, device=device)
    head = torch.zeros((), dtype=torch.int64, device=device)
    height = max(1, AT_ONCE // max(shape.keys, 1))
    total = 0
    for number in range(shape.batch if mask.by_batch else 1):
        batch = torch.full((), number, device=device)
        for start in range(0, shape.queries, height):
            end = min(start + height, shape.queries)
            rows = torch.arange(start, end, device=device)[:, None]
            pairs = kept(batch, head, rows, keys).expand(end - start, shape.keys)
            total += int(pairs.sum())
    return total * shape.heads * (1 if mask.by_batch else shape.batch)
