"""The segments of a mask in numbers, for all tiles of one axis at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.facts import Segment
from attndsl.ir.nodes import Node
from attndsl.reference import Values, broadcast_shape, evaluate
from attndsl.runtime.views import View

BEYOND = 1 << 40  # where empty intervals lie, behind all others


@dataclass(frozen=True)
class Intervals:
    """Half-open intervals [lo, hi), int64 [n, ...]: n for each place; empty where lo >= hi."""

    lo: Tensor
    hi: Tensor

    @property
    def extents(self) -> Tensor:
        return (self.hi - self.lo).clamp(min=0)

    @property
    def total(self) -> Tensor:
        """How much those of each place hold together, if they are apart from each other: [...]."""
        return self.extents.sum(0)

    def clipped(self, low: Tensor | int, high: Tensor | int) -> Intervals:
        """Their parts within [low, high)."""
        ends = [torch.as_tensor(end, device=self.lo.device) for end in (low, high)]
        return Intervals(torch.maximum(self.lo, ends[0]), torch.minimum(self.hi, ends[1]))

    def merged(self) -> Intervals:
        """Their union, in order and apart from each other; those that touch become one."""
        if not len(self.lo):
            return self
        is_empty = self.lo >= self.hi
        lo, hi = (torch.where(is_empty, BEYOND, end) for end in (self.lo, self.hi))
        if len(lo) == 1:
            return Intervals(lo, hi)  # sorting many columns of one costs more than all else
        lo, order = lo.sort(dim=0, stable=True)
        hi = hi.gather(0, order)
        starts, ends = [lo[0]], [hi[0]]
        for start, end in zip(lo[1:], hi[1:], strict=True):
            joins = start <= ends[-1]
            starts.append(torch.where(joins, starts[-1], start))
            before, ends[-1] = ends[-1], torch.where(joins, starts[-2], ends[-1])
            ends.append(torch.where(joins, torch.maximum(before, end), end))
        return Intervals(torch.stack(starts), torch.stack(ends))

    def tiles(self, block: int) -> Intervals:
        """The tiles that they reach, of merged ones: merged again where they share a tile."""
        is_empty = self.lo >= self.hi
        first = torch.where(is_empty, BEYOND, self.lo // block)
        last = torch.where(is_empty, BEYOND, -(-self.hi // block))
        return Intervals(first, last).merged()

    def whole_tiles(self, block: int) -> Intervals:
        """The tiles that lie inside, of merged ones."""
        return Intervals(-(-self.lo // block), self.hi // block)

    def without(self, holes: Intervals) -> Intervals:
        """What the holes leave of them; both are merged."""
        if not len(self.lo):
            return self
        edge = torch.zeros_like(self.lo[:1])
        is_empty = holes.lo >= holes.hi  # such a hole neither ends nor begins a piece
        starts = torch.cat((edge, torch.where(is_empty, BEYOND, holes.hi)))
        ends = torch.cat((torch.where(is_empty, BEYOND, holes.lo), edge + BEYOND))
        ends = ends.flip(0).cummin(0).values.flip(0)
        lo = torch.maximum(self.lo[:, None], starts[None])
        hi = torch.minimum(self.hi[:, None], ends[None])
        return Intervals(lo.flatten(0, 1), hi.flatten(0, 1))


@dataclass(frozen=True)
class Reach:
    """What the segments say of each tile of one axis: positions along the other, [n, B or 1,
    H or 1, tiles]; outside `outer` nothing takes part, inside `full` everything does. Merged."""

    outer: Intervals
    full: Intervals

    def moved(self, offset: Tensor, length: Tensor) -> Reach:
        """As indices from 0 up to a length, where position `offset` has index 0."""
        outer, full = (
            Intervals(part.lo - offset, part.hi - offset).clipped(0, length)
            for part in (self.outer, self.full)
        )
        return Reach(outer, full)


def reach_of(
    segments: Sequence[Segment],
    seen: View,
    first: Tensor,
    last: Tensor,
    place: tuple[Tensor, Tensor] | None = None,
) -> Reach:
    """The segments of the tiles whose first and last positions are given: [B or 1, 1, tiles], or a
    vector for tiles whose batches and heads are `place`."""
    values = seen.values
    if place is None:
        values.leaves["b"] = torch.arange(seen.sizes["B"], device=seen.device)[:, None, None]
        values.leaves["h"] = torch.arange(seen.sizes["H"], device=seen.device)[:, None]
    else:
        values.leaves["b"], values.leaves["h"] = place
    values.leaves["lo"], values.leaves["hi"] = first, last
    return Reach(
        evaluated([(s.lo, s.hi) for s in segments], values, first),
        evaluated([(s.full_lo, s.full_hi) for s in segments], values, first),
    )


def evaluated(ends: Sequence[tuple[Node, Node]], values: Values, like: Tensor) -> Intervals:
    """Intervals from their ends, merged; `like` has the shape of the tiles."""
    found = [tuple(evaluate(node, values) for node in pair) for pair in ends]
    if not found:
        nothing = like.new_zeros((0, *like.shape))
        return Intervals(nothing, nothing)
    shape = broadcast_shape([like, *(end for pair in found for end in pair)])
    lo, hi = (torch.stack([pair[side].expand(shape) for pair in found]) for side in (0, 1))
    return Intervals(lo, hi).merged()
