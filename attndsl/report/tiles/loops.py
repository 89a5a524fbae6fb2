"""What the loops of one kernel run over: its tiles, per tile of the kernel's own axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.facts import Segment
from attndsl.ir.nodes import Node, find
from attndsl.plan.boxes import attn_box, attn_positions
from attndsl.plan.kernel_plan import KernelPlan, Summary
from attndsl.report.tiles.draws import drawn, pieces, spread, standard_error
from attndsl.runtime.dims import compute_dim
from attndsl.runtime.order import Tiles
from attndsl.runtime.segments import Reach, reach_of
from attndsl.runtime.views import View

MOST_LANES = 1 << 19  # tiles of the own axis that are looked at, or as many of them
MOST_SIZED = 1 << 22  # of which as many are chosen by their sizes
AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Lanes:
    """Tiles of a kernel's own axis, each of one batch and head: int64 vectors.

    b, h, own   which they are
    kinds       tiles of the own axis with lanes of their own, of all batches and heads that differ
    copies      batches and heads that each of them stands for
    length      of the axis that is looped over, for each lane: elements that exist
    own_length  the same of the own axis
    start, extent   first element of the own tile (of a run), and how many of its elements exist
    shares      how many of the kinds each stands for: float64; None: each for itself alone
    """

    b: Tensor
    h: Tensor
    own: Tensor
    kinds: int
    copies: int
    length: Tensor
    own_length: Tensor
    start: Tensor
    extent: Tensor
    shares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.own)

    @property
    def is_sample(self) -> bool:
        return self.shares is not None

    @property
    def weights(self) -> Tensor:
        """How many tiles of the own axis each lane stands for: float64."""
        one = torch.ones(len(self), dtype=torch.float64, device=self.own.device)
        return self.copies * (one if self.shares is None else self.shares.to(one.device))

    def total(self, counts: Tensor) -> int:
        """The sum over all batches, heads and tiles of the own axis of what lanes count."""
        if self.shares is None:
            return int(counts.sum()) * self.copies
        return round(float((counts * self.weights).sum()))

    def error(self, counts: Tensor) -> float:
        """The standard error of that sum."""
        if self.shares is None:
            return 0.0
        return standard_error((counts * self.weights)[self.shares != 1])


@dataclass(frozen=True)
class Axes:
    """A kernel's own axis and the one it loops over: names, lengths, tile extents, segments; and
    the boxes of both where tiles are no runs."""

    by_keys: bool
    own_block: int
    block: int
    own_size: int
    size: int
    segments: tuple[Segment, ...]
    own_boxes: Tiles | None = None
    boxes: Tiles | None = None

    @property
    def own_name(self) -> str:
        return "k" if self.by_keys else "q"

    @property
    def name(self) -> str:
        return "q" if self.by_keys else "k"

    @property
    def tiles(self) -> int:
        """Tiles of the axis that is looped over."""
        return self.boxes.count if self.boxes else -(-self.size // self.block)

    @property
    def own_tiles(self) -> int:
        return self.own_boxes.count if self.own_boxes else -(-self.own_size // self.own_block)


def axes_of(plan: KernelPlan, seen: View, block: tuple[int, int], by_keys: bool) -> Axes:
    queries, keys = seen.sizes["Nq"], seen.sizes["Nk"]
    rows, columns = (boxes_of(plan, seen, positions) for positions in block)
    if by_keys:
        return Axes(True, block[1], block[0], keys, queries, plan.queries, columns, rows)
    return Axes(False, block[0], block[1], queries, keys, plan.keys, rows, columns)


def boxes_of(plan: KernelPlan, seen: View, positions: int) -> Tiles | None:
    """The boxes of so many positions of the plan's grid; None where tiles are runs."""
    if plan.grid is None:
        return None
    extents = (compute_dim(extent, seen.sizes, seen.scalars) for extent in plan.grid.extents)
    grid = tuple(extents)
    return Tiles(plan.grid.axes, grid, attn_box(positions, grid))


@dataclass(frozen=True)
class Loops:
    """What the loops visit: int64 vectors, an entry for each lane or each run.

    visited, full        tiles of each lane; the full ones do not evaluate the mask
    run_lane, run_first, run_count   runs of tiles that are not known to be full
    pairs                that the products of each lane compute; None: all of its tiles
    whole                pairs in the full tiles of each lane; None: all that its own tile has
    proved               tiles of each lane that are proved to keep every pair; None: the full ones
    tests                runs of tiles of each lane that were looked at to find them; None: none
    is_estimate          whether the kernels may visit others than these
    """

    axes: Axes
    lanes: Lanes
    visited: Tensor
    full: Tensor
    run_lane: Tensor
    run_first: Tensor
    run_count: Tensor
    pairs: Tensor | None = None
    whole: Tensor | None = None
    proved: Tensor | None = None
    tests: Tensor | None = None
    is_estimate: bool = False

    @property
    def computed_pairs(self) -> int:
        if self.pairs is not None:
            return self.total(self.pairs)
        return self.total(self.visited) * self.axes.own_block * self.axes.block

    def total(self, counts: Tensor) -> int:
        """The sum over all batches, heads and tiles of the own axis."""
        return self.lanes.total(counts)

    @property
    def visited_error(self) -> float:
        """The standard error of the number of tiles that are visited, as a part of it."""
        visited = self.total(self.visited)
        return self.lanes.error(self.visited) / visited if visited else 0.0

    @property
    def proved_tiles(self) -> Tensor:
        """Tiles of each lane that keep every pair; those of `run_lane` are all others."""
        return self.full if self.proved is None else self.proved

    @property
    def proved_pairs(self) -> int:
        """Pairs in them; without `whole` each lies wholly inside the axis looped over."""
        if self.whole is not None:
            return self.total(self.whole)
        return self.total(self.proved_tiles * self.lanes.extent) * self.axes.block


def summaries_used(plan: KernelPlan) -> list[Summary]:
    """The summaries whose leaves the facts of a tile read."""
    facts = (plan.tile.possible, plan.tile.certain)
    names = {node.name for root in facts for node in find(root, "summary")}
    numbers = {part for name in names for part in name.replace("_meets", "").split("_")}
    return [summary for summary in plan.summaries if str(summary.number) in numbers]


def varies_by(plan: KernelPlan, seen: View) -> frozenset[str]:
    """Which of "b" and "h" the tiles that kernels visit differ by."""
    nodes: list[Node] = [
        end for s in (*plan.keys, *plan.queries) for end in (s.lo, s.hi, s.full_lo, s.full_hi)
    ]
    if plan.strategy == "lists":
        nodes += [plan.tile.possible, plan.tile.certain, *(s.node for s in summaries_used(plan))]
    varies = frozenset[str]().union(*(node.varies for node in nodes)) & {"b", "h"}
    return varies | {"b"} if seen.per_batch else varies


def lanes_of(plan: KernelPlan, seen: View, axes: Axes, most: int | None = None) -> Lanes:
    """The tiles of the own axis; `most` of them (MOST_LANES) where there are more, chosen by what
    segments reach."""
    return Choice(plan, seen, axes).lanes(MOST_LANES if most is None else most)


class Choice:
    """Chooses tiles of a kernel's own axis."""

    def __init__(self, plan: KernelPlan, seen: View, axes: Axes) -> None:
        self.plan, self.seen, self.axes = plan, seen, axes
        varies = varies_by(plan, seen)
        self.batches, self.heads = (seen.sizes[n] if n.lower() in varies else 1 for n in ("B", "H"))
        self.kinds = self.batches * self.heads * axes.own_tiles
        copied = max(1, self.batches * self.heads)
        self.copies = seen.sizes["B"] * seen.sizes["H"] // copied
        self._sizes: tuple[Tensor, Tensor] | None = None

    def lanes(self, most: int, size: Callable[[Lanes], Tensor] | None = None) -> Lanes:
        """All of them, or `most` where there are more.

        size  how much lanes have at most of what is counted, by which they are chosen: the tiles
              that the segments reach, unless it is given. Must not change from call to call.
        """
        if self.kinds <= most:
            return self.numbered(torch.arange(self.kinds, device=self.seen.device))
        if self._sizes is None:
            self._sizes = self.sized(size or self.reached)
        return self.chosen(*self._sizes, most)

    def chosen(self, numbers: Tensor, sizes: Tensor, most: int) -> Lanes:
        """`most` of the tiles of these numbers, by sizes, as a sample of all; no sample where no
        others have a size."""
        chosen, shares = drawn(sizes, most)
        if len(numbers) == self.kinds and bool((shares == 1).all()):
            return self.numbered(numbers[chosen].to(self.seen.device))
        shares = shares * (self.kinds / len(numbers))
        return self.numbered(numbers[chosen].to(self.seen.device), shares)

    def sized(self, size: Callable[[Lanes], Tensor]) -> tuple[Tensor, Tensor]:
        """Numbers of tiles, and their sizes."""
        numbers = torch.arange(self.kinds)
        if self.kinds > MOST_SIZED:
            numbers = spread(self.kinds, MOST_SIZED)
        parts = pieces(numbers.to(self.seen.device), AT_ONCE)
        return numbers, torch.cat([size(self.numbered(part)).cpu() for part in parts])

    def reached(self, lanes: Lanes) -> Tensor:
        """How many tiles the segments reach."""
        if self.axes.own_boxes is not None:
            return torch.ones_like(lanes.own)  # the segments say nothing of boxes
        return tiles_of(reach_of_lanes(self.seen, self.axes, lanes), self.axes.block).outer.total

    def numbered(self, numbers: Tensor, shares: Tensor | None = None) -> Lanes:
        """The tiles of these numbers: batch by batch, and in each head by head."""
        seen, axes = self.seen, self.axes
        own = numbers % axes.own_tiles if axes.own_tiles else numbers
        rest = numbers // axes.own_tiles if axes.own_tiles else numbers
        b, h = (rest // self.heads, rest % self.heads) if self.heads else (rest, rest)
        keys = torch.full_like(b, seen.sizes["Nk"])
        if seen.k_len is not None:
            keys = seen.k_len.to(torch.int64).clamp(0, seen.sizes["Nk"])[b]
        queries = torch.full_like(b, seen.sizes["Nq"])
        length, own_length = (queries, keys) if axes.by_keys else (keys, queries)
        start = own * axes.own_block
        extent = (own_length - start).clamp(0, axes.own_block)
        if axes.own_boxes is not None:
            extent = entries_of(axes.own_boxes, own, own_length)
        length = torch.where(extent > 0, length, 0)  # keys beyond k_len meet no query
        return Lanes(b, h, own, self.kinds, self.copies, length, own_length, start, extent, shares)


def entries_of(boxes: Tiles, numbers: Tensor, lengths: Tensor) -> Tensor:
    """How many positions of each box lie below the length that goes with it."""
    positions = attn_positions(boxes.grid, boxes.box, numbers.device)
    found = torch.zeros_like(numbers)
    for length in torch.unique(lengths):
        there = ((positions >= 0) & (positions < length)).sum(1)
        found = torch.where(lengths == length, there[numbers], found)
    return found


def reach_of_lanes(seen: View, axes: Axes, lanes: Lanes) -> Reach:
    """What the segments say of each lane, as elements of the axis that is looped over."""
    own, other = (seen.k_offset, seen.q_offset) if axes.by_keys else (seen.q_offset, seen.k_offset)
    first = lanes.start + at_lanes(own, lanes)
    found = reach_of(
        axes.segments, seen, first, first + (lanes.extent - 1).clamp(min=0), (lanes.b, lanes.h)
    )
    return found.moved(torch.as_tensor(at_lanes(other, lanes)), lanes.length)


def at_lanes(offset: int | Tensor, lanes: Lanes) -> Tensor | int:
    """An offset of each lane."""
    return offset.to(torch.int64)[lanes.b] if isinstance(offset, Tensor) else offset


def tiles_of(reach: Reach, block: int) -> Reach:
    """Tiles that are reached, and tiles that lie inside full parts."""
    reached = reach.outer.tiles(block)
    return Reach(reached, reach.full.whole_tiles(block))


def loop_over_ranges(plan: KernelPlan, seen: View, axes: Axes) -> Loops:
    """What the loops visit where the segments alone say it."""
    lanes = lanes_of(plan, seen, axes)
    tiles = tiles_of(reach_of_lanes(seen, axes, lanes), axes.block)
    rest = tiles.outer.without(tiles.full)
    visited, partial = tiles.outer.total, rest.total
    lane = torch.arange(len(lanes), device=seen.device).expand(rest.lo.shape)
    is_there = rest.lo < rest.hi
    lane, first, count = (x[is_there] for x in (lane, rest.lo, rest.hi - rest.lo))
    return Loops(axes, lanes, visited, visited - partial, lane, first, count)
