"""How the rows of a call fall into blocks of positions, and what is pooled over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.runtime.blocks import reduced

MOST_WIDENED = 1 << 26  # elements that become float64 at once: a GPU stores them all
MOST_WIDENED_CPU = 1 << 16  # there they should stay in a cache
MOST_GATHERED = 1 << 24  # elements that are copied at once

Count = int | Tensor  # a number, or int64 [B]


def first_block(offset: int | Tensor, block: int) -> Count:
    """The index of the block in which the first row of a call lies: int, or int64 [B]."""
    if isinstance(offset, Tensor):
        return torch.div(offset.to(torch.int64), block, rounding_mode="floor")
    return offset // block


def block_count(length: int, block: int, offset: int | Tensor) -> int:
    """How many blocks `length` rows reach; of offsets in a tensor the most that any can need."""
    if length == 0:
        return 0
    if isinstance(offset, Tensor):
        return (length + block - 2) // block + 1
    return (offset + length - 1) // block - offset // block + 1


@dataclass(frozen=True)
class Axis:
    """The blocks of queries or of keys that a call has rows of, in order.

    length   rows of the call
    block    rows of a block, at least 1
    count    blocks; where the offset is a tensor the last ones may have no row
    first    absolute index of the first block: int, or int64 [B]
    skipped  rows of the first block that lie before the call: int, or int64 [B]
    lengths  int64 [B] or None: how many of the rows exist
    """

    length: int
    block: int
    count: int
    first: Count
    skipped: Count
    lengths: Tensor | None
    device: torch.device

    @staticmethod
    def cut(
        length: int,
        block: int,
        offset: int | Tensor,
        lengths: Tensor | None,
        device: torch.device,
    ) -> Axis:
        """The blocks of an axis whose first row has position `offset`."""
        first = first_block(offset, block)
        skipped = offset - first * block
        if lengths is not None:
            lengths = lengths.to(torch.int64)
        count = block_count(length, block, offset)
        return Axis(length, block, count, first, skipped, lengths, device)

    def numbers(self, part: slice) -> Tensor:
        """Numbers of some blocks within the call: int64 [blocks]."""
        return torch.arange(part.start, part.stop, device=self.device)

    def indices(self, part: slice) -> Tensor:
        """Absolute indices of some blocks: int64 [1 or B, blocks]."""
        return self.numbers(part)[None] + as_column(self.first)

    def rows(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [low, high) that exist of numbered blocks: int64, numbers are [1 or B, ...]."""
        shape = (-1,) + (1,) * (numbers.dim() - 1)
        starts = numbers * self.block - spread(self.skipped, shape)
        ends = starts + self.block
        last = self.length if self.lengths is None else self.lengths.clamp(max=self.length)
        last = spread(last, shape)
        ends = ends.clamp(max=last) if isinstance(last, int) else torch.minimum(ends, last)
        return starts.clamp(min=0), ends

    def exist(self, part: slice) -> Tensor:
        """Whether some blocks have a row: bool [1 or B, blocks]."""
        low, high = self.rows(self.numbers(part)[None])
        return low < high


def as_column(value: Count) -> Count:
    """A number per batch as [B, 1]."""
    return value[:, None] if isinstance(value, Tensor) else value


def spread(value: Count, shape: tuple[int, ...]) -> Count:
    return value.view(shape) if isinstance(value, Tensor) else value


# Pooling


def pool(rows: Tensor, axis: Axis, how: str) -> Tensor:
    """Rows [B, heads, N, D] by block, how = "mean", "max" or "min": float32 [B, heads, blocks, D].

    A mean is taken in float64 and rounded once, so that blocks of equal rows have equal means
    however many they are. Blocks without a row get numbers without meaning.
    """
    reduce = REDUCTIONS[how]
    if isinstance(axis.skipped, Tensor):
        return pool_gathered(rows, axis, how)
    parts = []
    head = min(axis.block - axis.skipped, axis.length) if axis.skipped else 0
    if head:
        parts.append(reduce(rows.narrow(2, 0, head).unsqueeze(2), 3))
    if head < axis.length:
        rest = rows.narrow(2, head, axis.length - head)
        if axis.block == 1:
            parts.append(rest.to(torch.float32))
        else:
            parts.append(reduced(rest, 2, axis.block, reduce))
    found = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
    return found if axis.lengths is None else with_last_blocks(found, rows, axis, how)


def mean(rows: Tensor, dim: int) -> Tensor:
    """A mean in float64 of all rows along a dimension, rounded to float32."""
    most = MOST_WIDENED_CPU if rows.device.type == "cpu" else MOST_WIDENED
    if rows.numel() > most and dim > 0:
        slab = rows[0].numel()
        if slab > most:
            return torch.stack([mean(part, dim - 1) for part in rows.unbind(0)])
        step = most // slab
        parts = [rows[start : start + step] for start in range(0, len(rows), step)]
        return torch.cat([mean(part, dim) for part in parts])
    return (rows.sum(dim, dtype=torch.float64) / rows.shape[dim]).to(torch.float32)


def greatest(rows: Tensor, dim: int) -> Tensor:
    return rows.amax(dim).to(torch.float32)


def least(rows: Tensor, dim: int) -> Tensor:
    return rows.amin(dim).to(torch.float32)


REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": mean,
    "max": greatest,
    "min": least,
}


def with_last_blocks(found: Tensor, rows: Tensor, axis: Axis, how: str) -> Tensor:
    """What was pooled, with the block in which each sequence ends pooled over its own rows."""
    assert axis.lengths is not None
    last = (axis.lengths - 1).clamp(0, axis.length - 1)
    numbers = torch.div(last + axis.skipped, axis.block, rounding_mode="floor")[:, None]
    pooled = pool_numbered(rows, axis, numbers, how)
    place = numbers[:, None, :, None].expand(pooled.shape)
    return found.expand(pooled.shape[0], -1, -1, -1).scatter(2, place, pooled)


def pool_gathered(rows: Tensor, axis: Axis, how: str) -> Tensor:
    """The same where every batch has blocks of its own."""
    width = min(axis.block, axis.length)
    step = max(1, MOST_GATHERED // max(rows[:, :, :1].numel() * width, 1))
    parts = []
    for start in range(0, axis.count, step):
        numbers = axis.numbers(slice(start, min(start + step, axis.count)))
        parts.append(pool_numbered(rows, axis, numbers[None].expand(rows.shape[0], -1), how))
    return torch.cat(parts, 2)


def pool_numbered(rows: Tensor, axis: Axis, numbers: Tensor, how: str) -> Tensor:
    """Numbered blocks [B, n], pooled: float32 [B, heads, n, D]; 0 for a block without a row."""
    low, high = axis.rows(numbers)
    at = low[..., None] + torch.arange(min(axis.block, axis.length), device=rows.device)
    inside = (at < high[..., None])[:, None, :, :, None]
    safe = at.clamp(0, axis.length - 1).flatten(1)[:, None, :, None]
    batches, heads, _, width = rows.shape
    taken = rows.gather(2, safe.expand(batches, heads, -1, width))
    taken = torch.unflatten(taken, 2, at.shape[1:])
    if how == "mean":
        total = torch.where(inside, taken, 0).sum(3, dtype=torch.float64)
        return (total / inside.sum(3).clamp(min=1)).to(torch.float32)
    edge = -torch.inf if how == "max" else torch.inf
    found = REDUCTIONS[how](torch.where(inside, taken, edge), 3)
    return torch.where(inside.any(3), found, 0)
