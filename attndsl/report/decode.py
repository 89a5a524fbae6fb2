"""Calls of few queries in reports: their tiles, and into how many parts their keys are split."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attndsl.plan.kernel_plan import Config, Decode, KernelPlan
from attndsl.plan.splits import (
    attn_are_windows,
    attn_keys_reached,
    attn_sequences,
    attn_splits,
)
from attndsl.report.tiles.visits import Visits
from attndsl.runtime.segments import reach_of
from attndsl.runtime.views import View

USUAL_PROCESSORS = 132  # of an H100 or H200, where there is no GPU here


def decode_of_call(plan: KernelPlan, seen: View) -> Decode | None:
    """How a call runs, where it has few queries; else None."""
    decode = plan.decode
    if decode is None or seen.sizes["Nq"] > decode.widest.block_m:
        return None
    return decode


def tile_of_call(decode: Decode, seen: View) -> tuple[int, Config]:
    """How many rows there are for those heads that share tiles, and the tile."""
    rows = seen.sizes["Nq"]
    if decode.packs_heads:
        rows *= group_of(seen)
    return rows, next((tile for tile in decode.tiles if rows <= tile.block_m), decode.widest)


def group_of(seen: View) -> int:
    return seen.sizes["H"] // max(seen.sizes["Hk"], 1)


def plan_of_few(plan: KernelPlan, seen: View) -> KernelPlan:
    """The plan with the forward's tile that a call really has."""
    decode = decode_of_call(plan, seen)
    return plan if decode is None else replace(plan, forward=tile_of_call(decode, seen)[1])


def shared_visits(plan: KernelPlan, seen: View, found: list[Visits]) -> list[Visits]:
    """Visits of a call, those of the forward counted once for heads that share their tiles."""
    decode = decode_of_call(plan, seen)
    if decode is None:
        return found
    forward, *others = found
    rows, tile = tile_of_call(decode, seen)
    names = ("visited", "full", "needed", "total", "computed_pairs")
    group = group_of(seen) if decode.packs_heads and rows <= tile.block_m else 1
    counts = {name: getattr(forward, name) // max(group, 1) for name in names}
    # No tile is treated as full: all of them test their pairs.
    return [replace(forward, **(counts | {"kernel": "decode", "full": 0})), *others]


def decode_lines(plan: KernelPlan, seen: View) -> list[str]:
    """What runs for calls of few queries; of such a call, into how many parts its keys are
    split."""
    decode = plan.decode
    if decode is None:
        return []
    what = "pairs of a query and a head of a group" if decode.packs_heads else "queries"
    rows = ", ".join(str(tile.block_m) for tile in decode.tiles)
    most = decode.widest.block_m
    lines = [
        f"calls of up to {most} queries run decode instead of forward: tiles of {rows} rows, "
        f"{what}, and {decode.widest.block_n} keys"
    ]
    if seen.sizes["Nq"] <= most:
        lines.append(call_line(plan, decode, seen))
    return lines


def call_line(plan: KernelPlan, decode: Decode, seen: View) -> str:
    sizes = seen.sizes
    rows, tile = tile_of_call(decode, seen)
    heads = sizes["Hk"] if decode.packs_heads else sizes["H"]
    processors = processors_of(seen.device)
    places = decode.resident * processors
    where = f"for {processors} multiprocessors"
    window, is_many = decode.windows, sizes["B"] * sizes["H"] > places
    if (
        window is not None
        and attn_are_windows(sizes["Nq"], sizes["Nk"], tile.block_m, window.block_m, window.block_n)
        and is_many
    ):
        together = attn_sequences(sizes["B"], sizes["H"], places)
        return f"this call runs windows: a program has {together} sequences, {where}"
    tiles = -(-rows // tile.block_m) * heads * sizes["B"]
    splits = attn_splits(tiles, reach_of_call(plan, decode, seen), tile.block_n, places)
    head = f"this call has {tiles} tiles of {tile.block_m} rows, whose keys"
    if splits == 1:
        return f"{head} are not split {where}"
    return f"{head} are split into {splits} parts {where}; decode_merge joins their results"


def processors_of(device: torch.device) -> int:
    if not torch.cuda.is_available():
        return USUAL_PROCESSORS
    place = device if device.type == "cuda" else torch.device("cuda")
    return int(torch.cuda.get_device_properties(place).multi_processor_count)


def reach_of_call(plan: KernelPlan, decode: Decode, seen: View) -> int:
    """How many keys the segments lead to, as the host of the kernels takes it: see `Decode`."""
    rows, columns = seen.sizes["Nq"], seen.sizes["Nk"]
    if not decode.knows_reach:
        return columns
    first = 0 if isinstance(seen.k_offset, Tensor) else seen.k_offset
    begin = first + columns - rows
    if not isinstance(seen.q_offset, Tensor) and not isinstance(seen.k_offset, Tensor):
        begin = seen.q_offset
    ends = [torch.tensor([at], device=seen.device) for at in (begin, begin + rows - 1)]
    nought = torch.zeros_like(ends[0])
    # The full parts may depend on a tensor that is not given.
    segments = [replace(s, full_lo=s.lo, full_hi=s.lo) for s in plan.keys]
    outer = reach_of(segments, seen, ends[0], ends[1], (nought, nought)).outer
    ranges = list(zip(outer.lo[:, 0].tolist(), outer.hi[:, 0].tolist(), strict=True))
    return attn_keys_reached(ranges, first, columns)
