"""Which tiles of a mask are empty, partial and full, for the tables of a call."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.counted import counted_tables, limited_mask
from attndsl.analysis.facts import Segment, TileFacts
from attndsl.analysis.ranges import solve_keys, solve_queries
from attndsl.analysis.summaries import Summary, summarise
from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import find
from attndsl.ir.program import Program
from attndsl.reference import evaluate
from attndsl.runtime.blocks import Blocks, common_values
from attndsl.runtime.segments import Intervals, Reach, reach_of
from attndsl.runtime.views import EMPTY, FULL, PARTIAL, View, shift, tile_ends

MOST_TILES = 1 << 21  # that are classified at once: 16 MiB for each value


@dataclass(frozen=True)
class MaskFacts:
    """What is known of a mask before a call: `facts.py`."""

    tile: TileFacts
    summaries: tuple[Summary, ...]
    keys: tuple[Segment, ...]
    queries: tuple[Segment, ...]

    @property
    def leaves(self) -> Iterator[str]:
        """The names of the summary leaves that the facts of a tile read."""
        nodes = {*find(self.tile.possible, "summary"), *find(self.tile.certain, "summary")}
        return (node.name for node in nodes)


@functools.lru_cache(maxsize=64)
def facts_of(program: Program, are_rows_aligned: bool) -> MaskFacts:
    """are_rows_aligned: whether every batch has the same offsets (`summaries.summarise`)."""
    summarised = summarise(program.mask, are_rows_aligned)
    limited = limited_mask(program)
    return MaskFacts(
        classify(summarised.mask, summarised.extremes, tables=counted_tables(program)),
        summarised.summaries,
        solve_keys(limited).segments,
        solve_queries(limited).segments,
    )


@torch.no_grad()
def classify_tiles(known: MaskFacts, seen: View, block: tuple[int, int]) -> Tensor:
    """Tiles: int8 [B or 1, H or 1, rows, columns], 0 empty, 1 partial, 2 full.

    Empty and full are proved, from the facts of the tile and from the segments; a tile that could
    not be decided counts as partial. Positions beyond Nq or Nk do not count, and k_len counts as
    a part of the mask. Time and memory: O(tiles), and a pass over the tables that the mask reads.
    """
    grid = Grid(known, seen, block)
    parts = list(grid.parts())
    batches = max(part.shape[0] for part in parts)
    heads = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(batches, heads, -1, -1) for part in parts], 2).contiguous()


class Grid:
    """All tiles of a call. Leaves have the shape [B or 1, H or 1, rows or 1, columns or 1]."""

    def __init__(self, known: MaskFacts, seen: View, block: tuple[int, int]) -> None:
        self.known, self.seen = known, seen
        self.rows = tile_ends(seen.sizes["Nq"], block[0], seen.device)
        self.columns = tile_ends(seen.sizes["Nk"], block[1], seen.device)
        self.q_shift = shift(seen.q_offset, seen.device)
        self.k_shift = shift(seen.k_offset, seen.device)
        self.k_lo = self.columns[0] + self.k_shift  # [B or 1, columns]
        self.k_hi = self.columns[1] + self.k_shift
        self.lengths: Tensor | None = None
        self.is_there = self.is_inside = torch.tensor(True, device=seen.device)
        if seen.k_len is not None:
            self.lengths = seen.k_len.to(torch.int64)
            ends = self.lengths[:, None]
            self.is_there = (self.columns[0] < ends)[:, None, None, :]
            self.is_inside = (self.columns[1] < ends)[:, None, None, :]
            self.k_hi = torch.minimum(self.columns[1], ends - 1) + self.k_shift
        self.leaves = self._summaries(block)
        # Segments of queries, for each tile of keys: [n, B or 1, H or 1, 1, columns]
        self.by_columns = reach_of(known.queries, seen, self.k_lo[:, None], self.k_hi[:, None])

    def _summaries(self, block: tuple[int, int]) -> dict[str, Tensor]:
        blocks = Blocks(self.seen, block, self.lengths)
        numbered = {str(summary.number): summary for summary in self.known.summaries}
        leaves = {}
        for name in self.known.leaves:
            if "_meets_" in name:
                pair = [numbered[number] for number in name.split("_meets_")]
                leaves[name] = self._meeting(blocks, *sorted(pair, key=lambda s: s.axes != ("q",)))
            else:
                number, end = name.split("_")
                summary = numbered[number]
                value = blocks.least(summary) if end == "least" else blocks.greatest(summary)
                leaves[name] = spread(value, summary.axes)
        return leaves

    def _meeting(self, blocks: Blocks, of_rows: Summary, of_columns: Summary) -> Tensor:
        """Whether two tiles have a value in common: exactly where that is cheap, else whether their
        signatures have a bit in common."""
        profiles = blocks.profile(of_rows), blocks.profile(of_columns)
        exact = common_values(*profiles, blocks.block, self.lengths)
        if exact is not None:
            return exact
        rows = spread(blocks.signature(of_rows), ("q",))
        return (rows & spread(blocks.signature(of_columns), ("k",))) != 0

    def parts(self) -> Iterator[Tensor]:
        """The tiles, some rows at a time: int8 [B or 1, H or 1, some rows, columns]."""
        sizes = self.seen.sizes
        wide = max(1, len(self.columns[0]) * sizes["B"] * sizes["H"])
        step = max(1, MOST_TILES // wide)
        for start in range(0, max(1, len(self.rows[0])), step):
            yield self._classified(slice(start, start + step))

    def _classified(self, rows: slice) -> Tensor:
        seen, values = self.seen, self.seen.values
        q_lo, q_hi = (end[rows] + self.q_shift for end in self.rows)
        values.leaves["b"] = torch.arange(seen.sizes["B"], device=seen.device)[:, None, None, None]
        values.leaves["h"] = torch.arange(seen.sizes["H"], device=seen.device)[:, None, None]
        values.leaves["q_lo"], values.leaves["q_hi"] = (x[:, None, :, None] for x in (q_lo, q_hi))
        values.leaves["k_lo"] = self.k_lo[:, None, None, :]
        values.leaves["k_hi"] = self.k_hi[:, None, None, :]
        for name, leaf in self.leaves.items():
            values.leaves[name] = leaf[:, :, rows] if leaf.shape[2] > 1 else leaf
        possible = evaluate(self.known.tile.possible, values)
        certain = evaluate(self.known.tile.certain, values)
        by_rows = reach_of(self.known.keys, seen, q_lo[:, None], q_hi[:, None])
        sides = (
            (outlined(by_rows, -1), self.k_lo[:, None, None, :], self.k_hi[:, None, None, :]),
            (outlined(self.by_columns, -2), q_lo[:, None, :, None], q_hi[:, None, :, None]),
        )
        for reach, low, high in sides:
            possible = possible & reaches(reach.outer, low, high)
            certain = certain | covers(reach.full, low, high)
        possible, certain = possible & self.is_there, certain & possible & self.is_inside
        tiles = torch.where(certain, FULL, torch.where(possible, PARTIAL, EMPTY))
        shape = (*tiles.shape[:2], q_lo.shape[1], len(self.columns[0]))
        return tiles.to(torch.int8).expand(shape)


def spread(value: Tensor, axes: tuple[str, ...]) -> Tensor:
    """A value per block as [B or 1, H or 1, rows or 1, columns or 1]."""
    if axes == ("q",):
        return value[..., None]
    return value[..., None, :] if axes == ("k",) else value


def outlined(reach: Reach, dim: int) -> Reach:
    """With a dimension of 1 for the tiles of the other axis."""
    outer, full = (
        Intervals(part.lo.unsqueeze(dim), part.hi.unsqueeze(dim))
        for part in (reach.outer, reach.full)
    )
    return Reach(outer, full)


def reaches(intervals: Intervals, low: Tensor, high: Tensor) -> Tensor:
    """Whether any of the positions low .. high lies in an interval."""
    found = low > high
    for lo, hi in zip(intervals.lo, intervals.hi, strict=True):
        found = found | ((lo <= high) & (low < hi) & (lo < hi))
    return found & (low <= high)


def covers(intervals: Intervals, low: Tensor, high: Tensor) -> Tensor:
    """Whether all positions low .. high lie in one interval (there are some)."""
    found = low > high
    for lo, hi in zip(intervals.lo, intervals.hi, strict=True):
        found = found | ((lo <= low) & (high < hi))
    return found & (low <= high)
