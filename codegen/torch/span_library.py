"""Functions that a generated PyTorch module carries along to find which keys a block meets.

The same rules hold as for codegen/library.py: their source is copied verbatim.

Blocks of queries (of all batches and heads where they differ: rows) lie one behind the other on a
*line*: column c of row r is the place r * stride + c, and stride is larger than the number of
columns. A set of columns of every row is then one pair of int64 tensors, first places and ends.
*Runs* are such ranges in order, none empty, that neither overlap nor touch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def attn_parts(
    size_B: int, size_Hk: int, size_G: int, by: str, heads: int
) -> list[tuple[int, int, int, int, int, int]]:
    """Ranges of batch, key heads and query heads of a group that are worked on together.

    by     "all", "batch" or "head": what must not be joined, since other columns take part
    heads  how many key heads to work on together, so that a block stays in the cache
    """
    parts = []
    batches = heads // max(size_Hk, 1) if by == "all" else 1
    if by == "head":
        heads = 1
    for b in range(0, size_B, max(batches, 1)):
        for j in range(0, size_Hk, heads):
            for g in range(0, size_G, 1 if by == "head" else max(size_G, 1)):
                end = g + 1 if by == "head" else size_G
                last = min(b + max(batches, 1), size_B)
                parts.append((b, last, j, min(j + heads, size_Hk), g, end))
    return parts


def attn_by_row(x: torch.Tensor | int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """A number or a tensor that broadcasts to [lists of b, of h, blocks] -> one value a row."""
    return torch.as_tensor(x, device=like.device).broadcast_to(shape).reshape(-1)


def attn_runs(first: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The runs that cover the same as ranges, which may overlap, be empty and have any order."""
    there = (first < end).nonzero().squeeze(1)
    first, order = first[there].sort()
    end = end[there][order].cummax(0).values
    begins = torch.ones_like(first, dtype=torch.bool)
    begins[1:] = first[1:] > end[:-1]
    return first[begins], end[begins.roll(-1)]


def attn_reach(
    segments: list[tuple[torch.Tensor | int, ...]],
    shape: tuple[int, ...],
    shift: torch.Tensor | int,
    limit: torch.Tensor | int,
    stride: int,
    like: torch.Tensor,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What segments (lo, hi, full_lo, full_hi) of positions reach, and their full parts, as runs.

    shift  the position of column 0; limit: the number of columns
    """
    ends = [torch.as_tensor(x, device=like.device).broadcast_to(shape) for s in segments for x in s]
    columns = (torch.stack(ends) - shift).clamp_(min=0)
    columns = columns.minimum(torch.as_tensor(limit, device=like.device)).flatten(1)
    places = columns + torch.arange(0, columns.shape[1] * stride, stride, device=like.device)
    found = []
    for first, end in ((places[0::4], places[1::4]), (places[2::4], places[3::4])):
        if len(segments) > 1:
            found.append(attn_runs(first.reshape(-1), end.reshape(-1)))
        else:  # in order, and none touches another row's
            there = (first[0] < end[0]).nonzero().squeeze(1)
            found.append((first[0][there], end[0][there]))
    return found


def attn_spread(first: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For every entry its `count` numbers from `first` on: which entry, and the number."""
    which = torch.repeat_interleave(count)
    skipped = first - (count.cumsum(0) - count)
    return which, skipped[which] + torch.arange(len(which), device=first.device)


def attn_outside(
    first: torch.Tensor, end: torch.Tensor, full_first: torch.Tensor, full_end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What of some runs lies in no run of others, in order."""
    free_first = torch.cat((full_end.new_zeros(1), full_end))
    free_end = torch.cat((full_first, full_first.new_full((1,), 1 << 62)))
    skipped = torch.searchsorted(free_end, first, right=True)
    which, at = attn_spread(skipped, torch.searchsorted(free_first, end) - skipped)
    return first[which].maximum(free_first[at]), end[which].minimum(free_end[at])


def attn_cut(
    first: torch.Tensor, end: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ranges cut at the multiples of 2**bits; and which multiple each part starts at or after."""
    low = first >> bits
    which, tile = attn_spread(low, ((end - 1) >> bits) - low + 1)
    place = tile << bits
    return first[which].maximum(place), end[which].minimum(place + (1 << bits)), tile


def attn_levels(x: torch.Tensor, lists: tuple[int, ...], depth: int) -> list[torch.Tensor]:
    """The first level of a pyramid: values of tiles [.., tiles], for every list, on a line with
    2**depth places for each."""
    places = torch.arange(1 << depth, device=x.device).clamp(max=x.shape[-1] - 1)
    return [x[..., places].broadcast_to((*lists, 1 << depth)).reshape(-1)]


def attn_level(levels: list[torch.Tensor], level: int, part: str) -> torch.Tensor:
    """A level of a pyramid: the least, greatest or signature of tiles 2**level times as wide."""
    joins = {"least": torch.minimum, "greatest": torch.maximum, "signature": torch.bitwise_or}
    while len(levels) <= level:
        halves = levels[-1].view(-1, 2)
        levels.append(joins[part](halves[:, 0], halves[:, 1]))
    return levels[level]


def attn_refine(
    reached: tuple[torch.Tensor, torch.Tensor],
    full: tuple[torch.Tensor, torch.Tensor],
    classify: Callable[..., tuple[torch.Tensor | bool, torch.Tensor | bool]],
    bits: int,
    depth: int,
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Runs of columns that may take part, and of those that do for sure, as far as tiles tell.

    Wide tiles first; those that neither all take part nor none are halved, several times at once
    while they are few. `classify(tile, level, first, end)` says of ranges, each in one tile of
    2**(bits + level) columns, whether some pair may take part, and whether all do.
    """
    first, end = attn_outside(*reached, *full)
    kept, sure = [full], [full]
    level = depth + 1
    while len(first):
        work = int((end - first).sum()) >> bits
        few = [at for at in range(level) if len(first) + (work >> at) <= 1 << 14]
        level = few[0] if few else level - 1
        first, end, tile = attn_cut(first, end, bits + level)
        facts = []
        for at in range(0, len(tile), 1 << 16):
            part = slice(at, at + (1 << 16))
            found = classify(tile[part], level, first[part], end[part])
            like = tile[part]
            facts.append([torch.as_tensor(x, device=like.device).expand(len(like)) for x in found])
        possible, certain = (torch.cat(parts) for parts in zip(*facts, strict=True))
        sure.append((first[certain], end[certain]))
        possible = possible & ~certain
        first, end = first[possible], end[possible]
        if level == 0:
            kept.append((first, end))
            break
    kept += sure[1:]
    runs = [[torch.cat(parts) for parts in zip(*ranges, strict=True)] for ranges in (kept, sure)]
    return attn_runs(*runs[0]), attn_runs(*runs[1])


def attn_spans(
    reached: tuple[torch.Tensor, torch.Tensor],
    full: tuple[torch.Tensor, torch.Tensor],
    shape: tuple[int, ...],
    stride: int,
) -> list[list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]]:
    """For every list, for every block: the ranges of columns that can take part, and of those that
    do for sure."""
    rows, blocks = math.prod(shape), shape[-1]
    first = torch.cat((reached[0], full[0] + rows * stride))  # a second line behind the first
    row = first // stride
    end = torch.cat((reached[1], full[1] + rows * stride)) - row * stride
    pairs = list(zip((first - row * stride).tolist(), end.tolist(), strict=True))
    ends = torch.bincount(row, minlength=2 * rows).cumsum(0).tolist()
    found = [pairs[at:end] for at, end in zip([0, *ends], ends, strict=False)]
    spans = list(zip(found[:rows], found[rows:], strict=True))
    return [spans[at : at + blocks] for at in range(0, rows, blocks)]


def attn_without(lo: int, hi: int, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of [lo, hi) none of the ranges (in order, without overlap) covers."""
    left = []
    for start, end in ranges:
        if start >= hi:
            break
        if end > lo:
            if start > lo:
                left.append((lo, start))
            lo = end
    if lo < hi:
        left.append((lo, hi))
    return left


def attn_chunks(
    span: tuple[list[tuple[int, int]], list[tuple[int, int]]], columns: int, unit: int
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """A block's columns in chunks: (first, end, the ranges in it that need the mask).

    columns  the most that a chunk may have, a multiple of `unit`. Chunks are as wide as a multiple
             of it where that costs little: matrix products are prepared for a few widths only
    """
    reached, full = span
    chunks = []
    free = 0  # the first column behind those of the range before
    for lo, hi in reached:
        units = -(-(hi - lo) // unit)
        more = units * unit - (hi - lo)
        if more <= min(lo - free, (hi - lo) // 8):
            lo -= more
        free = hi
        step = -(-units // -(-(hi - lo) // columns)) * unit
        for first in range(lo, hi, step):
            end = min(first + step, hi)
            chunks.append((first, end, attn_without(first, end, full)))
    return chunks
