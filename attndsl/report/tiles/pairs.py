"""How many pairs of a call take part: counted line by line where the segments decide every pair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attndsl.ir.nodes import topological
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.report.tiles.draws import pieces
from attndsl.report.tiles.loops import AT_ONCE, Axes, Choice, reach_of_lanes
from attndsl.runtime.views import View

MOST_STEPS = 1 << 27  # operations on single rows or columns that are all looked at, about 0.6 s
MERGING = 24  # of them for each segment beside another: putting them in order
BLOCK = 64  # neighbouring lines that are drawn together where that takes more
SAMPLED = 1 << 12  # of such blocks


@dataclass(frozen=True)
class Pairs:
    """count   pairs that take part, of all batches and heads
    error    its standard error, as a part of it; 0 where it is not estimated
    is_known whether it is counted
    """

    count: int
    error: float
    is_known: bool


def count_by_lines(plan: KernelPlan, seen: View) -> Pairs | None:
    """The pairs, from the segments of single rows, or of single columns; None where both leave some
    pair undecided.

    What the outer parts of a line hold is at least what takes part, and what its full parts hold is
    at most that: where they are as long as each other, both are right.
    """
    if plan.grid is not None:
        return None  # its segments say nothing
    queries, keys = seen.sizes["Nq"], seen.sizes["Nk"]
    rows = Axes(False, 1, 1, queries, keys, plan.keys)
    columns = Axes(True, 1, 1, keys, queries, plan.queries)
    for axes in sorted((rows, columns), key=lambda axes: axes.own_size):
        found = _counted(Choice(plan, seen, axes), seen)
        if found is not None:
            return found
    return None


def _counted(choice: Choice, seen: View) -> Pairs | None:
    axes = choice.axes
    ends = (end for s in axes.segments for end in (s.lo, s.hi, s.full_lo, s.full_hi))
    steps = len(topological(*ends)) + MERGING * (len(axes.segments) - 1)
    if choice.kinds * steps > MOST_STEPS:
        return _sampled(choice, seen)
    counts = _decided(choice, torch.arange(choice.kinds), seen)
    return None if counts is None else Pairs(int(counts.sum()) * choice.copies, 0.0, True)


def _sampled(choice: Choice, seen: View) -> Pairs | None:
    """An estimate from blocks of lines. Half of the draws go by what their segments reach, so that
    the few lines that reach most are not missed."""
    axes = choice.axes
    blocks = Choice(choice.plan, seen, replace(axes, own_block=BLOCK))
    numbers, sizes = blocks.sized(blocks.reached)
    sizes = sizes / sizes.to(torch.float64).mean().clamp(min=1) + (sizes > 0)
    lanes = blocks.chosen(numbers, sizes, SAMPLED)
    own = lanes.start[:, None] + torch.arange(BLOCK, device=seen.device)
    is_line = (own < axes.own_size).flatten()
    first = (lanes.b * choice.heads + lanes.h) * axes.own_size
    counts = _decided(choice, (first[:, None] + own).flatten()[is_line], seen)
    if counts is None:
        return None
    found = torch.zeros_like(is_line, dtype=torch.int64)
    found[is_line] = counts
    each = found.view(len(lanes), BLOCK).sum(1)
    total = lanes.total(each)
    return Pairs(total, lanes.error(each) / total if total else 0.0, not lanes.is_sample)


def _decided(choice: Choice, numbers: Tensor, seen: View) -> Tensor | None:
    """The pairs of the lines of these numbers; None where the segments of one do not say it."""
    counts = [torch.zeros(0, dtype=torch.int64, device=seen.device)]
    for part in pieces(numbers.to(seen.device), AT_ONCE):
        reach = reach_of_lanes(seen, choice.axes, choice.numbered(part))
        most, least = reach.outer.total, reach.full.total
        if not torch.equal(most, least):
            return None
        counts.append(most)
    return torch.cat(counts)
