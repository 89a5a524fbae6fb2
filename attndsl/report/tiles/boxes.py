"""Which tiles a kernel's lists hold where a tile is a box of the program's grid."""

from __future__ import annotations

import functools
from math import prod

import torch
from torch import Tensor

from attndsl.plan.boxes import attn_counts, attn_positions
from attndsl.plan.kernel_plan import KernelPlan, Summary
from attndsl.plan.signatures import attn_bits
from attndsl.reference import Values, evaluate
from attndsl.report.tiles.lists import most_listed
from attndsl.report.tiles.loops import Axes, Lanes, Loops, axes_of, lanes_of, summaries_used
from attndsl.runtime.blocks import as_bytes, bits_of, profile
from attndsl.runtime.order import Tiles
from attndsl.runtime.views import View

MOST_TESTS = 1 << 23  # tiles that are looked at; of more, those of as many rows of tiles
AT_ONCE = 1 << 20
FEWEST_LANES = 8


def loop_over_boxes(plan: KernelPlan, seen: View, axes: Axes) -> Loops:
    """What the loops visit where the kernels make lists of boxes."""
    assert axes.boxes is not None
    lanes = lanes_of(plan, seen, axes, max(MOST_TESTS // max(axes.tiles, 1), FEWEST_LANES))
    visited, full, hull = (torch.zeros_like(lanes.own) for _ in range(3))
    open_lanes, open_tiles = [], []
    test = BoxTest(plan, seen, axes)
    step = max(1, AT_ONCE // max(axes.tiles, 1))
    for start in range(0, len(lanes), step):
        part = torch.arange(start, min(start + step, len(lanes)), device=seen.device)
        possible, certain = test(lanes, part)
        visited[part], full[part] = possible.sum(1), certain.sum(1)
        hull[part] = hull_of(possible)
        row, tile = (possible & ~certain).nonzero(as_tuple=True)
        open_lanes.append(part[row])
        open_tiles.append(tile)
    nothing = torch.zeros(0, dtype=torch.int64, device=seen.device)
    lane, tile = (torch.cat(parts) if parts else nothing for parts in (open_lanes, open_tiles))
    fits = visited <= most_listed(lanes.kinds, axes.tiles)
    visited, listed = torch.where(fits, visited, hull), torch.where(fits, full, 0)
    one, every = torch.ones_like(tile), torch.full_like(visited, axes.tiles)
    return Loops(axes, lanes, visited, listed, lane, tile, one, proved=full, tests=every)


def hull_of(possible: Tensor) -> Tensor:
    """How many boxes lie from the first to the last that is possible, by row of a bool matrix."""
    numbers = torch.arange(1, possible.shape[1] + 1, device=possible.device)
    lowest = torch.where(possible, numbers, len(numbers) + 1).amin(1)
    return (torch.where(possible, numbers, 0).amax(1) + 1 - lowest).clamp(min=0)


class BoxTest:
    """The facts of boxes, for one kernel and one call."""

    def __init__(self, plan: KernelPlan, seen: View, axes: Axes) -> None:
        assert axes.boxes is not None and axes.own_boxes is not None
        self.plan, self.seen, self.axes = plan, seen, axes
        self.boxes, self.own_boxes = axes.boxes, axes.own_boxes
        self.numbers = torch.arange(axes.tiles, device=seen.device)
        self.ends = self.boxes.ends(axes.name, self.numbers)
        entries = entries_per_box(self.boxes).to(seen.device)
        self.is_clipped = entries < prod(self.boxes.box)
        self.summaries = {str(summary.number): summary for summary in summaries_used(plan)}
        self._extremes: dict[tuple[str, str], Tensor] = {}

    def __call__(self, lanes: Lanes, part: Tensor) -> tuple[Tensor, Tensor]:
        """Which boxes some lanes visit, and which of those are full: bool [lanes, boxes].

        A box that is clipped is not full in a kernel: the elements that it lacks are masked.
        """
        axes, shape = self.axes, (len(part), self.axes.tiles)
        b, h, own = (x[part][:, None] for x in (lanes.b, lanes.h, lanes.own))
        values = self.seen.values
        values.leaves.update(self.ends)
        values.leaves.update(self.own_boxes.ends(axes.own_name, own))
        values.leaves["b"], values.leaves["h"] = b, h
        self._add_summaries(values, b, h, own)
        facts = (self.plan.tile.possible, self.plan.tile.certain)
        possible, certain = (evaluate(fact, values).expand(shape) for fact in facts)
        length, name = lanes.length[part][:, None], axes.name
        possible = possible & (self.ends[f"{name}_lo"] < length)
        inside = (self.ends[f"{name}_hi"] < length) & ~self.is_clipped
        return possible, possible & certain & inside

    def _add_summaries(self, values: Values, b: Tensor, h: Tensor, own: Tensor) -> None:
        at = {self.axes.own_name: own, self.axes.name: self.numbers}

        def entry(number: str, what: str) -> Tensor:
            value = self._extreme(number, what)
            (axis,) = self.summaries[number].axes
            return value[b % max(1, value.shape[0]), h % max(1, value.shape[1]), at[axis]]

        def meet(x: str, y: str) -> Tensor:
            return (entry(x, "signature") & entry(y, "signature")) != 0

        for number in self.summaries:
            for what in ("least", "greatest"):
                values.leaves[f"{number}_{what}"] = functools.partial(entry, number, what)
            for other in self.summaries:
                values.leaves[f"{number}_meets_{other}"] = functools.partial(meet, number, other)

    def _extreme(self, number: str, what: str) -> Tensor:
        """[B or 1, H or 1, boxes of the summary's axis]."""
        key = (number, what)
        if key not in self._extremes:
            summary = self.summaries[number]
            is_own = summary.axes == (self.axes.own_name,)
            boxes = self.own_boxes if is_own else self.boxes
            self._extremes[key] = extreme(summary, what, self.seen, boxes)
        return self._extremes[key]


def extreme(summary: Summary, what: str, seen: View, boxes: Tiles) -> Tensor:
    """The least or greatest value of a summary in each box, or the bits of those that occur."""
    value = as_bytes(profile(summary, seen))
    positions = attn_positions(boxes.grid, boxes.box, seen.device)
    # What a clipped box lacks stands for its first position, which is always there.
    inside = value[:, :, torch.where(positions < 0, positions[:, :1], positions)]
    if what == "signature":
        return attn_bits(bits_of(inside), 3)
    found = inside.amin(3) if what == "least" else inside.amax(3)
    return found.to(torch.bool) if summary.kind == "bool" else found


def entries_per_box(boxes: Tiles) -> Tensor:
    """How many positions each box has: fewer than others, where it reaches beyond the grid."""
    return (attn_positions(boxes.grid, boxes.box) >= 0).sum(1)


def box_example(plan: KernelPlan, seen: View, block: tuple[int, int]) -> list[str]:
    """What the middle box of queries reaches, for the first batch and head."""
    axes = axes_of(plan, seen, block, by_keys=False)
    assert axes.own_boxes is not None and axes.boxes is not None
    number = 0
    for count in attn_counts(axes.own_boxes.grid, axes.own_boxes.box):
        number = number * count + count // 2
    lanes = lanes_of(plan, seen, axes, seen.sizes["B"] * seen.sizes["H"] * axes.own_tiles)
    middle = torch.tensor([number], device=seen.device)
    visited, full = (x[0].nonzero()[:, 0] for x in BoxTest(plan, seen, axes)(lanes, middle))
    place = f"for example queries at {span_text(axes.own_boxes, middle)} reach"
    if not len(visited):
        return [f"{place} no keys"]
    whole = f", {len(full)} of them full" if len(full) else ""
    return [f"{place} {len(visited)} boxes of keys{whole}, at {span_text(axes.boxes, visited)}"]


def span_text(boxes: Tiles, numbers: Tensor) -> str:
    """The coordinates that boxes span together: `y 8 .. 15, x 0 .. 31`."""
    ends = boxes.ends("q", numbers)
    spans = ((a, int(ends[f"q_{a}_lo"].min()), int(ends[f"q_{a}_hi"].max())) for a in boxes.axes)
    return ", ".join(f"{axis} {low} .. {high}" for axis, low, high in spans)
