"""Exact: two masks compared in one call, tile by tile and where needed pair by pair."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attndsl.ir.program import Program
from attndsl.reference import evaluate
from attndsl.report.differences.search import Pair, Trial
from attndsl.report.pictures.cells import tiles_of
from attndsl.runtime import views

MOST_TILES = 1 << 21  # of one comparison
SMALLEST_BLOCK = 64
CHUNK = 1 << 21  # pairs that are evaluated at once
MOST_PAIRS = 1 << 30  # evaluated in one comparison


class Exact:
    """Compares two masks in one call: by what is known of their tiles, and pair by pair in those
    tiles where this does not say it."""

    def __init__(self, a: Program, b: Program, trial: Trial) -> None:
        self.programs, self.trial = (a, b), trial
        self.seen = [trial.view(program) for program in self.programs]
        longest = max(trial.sizes["Nq"], trial.sizes["Nk"], 1)
        self.block = SMALLEST_BLOCK
        while (longest / self.block) ** 2 > MOST_TILES:
            self.block *= 2
        self.found: list[Pair | None] = [None, None]
        self.wanted = (True, True)
        self.tiles = self.undecided = self.enumerated = 0

    @property
    def is_found(self) -> bool:
        """Whether there is a pair for each direction that is wanted."""
        return all(self.found[at] is not None for at in (0, 1) if self.wanted[at])

    @property
    def is_complete(self) -> bool:
        return self.is_found or self.enumerated >= self.undecided

    @property
    def looked_at(self) -> str:
        extent = f"{self.block} x {self.block}"
        whole = f"{self.tiles:,} tiles of {extent}"
        if self.enumerated >= self.undecided:
            return f"{whole}, {self.undecided:,} of them pair by pair"
        only = "" if self.is_found else "only "
        return f"{whole}; read {only}{self.enumerated:,} of {self.undecided:,} undecided ones"

    def find(self, wanted: tuple[bool, bool] = (True, True)) -> list[Pair | None]:
        """For each direction a pair that one mask keeps and the other drops, or None; looked for
        only until there is one for each direction that is `wanted`."""
        self.wanted = wanted
        block = (self.block, self.block)
        one, other = (
            tiles_of(program, seen, block)
            for program, seen in zip(self.programs, self.seen, strict=True)
        )
        extents = zip(one.shape, other.shape, strict=True)
        shape = [max(pair) for pair in extents]
        one, other = one.expand(shape), other.expand(shape)
        self.tiles = one.numel()
        for at, (keeps, drops) in enumerate(((one, other), (other, one))):
            places = ((keeps == views.FULL) & (drops == views.EMPTY)).nonzero()
            if len(places):
                self.found[at] = self._pair(places[0].tolist(), 0, 0)
        same = (one == other) & (one != views.PARTIAL)
        opposed = (one != other) & (one != views.PARTIAL) & (other != views.PARTIAL)
        open_tiles = (~same & ~opposed).nonzero()
        self.undecided = len(open_tiles)
        for part in self._chunks(open_tiles):
            if self.is_found:
                break
            self._enumerate(part)
            self.enumerated += len(part)
        return self.found

    def _chunks(self, tiles: Tensor) -> Iterator[Tensor]:
        each = max(1, CHUNK // self.block**2)
        for start in range(0, min(len(tiles), MOST_PAIRS // self.block**2), each):
            yield tiles[start : start + each]

    def _enumerate(self, tiles: Tensor) -> None:
        """All pairs of tiles [n, (batch, head, row, column)]."""
        b, h, row, column = (part[:, None, None] for part in tiles.unbind(1))
        inside = torch.arange(self.block)
        rows = row * self.block + inside[:, None]
        columns = column * self.block + inside
        there = (rows < self.trial.sizes["Nq"]) & (columns < self.trial.sizes["Nk"])
        offsets = self.trial.offsets
        leaves = {"b": b, "h": h}
        leaves |= {"q": rows + offsets["q_offset"], "k": columns + offsets["k_offset"]}
        kept = []
        for program, seen in zip(self.programs, self.seen, strict=True):
            values = seen.values
            values.leaves.update(leaves)
            kept.append(evaluate(program.mask, values).expand(there.shape) & there)
        for at in (0, 1):
            places = (kept[at] & ~kept[1 - at]).nonzero()
            if self.found[at] is None and len(places):
                tile, i, j = places[0].tolist()
                self.found[at] = self._pair(tiles[tile].tolist(), i, j)

    def _pair(self, tile: list[int], i: int, j: int) -> Pair:
        batch, head, row, column = tile
        q = row * self.block + i + self.trial.offsets["q_offset"]
        k = column * self.block + j + self.trial.offsets["k_offset"]
        return Pair(self.trial, batch, head, q, k)
