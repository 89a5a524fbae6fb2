"""How many of the tiles that are visited have a pair that takes part, and how many pairs do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.ir.nodes import Node
from attndsl.reference import evaluate
from attndsl.report.loops import Loops, at_lanes
from attndsl.runtime.order import Tiles, positions_of
from attndsl.runtime.views import View

MOST_PAIRS = 1 << 22  # in partial tiles that are all looked at, about 0.1 s
SAMPLED_PAIRS = 1 << 20  # of partial tiles drawn at random, where there are more
AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Needed:
    """tiles, pairs   that are needed
    are_tiles_known, are_pairs_known   whether they follow from proofs and from looking at every
                   tile that is not full; else they are estimated from some, drawn at random
    """

    tiles: int
    pairs: int
    are_tiles_known: bool
    are_pairs_known: bool


def needed_of(mask: Node, seen: View, loops: Loops, most_pairs: int | None = None) -> Needed:
    """The tiles and pairs that are needed of what loops visit.

    most_pairs  in partial tiles that are all looked at, MOST_PAIRS unless it is given

    Full tiles are proved to be; the others are looked at pair by pair, or a sample of them.
    """
    axes, lanes = loops.axes, loops.lanes
    partial, area = int(loops.run_count.sum()), axes.own_block * axes.block
    is_counted = partial * area <= (MOST_PAIRS if most_pairs is None else most_pairs)
    chosen = torch.arange(partial, device=seen.device)
    if not is_counted:
        random = torch.Generator().manual_seed(0)
        drawn = torch.randint(partial, (max(16, SAMPLED_PAIRS // area),), generator=random)
        chosen = drawn.sort().values.to(seen.device)
    ends = loops.run_count.cumsum(0)
    run = torch.searchsorted(ends, chosen, right=True)
    tile = loops.run_first[run] + chosen - (ends - loops.run_count)[run]
    lane = loops.run_lane[run]
    step = max(1, AT_ONCE // area)
    pairs = [
        pairs_of_tiles(mask, seen, loops, lane[at : at + step], tile[at : at + step])
        for at in range(0, len(chosen), step)
    ]
    found = torch.cat(pairs) if pairs else chosen
    scale = lanes.weight * (partial / len(chosen) if len(chosen) else 0)
    return Needed(
        tiles=loops.total(loops.proved_tiles) + round(int((found > 0).sum()) * scale),
        pairs=loops.proved_pairs + round(int(found.sum()) * scale),
        are_tiles_known=is_counted and not lanes.is_sample,
        are_pairs_known=is_counted and not lanes.is_sample,
    )


def pairs_of_tiles(mask: Node, seen: View, loops: Loops, lane: Tensor, tile: Tensor) -> Tensor:
    """How many pairs of each tile take part."""
    axes, lanes = loops.axes, loops.lanes
    own = entries(axes.own_boxes, axes.own_block, lanes.own[lane])[:, :, None]
    other = entries(axes.boxes, axes.block, tile)[:, None, :]
    own_length, length = (x[lane][:, None, None] for x in (lanes.own_length, lanes.length))
    is_there = (own >= 0) & (own < own_length) & (other >= 0) & (other < length)
    values = seen.values
    values.leaves["b"], values.leaves["h"] = (x[lane][:, None, None] for x in (lanes.b, lanes.h))
    names = (axes.own_name, axes.name)
    for name, index in zip(names, (own, other), strict=True):
        offset = at_lanes(seen.q_offset if name == "q" else seen.k_offset, lanes)
        moved = offset[lane][:, None, None] if isinstance(offset, Tensor) else offset
        values.leaves[name] = index + moved
    return (evaluate(mask, values) & is_there).sum((1, 2))


def entries(boxes: Tiles | None, block: int, numbers: Tensor) -> Tensor:
    """The elements of tiles: int64 [tiles, elements], -1 beyond the grid of a box."""
    if boxes is None:
        return numbers[:, None] * block + torch.arange(block, device=numbers.device)
    return positions_of(boxes.grid, boxes.box, numbers.device)[numbers]
