"""Which tiles a kernel's lists hold: the facts of tiles, found by halving rows of them.

The facts hold for a run of tiles as they do for one. A row of tiles is halved where they decide
nothing, so that work and memory go with the tiles that are kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.plan.kernel_plan import MOST_LISTED, KernelPlan, Summary
from attndsl.plan.signatures import attn_bits
from attndsl.reference import evaluate
from attndsl.report.tiles.loops import (
    Axes,
    Choice,
    Lanes,
    Loops,
    at_lanes,
    loop_over_ranges,
    reach_of_lanes,
    summaries_used,
    tiles_of,
)
from attndsl.runtime.blocks import Blocks, Reduction, as_bytes, reduced
from attndsl.runtime.segments import Reach
from attndsl.runtime.views import View

MOST_RUNS = 1 << 18  # that are looked at together; where there are more, fewer lanes are
SAMPLES = (1 << 14, 1 << 11, 1 << 8, 1 << 4)  # numbers of lanes to try, if all are too many

Join = Callable[[Tensor, Tensor], Tensor]
JOINS: dict[str, Join] = {
    "least": torch.minimum,
    "greatest": torch.maximum,
    "signature": torch.bitwise_or,
}
REDUCTIONS: dict[str, Reduction] = {
    "least": torch.amin,
    "greatest": torch.amax,
    "signature": attn_bits,
}
BOOL_JOINS: dict[str, Join] = {"least": torch.logical_and, "greatest": torch.logical_or}


def base_blocks(seen: View, blocks: Sequence[tuple[int, int]]) -> Blocks:
    """The summaries of blocks that divide all of some, so that these follow from them."""
    rows, columns = (math.gcd(*(block[at] for block in blocks)) for at in (0, 1))
    return Blocks(seen, (rows, columns), None)


def loop_over_lists(plan: KernelPlan, seen: View, axes: Axes, base: Blocks) -> Loops:
    """What the loops visit where the kernels make lists.

    base  the summaries, of blocks that divide those of the kernel
    """
    if not axes.tiles:
        return loop_over_ranges(plan, seen, axes)  # nothing
    pyramids, choice = Pyramids(plan, base, axes), Choice(plan, seen, axes)
    found = None
    for count in SAMPLES:
        lanes = choice.lanes(count, lambda some: Rows(plan, seen, axes, some, pyramids).most())
        rows = Rows(plan, seen, axes, lanes, pyramids)
        found = rows.halved(MOST_RUNS if count > SAMPLES[-1] else None)
        if found is not None:
            break
    assert found is not None
    return found


class Pyramids:
    """Summaries of runs of 2**level tiles of a kernel, for every level that is asked for."""

    def __init__(self, plan: KernelPlan, base: Blocks, axes: Axes) -> None:
        self.base, self.axes = base, axes
        self.summaries = {str(summary.number): summary for summary in summaries_used(plan)}
        self._levels: dict[tuple[str, str], list[Tensor]] = {}

    def at(self, summary: Summary, what: str, level: int) -> Tensor:
        """[B or 1, H or 1, runs], of both axes [.., own tiles, runs]; on the own axis, of tiles."""
        levels = self._levels.setdefault((str(summary.number), what), [])
        if not levels:
            levels.append(self._tiles(summary, what))
        if summary.axes == (self.axes.own_name,):
            return levels[0]
        join = (BOOL_JOINS if summary.kind == "bool" else JOINS)[what]
        while len(levels) <= level:
            levels.append(halved(levels[-1], join))
        return levels[level]

    def _tiles(self, summary: Summary, what: str) -> Tensor:
        """Of the kernel's tiles."""
        value = as_bytes(self.base.part(summary, what))
        sizes = {self.axes.own_name: self.axes.own_block, self.axes.name: self.axes.block}
        for dim, axis in enumerate(summary.axes, start=2):
            factor = sizes[axis] // self.base.block["qk".index(axis)]
            value = reduced(value, dim, factor, REDUCTIONS[what])
        value = value.to(torch.bool) if summary.kind == "bool" else value
        return value.transpose(2, 3) if len(summary.axes) == 2 and self.axes.by_keys else value


def halved(value: Tensor, join: Join) -> Tensor:
    """Neighbours of the last dimension joined; a last one without a neighbour stays."""
    pairs = value.shape[-1] // 2
    joined = join(value[..., : 2 * pairs : 2], value[..., 1 : 2 * pairs : 2])
    return torch.cat((joined, value[..., 2 * pairs :]), -1)


@dataclass
class Rows:
    """A row of tiles for each lane, and what becomes of it."""

    plan: KernelPlan
    seen: View
    axes: Axes
    lanes: Lanes
    pyramids: Pyramids

    def halved(self, most: int | None) -> Loops | None:
        """The tiles that are kept; None where they are too many to look at for all lanes."""
        count, device = len(self.lanes), self.seen.device
        tests = torch.zeros(count, dtype=torch.int64, device=device)
        reach = tiles_of(reach_of_lanes(self.seen, self.axes, self.lanes), self.axes.block)
        lane = torch.arange(count, device=device)
        run = torch.zeros(count, dtype=torch.int64, device=device)
        full = torch.zeros(count, dtype=torch.int64, device=device)
        hulls = Hulls(count, device)
        for level in range(max(0, self.axes.tiles - 1).bit_length(), -1, -1):
            first, last = run << level, (run + 1 << level).clamp(max=self.axes.tiles)
            tests += torch.bincount(lane, minlength=count)
            possible, certain = self._facts(level, lane, run, first, last)
            outer, whole = self._by_segments(reach, lane, first, last)
            fits = last * self.axes.block <= self.lanes.length[lane]
            kept = possible & (outer > 0)
            sure = kept & (certain | whole) & fits & (outer == last - first)
            full.index_add_(0, lane[sure], (last - first)[sure])
            hulls.add(lane[sure], first[sure], last[sure])
            is_open = kept & ~sure
            lane, run = lane[is_open], run[is_open]
            if level:
                if most is not None and 2 * len(lane) > max(most, 2 * count):
                    return None
                lane = lane.repeat_interleave(2)
                run = (2 * run[:, None] + torch.arange(2, device=device)).flatten()
                exists = run << (level - 1) < self.axes.tiles
                lane, run = lane[exists], run[exists]
        hulls.add(lane, run, run + 1)
        visited = torch.bincount(lane, minlength=count) + full
        fits = visited <= most_listed(self.lanes.kinds, self.axes.tiles)
        return Loops(
            self.axes,
            self.lanes,
            torch.where(fits, visited, hulls.extent),
            torch.where(fits, full, 0),
            lane,
            run,
            torch.ones_like(run),
            proved=full,
            tests=tests,
        )

    def most(self) -> Tensor:
        """How many tiles each row keeps at most: those that segments reach, where the facts of all
        of the row leave any."""
        count, tiles = len(self.lanes), self.axes.tiles
        lane = torch.arange(count, device=self.seen.device)
        whole = torch.full_like(lane, tiles)
        level = max(0, tiles - 1).bit_length()
        possible, _ = self._facts(level, lane, lane * 0, lane * 0, whole)
        reach = tiles_of(reach_of_lanes(self.seen, self.axes, self.lanes), self.axes.block)
        return torch.where(possible, reach.outer.total, 0)

    def _by_segments(
        self, reach: Reach, lane: Tensor, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How many tiles of each run the segments reach; whether all lie in their full parts."""
        outer = torch.zeros_like(lane)
        for lo, hi in zip(reach.outer.lo, reach.outer.hi, strict=True):
            both = torch.minimum(hi[lane], last) - torch.maximum(lo[lane], first)
            outer += both.clamp(min=0)
        whole = torch.zeros_like(lane, dtype=torch.bool)
        for lo, hi in zip(reach.full.lo, reach.full.hi, strict=True):
            whole |= (lo[lane] <= first) & (last <= hi[lane])
        return outer, whole

    def _facts(
        self, level: int, lane: Tensor, run: Tensor, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is possible and what is certain for the runs of a level: bools."""
        axes, lanes, seen = self.axes, self.lanes, self.seen
        values = seen.values
        b, h, own = lanes.b[lane], lanes.h[lane], lanes.own[lane]
        own_lo, own_hi = lanes.start[lane], (lanes.start + lanes.extent - 1)[lane]
        lo, hi = first * axes.block, torch.minimum(last * axes.block, lanes.length[lane]) - 1
        names = (axes.own_name, axes.name)
        for name, ends in zip(names, ((own_lo, own_hi), (lo, hi)), strict=True):
            offset = at_lanes(seen.q_offset if name == "q" else seen.k_offset, lanes)
            moved = offset[lane] if isinstance(offset, Tensor) else offset
            values.leaves[f"{name}_lo"], values.leaves[f"{name}_hi"] = (e + moved for e in ends)
        values.leaves["b"], values.leaves["h"] = b, h
        at: dict[tuple[str, ...], tuple[Tensor, ...]] = {
            (names[0],): (own,),
            (names[1],): (run,),
            ("q", "k"): (own, run),
        }

        def entry(number: str, what: str) -> Tensor:
            summary = self.pyramids.summaries[number]
            value = self.pyramids.at(summary, what, level)
            places = (b % max(1, value.shape[0]), h % max(1, value.shape[1]), *at[summary.axes])
            return value[places]

        def meet(x: str, y: str) -> Tensor:
            return (entry(x, "signature") & entry(y, "signature")) != 0

        for number in self.pyramids.summaries:
            for what in ("least", "greatest"):
                values.leaves[f"{number}_{what}"] = functools.partial(entry, number, what)
            for other in self.pyramids.summaries:
                values.leaves[f"{number}_meets_{other}"] = functools.partial(meet, number, other)
        facts = (self.plan.tile.possible, self.plan.tile.certain)
        possible, certain = (evaluate(fact, values).expand(lane.shape) for fact in facts)
        return possible, certain


class Hulls:
    """The tiles from the first to the last that each lane keeps."""

    def __init__(self, lanes: int, device: torch.device) -> None:
        self.first = torch.full((lanes,), torch.iinfo(torch.int64).max, device=device)
        self.last = torch.zeros_like(self.first)

    def add(self, lane: Tensor, first: Tensor, last: Tensor) -> None:
        """Runs [first, last) that lanes keep."""
        self.first.scatter_reduce_(0, lane, first, "amin")
        self.last.scatter_reduce_(0, lane, last, "amax")

    @property
    def extent(self) -> Tensor:
        return (self.last - self.first).clamp(min=0)


def most_listed(rows: int, tiles: int) -> int:
    """How many tiles a row of a list has room for: the places of all of them fit an int32."""
    return min(tiles, MOST_LISTED, (2**31 - 3 - tiles) // max(rows, 1))
