"""What a select has to choose from in a call: blocks, candidates, and how many are kept at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import TRUE, Node, find, is_const, topological
from attndsl.ir.program import Select
from attndsl.reference import evaluate
from attndsl.report.tiles.draws import pieces, spread
from attndsl.runtime.choosing.numbers import block_sizes, list_room
from attndsl.runtime.views import View

AT_ONCE = 1 << 22  # pairs of blocks
MOST_LOOKED_AT = 1 << 25  # of them, about 0.3 s; of more, some rows of blocks stand for all


@dataclass(frozen=True)
class Run:
    """Blocks of one axis of one batch: `count` from number `first` on, which cover the positions
    start .. stop - 1; the first and the last of them may be short."""

    first: int
    count: int
    start: int
    stop: int


@dataclass(frozen=True)
class Choice:
    """A select in a call.

    rows, columns  queries and keys of a block
    queries, keys  blocks that the call has, the most of any batch
    lists          batches times heads that choose for themselves
    in_all         pairs of a block of queries and one of keys, of all lists
    candidates     those of them that `where` lets be
    kept           those that can be chosen, at most
    entries        rows of those, each counted by itself, of all query heads
    listed         how long a list is, where that is known
    group          query heads that choose together
    is_sample      whether the last three are estimates
    unknown        a tensor that `where` or the limit reads and that is not given, "" where there is
                   none: these figures are then without what reads it
    """

    select: Select
    rows: int
    columns: int
    queries: int
    keys: int
    lists: int
    in_all: int
    candidates: int
    kept: int
    entries: int
    listed: int | None
    group: int
    is_sample: bool
    unknown: str


def choice_of(select: Select, seen: View) -> Choice:
    """Counts for the sizes, scalars and tensors of a view. Raises ArgumentError for a scalar that
    is missing, and for blocks without a position."""
    unknown = missing_tensor(select, seen)
    rows, columns = block_sizes(select, seen.sizes, seen.scalars)
    sizes = seen.sizes
    heads = sizes["Hk"] if select.per_group else sizes["H"]
    group = sizes["G"] if select.per_group else 1
    runs = list(runs_of(rows, columns, seen))
    copies = sizes["B"] // len(runs) if runs else 0
    in_all = copies * heads * sum(i.count * j.count for i, j in runs)
    keys = max((j.count for _, j in runs), default=0)
    counter = Counter(select, seen, rows, len(runs))
    for batch, (i, j) in enumerate(runs):
        counter.add(batch, i, j)
    candidates, kept, entries = (copies * round(found) for found in counter.found)
    return Choice(
        select=select,
        rows=rows,
        columns=columns,
        queries=max((i.count for i, _ in runs), default=0),
        keys=keys,
        lists=sizes["B"] * heads,
        in_all=in_all,
        candidates=candidates,
        kept=kept,
        entries=entries * group,
        listed=listed_by(select, keys, seen),
        group=group,
        is_sample=counter.is_sample,
        unknown=unknown,
    )


def listed_by(select: Select, keys: int, seen: View) -> int | None:
    """How many blocks a list has room for."""
    if select.keep == "given" and select.given in seen.tensors:
        return int(seen.tensors[select.given].shape[3])
    most = list_room(select, seen.sizes, seen.scalars)
    return None if most is None else max(1, min(most, keys))


def missing_tensor(select: Select, seen: View) -> str:
    """What the candidates and the limit depend on and is not given; ArgumentError for scalars."""
    nodes = (select.rows, select.columns, select.where, select.limit)
    reads = [node for node in nodes if node is not None]
    for leaf in topological(*reads):
        if leaf.op == "scalar" and leaf.name not in seen.scalars:
            raise ArgumentError(f"missing {leaf.name}: {leaf.kind}, which `{select.name}` reads")
    return next((name for node in reads for name in tensors_missing(node, seen)), "")


def tensors_missing(node: Node, seen: View) -> list[str]:
    return [leaf.name for leaf in find(node, "lookup") if leaf.name not in seen.tensors]


def runs_of(rows: int, columns: int, seen: View) -> Iterator[tuple[Run, Run]]:
    """Blocks of queries and of keys: of every batch where these or what `where` reads may differ,
    else of the first."""
    batches = seen.sizes["B"] if seen.per_batch or seen.tensors else min(seen.sizes["B"], 1)
    for batch in range(batches):
        keys = seen.sizes["Nk"]
        if seen.k_len is not None:
            keys = max(0, min(keys, int(seen.k_len[batch])))
        yield (
            run_of(at(seen.q_offset, batch), seen.sizes["Nq"], rows),
            run_of(at(seen.k_offset, batch), keys, columns),
        )


def at(offset: int | Tensor, batch: int) -> int:
    return int(offset[batch]) if isinstance(offset, Tensor) else offset


def run_of(start: int, length: int, extent: int) -> Run:
    first = start // extent
    count = (start + length - 1) // extent - first + 1 if length else 0
    return Run(first, count, start, start + length)


class Counter:
    """Adds up candidates, what is kept of them, and the rows of that, batch by batch.

    Rows of blocks are looked at in parts; where they are too many, some stand for their neighbours.
    """

    def __init__(self, select: Select, seen: View, rows: int, batches: int) -> None:
        self.select, self.seen, self.rows, self.batches = select, seen, rows, batches
        self.where = TRUE if tensors_missing(select.where, seen) else select.where
        self.limit = select.limit
        if self.limit is not None and tensors_missing(self.limit, seen):
            self.limit = None
        self.found = (0.0, 0.0, 0.0)
        self.is_sample = False
        heads = seen.sizes["Hk"] if select.per_group else seen.sizes["H"]
        reads = [node for node in (self.where, self.limit) if node is not None]
        differ = any("h" in node.varies for node in reads)
        self.heads = torch.arange(heads if differ else min(heads, 1), device=seen.device)
        self.copies = heads // max(1, len(self.heads))
        if select.per_group:
            self.heads = self.heads * seen.sizes["G"]

    def add(self, batch: int, i: Run, j: Run) -> None:
        """Adds one batch."""
        if not i.count or not j.count or not len(self.heads):
            return
        wide = len(self.heads) * j.count
        if is_const(self.where, True):
            wide = len(self.heads)  # nothing is looked at pair by pair
        numbers = torch.arange(i.count)
        most = max(64, MOST_LOOKED_AT // (wide * self.batches))
        if i.count > most:
            numbers, self.is_sample = spread(i.count, most), True
        share = self.copies * i.count / len(numbers)
        for part in pieces(numbers.to(self.seen.device), max(1, AT_ONCE // wide)):
            candidates, kept = self.rows_of(batch, part + i.first, j)
            ends = (part + i.first + 1) * self.rows
            tall = ends.clamp(max=i.stop) - (ends - self.rows).clamp(min=i.start)
            added = (candidates.sum(), kept.sum(), (kept * tall).sum())
            both = zip(self.found, added, strict=True)
            candidates_sum, kept_sum, entries = (old + share * float(new) for old, new in both)
            self.found = (candidates_sum, kept_sum, entries)

    def rows_of(self, batch: int, i: Tensor, j: Run) -> tuple[Tensor, Tensor]:
        """Candidates of rows of blocks, and how many of them can be kept: int64 [heads, rows]."""
        select, shape = self.select, (len(self.heads), len(i))
        values = self.seen.values
        values.leaves |= {
            "b": torch.tensor(batch, device=i.device),
            "h": self.heads[:, None, None],
            "i": i[:, None],
            "j": torch.arange(j.first, j.first + j.count, device=i.device),
        }
        candidates = torch.full(shape, j.count, device=i.device)
        if not is_const(self.where, True):
            candidates = evaluate(self.where, values).expand(*shape, j.count).sum(2)
        if select.keep == "given" and select.given in self.seen.tensors:
            return candidates, candidates.clamp(max=self.seen.tensors[select.given].shape[3])
        if self.limit is None or select.keep == "above":
            return candidates, candidates
        limit = evaluate(self.limit, values).expand(*shape, 1)[..., 0]
        if select.keep == "top":
            return candidates, torch.minimum(candidates, limit.clamp(min=0))
        return candidates, torch.where(limit > 0, candidates, 0)
