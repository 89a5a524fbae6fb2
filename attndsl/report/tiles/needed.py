"""How many of the tiles that are visited have a pair that takes part, and how many pairs do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.ir.nodes import Node
from attndsl.plan.boxes import attn_positions
from attndsl.reference import evaluate
from attndsl.report.tiles.draws import pieces, places, standard_error
from attndsl.report.tiles.loops import Loops, at_lanes
from attndsl.report.tiles.pairs import Pairs
from attndsl.runtime.order import Tiles
from attndsl.runtime.segments import reach_of
from attndsl.runtime.views import View

MOST_PAIRS = 1 << 22  # in partial tiles that are all looked at, about 0.1 s
SAMPLED_PAIRS = 1 << 22  # of partial tiles drawn at random, where there are more
FEWEST_TILES = 16  # of them
AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Needed:
    """tiles         that are needed
    error            its standard error, as a part of it
    are_tiles_known  whether it follows from proofs and from looking at every tile that is not full;
                     else it is estimated from some, drawn at random
    pairs            that take part, likewise
    """

    tiles: int
    error: float
    are_tiles_known: bool
    pairs: Pairs


@dataclass(frozen=True)
class Sample:
    """Partial tiles, each of which stands for `share` of them: lanes, numbers and shares."""

    lane: Tensor
    tile: Tensor
    share: Tensor


def needed_of(mask: Node, seen: View, loops: Loops, most_pairs: int | None = None) -> Needed:
    """The tiles and pairs that are needed of what loops visit.

    most_pairs  in partial tiles that are all looked at, MOST_PAIRS unless it is given

    Full tiles are proved to be; the others are looked at pair by pair, or a sample of them.
    """
    lanes, area = loops.lanes, loops.axes.own_block * loops.axes.block
    partial = int(loops.run_count.sum())
    if partial * area <= (MOST_PAIRS if most_pairs is None else most_pairs):
        every = tiles_at(loops, torch.arange(partial, device=seen.device))
        found = pairs_of_tiles(mask, seen, loops, every)
        per_lane = torch.zeros((2, len(lanes)), dtype=torch.int64, device=seen.device)
        per_lane.index_add_(1, every.lane, torch.stack(((found > 0).to(found.dtype), found)))
        tiles, pairs = lanes.total(per_lane[0]), lanes.total(per_lane[1])
        errors = [0.0, 0.0]
        is_known = not lanes.is_sample
    else:
        tiles = pairs = 0
        squares = [0.0, 0.0]
        for part in strata(seen, loops):
            sample = drawn_from(loops, part, max(FEWEST_TILES, SAMPLED_PAIRS // area // 2))
            found = pairs_of_tiles(mask, seen, loops, sample)
            whole = [sample.share * (found > 0), sample.share * found]
            tiles += round(float(whole[0].sum()))
            pairs += round(float(whole[1].sum()))
            for at in (0, 1):
                squares[at] += standard_error(whole[at]) ** 2
        errors = [square**0.5 for square in squares]
        is_known = False
    tiles, pairs = loops.total(loops.proved_tiles) + tiles, loops.proved_pairs + pairs
    relative = [
        ((error / total) ** 2 + loops.visited_error**2) ** 0.5 if total else 0.0
        for error, total in zip(errors, (tiles, pairs), strict=True)
    ]
    return Needed(tiles, relative[0], is_known, Pairs(pairs, relative[1], is_known))


def strata(seen: View, loops: Loops) -> list[Tensor]:
    """The runs of partial tiles in two parts: those that full parts of the segments of the first,
    the middle or the last position of their own tile reach, in which many pairs take part; others.
    """
    axes, lanes = loops.axes, loops.lanes
    every = torch.arange(len(loops.run_lane), device=seen.device)
    if axes.own_boxes is not None or not axes.segments:
        return [every]
    own, other = (seen.q_offset, seen.k_offset)[:: -1 if axes.by_keys else 1]
    is_dense = torch.zeros_like(every, dtype=torch.bool)
    first, last = loops.run_first, loops.run_first + loops.run_count
    for place in (0, lanes.extent // 2, lanes.extent - 1):
        at = (lanes.start + place).clamp(min=0) + at_lanes(own, lanes)
        reach = reach_of(axes.segments, seen, at, at, (lanes.b, lanes.h))
        full = reach.moved(torch.as_tensor(at_lanes(other, lanes)), lanes.length).full
        for lo, hi in zip(full.lo, full.hi, strict=True):
            meets = torch.minimum(-(-hi // axes.block)[loops.run_lane], last) > torch.maximum(
                (lo // axes.block)[loops.run_lane], first
            )
            is_dense |= meets & (lo < hi)[loops.run_lane]
    return [part for part in (every[is_dense], every[~is_dense]) if len(part)]


def drawn_from(loops: Loops, runs: Tensor, count: int) -> Sample:
    """So many tiles of some of the runs, one from each of equal parts of them; or all of them."""
    tiles = loops.run_count[runs]
    if int(tiles.sum()) <= count:
        starts = (loops.run_count.cumsum(0) - loops.run_count)[runs].repeat_interleave(tiles)
        within = torch.arange(len(starts), device=runs.device)
        within -= (tiles.cumsum(0) - tiles).repeat_interleave(tiles)
        return tiles_at(loops, starts + within)
    weights = loops.lanes.weights[loops.run_lane[runs]]
    ends = (tiles * weights).cumsum(0)
    share = float(ends[-1]) / count
    points = places(count).to(runs.device) * share
    at = torch.searchsorted(ends, points, right=True).clamp(max=len(runs) - 1)
    within = ((points - ends[at]) / weights[at] + tiles[at]).to(torch.int64)
    within = within.clamp(min=0).minimum(tiles[at] - 1)
    run = runs[at]
    return Sample(
        loops.run_lane[run], loops.run_first[run] + within, torch.full_like(points, share)
    )


def tiles_at(loops: Loops, numbers: Tensor) -> Sample:
    """The tiles of these numbers, counted through all runs; each stands for itself."""
    ends = loops.run_count.cumsum(0)
    run = torch.searchsorted(ends, numbers, right=True)
    tile = loops.run_first[run] + numbers - (ends - loops.run_count)[run]
    lane = loops.run_lane[run]
    return Sample(lane, tile, loops.lanes.weights[lane])


def pairs_of_tiles(mask: Node, seen: View, loops: Loops, sample: Sample) -> Tensor:
    """How many pairs of each tile take part."""
    step = max(1, AT_ONCE // (loops.axes.own_block * loops.axes.block))
    parts = zip(pieces(sample.lane, step), pieces(sample.tile, step), strict=True)
    found = [_pairs_of_tiles(mask, seen, loops, lane, tile) for lane, tile in parts]
    return torch.cat(found) if found else torch.zeros_like(sample.lane)


def _pairs_of_tiles(mask: Node, seen: View, loops: Loops, lane: Tensor, tile: Tensor) -> Tensor:
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
    return attn_positions(boxes.grid, boxes.box, numbers.device)[numbers]
