"""What selects choose: every block of keys ranked for every block of queries, dense and plain.

Ranks are float32 whatever the inputs. Nothing here is differentiated: choosing passes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import Node
from attndsl.ir.program import Program, Routed, Select
from attndsl.reference.call import Call
from attndsl.reference.values import Values, evaluate


@dataclass(frozen=True)
class Blocks:
    """How the rows of one axis fall into blocks of positions.

    first   int64 [B]: the index of the first block of the call
    number  int64 [B, N]: of a row, the number of its block; the first block of the call has 0
    ends    for every sequence, for every block of the call: the rows low .. high - 1 that it has
            and that exist; none where low == high
    """

    first: Tensor
    number: Tensor
    ends: tuple[tuple[tuple[int, int], ...], ...]
    count: int

    @property
    def index(self) -> Tensor:
        """int64 [B, count]: the absolute index of every block."""
        return self.first[:, None] + torch.arange(self.count, device=self.first.device)

    @property
    def exists(self) -> Tensor:
        """bool [B, count]: whether a block has a row."""
        found = [[low < high for low, high in ends] for ends in self.ends]
        shape = (len(self.ends), self.count)
        return torch.tensor(found, dtype=torch.bool, device=self.first.device).view(shape)


def cut(
    length: int, size: int, offset: int | Tensor, lengths: Tensor | None, like: Tensor
) -> Blocks:
    """Blocks of `size` positions of an axis of `length` rows whose first has position `offset`.

    `lengths` (int [B] or None) are the numbers of rows that exist. Where the offset is a tensor
    there are as many blocks as the least favourable offset has, for every sequence alike.
    """
    batches, device = like.shape[0], like.device
    if isinstance(offset, Tensor):
        offsets = [int(x) for x in offset.tolist()]
        count = (length + size - 2) // size + 1
    else:
        offsets = [offset] * batches
        count = (offset + length - 1) // size - offset // size + 1
    count = count if length else 0
    present = [length] * batches
    if lengths is not None:
        present = [min(max(int(x), 0), length) for x in lengths.tolist()]
    first = [start // size for start in offsets]
    ends = []
    for start, block, rows in zip(offsets, first, present, strict=True):
        edges = [min(max((block + n) * size - start, 0), rows) for n in range(count + 1)]
        ends.append(tuple(zip(edges, edges[1:], strict=False)))
    starts = torch.tensor(offsets, dtype=torch.int64, device=device)
    firsts = torch.tensor(first, dtype=torch.int64, device=device)
    position = starts[:, None] + torch.arange(length, device=device)
    number = torch.div(position, size, rounding_mode="floor") - firsts[:, None]
    return Blocks(firsts, number, tuple(ends), count)


def pool(rows: Tensor, blocks: Blocks, how: str) -> Tensor:
    """Rows [B, heads, N, D] by block, float32 [B, heads, count, D]; 0 where a block has no row.

    A mean is taken in float64 and rounded once, so that blocks of equal rows have equal means
    however many rows they have.
    """
    batches, heads, _, width = rows.shape
    result = torch.zeros(batches, heads, blocks.count, width, device=rows.device)
    for b, ends in enumerate(blocks.ends):
        for n, (low, high) in enumerate(ends):
            if low < high:
                part = rows[b, :, low:high]
                if how == "mean":
                    result[b, :, n] = part.to(torch.float64).mean(1)
                else:
                    result[b, :, n] = part.amin(1) if how == "min" else part.amax(1)
    return result


class Choice:
    """What one select chooses in one call.

    rows, columns  blocks of queries and of keys
    heads          query heads, or key heads where they choose per group
    chosen         bool [B, heads, rows.count, columns.count]
    """

    def __init__(self, select: Select, call: Call) -> None:
        self.select, self.call = select, call
        m, n = (self.block_size(node) for node in (select.rows, select.columns))
        self.rows = cut(call.query.shape[2], m, call.q_offset, None, call.query)
        self.columns = cut(call.key.shape[2], n, call.k_offset, call.k_len, call.key)
        self.heads = call.sizes["Hk" if select.per_group else "H"]
        candidates = self.candidates()
        if select.keep == "given":
            self.chosen = candidates & self.listed()
        else:
            rank = self.ranks()
            self.chosen = self.keep(rank, candidates & ~rank.isnan())

    def block_size(self, node: Node) -> int:
        call = self.call
        values = Values(
            torch.float32, call.query.device, call.sizes, call.scalars, call.tensors, {}
        )
        size = int(evaluate(node, values))
        if size < 1:
            raise ArgumentError(
                f"the blocks of `{self.select.name}` have {size} positions; they need at least 1"
            )
        return size

    def values(self, heads: Tensor) -> Values:
        """Values over [b, h, i, j, d]; `heads` are the query heads that `h` stands for."""
        call, device = self.call, self.call.query.device
        batches, width = call.query.shape[0], call.query.shape[3]
        leaves = {
            "b": torch.arange(batches, device=device)[:, None, None, None, None],
            "h": heads[:, None, None, None],
            "i": self.rows.index[:, None, :, None, None],
            "j": self.columns.index[:, None, None, :, None],
            "d": torch.arange(width, device=device),
        }
        return Values(torch.float32, device, call.sizes, call.scalars, call.tensors, dict(leaves))

    def over_blocks(self, node: Node, values: Values) -> Tensor:
        """The value of a node for every block: [B, heads, rows.count, columns.count]."""
        shape = (
            self.call.query.shape[0],
            values.leaf("h").shape[0],
            self.rows.count,
            self.columns.count,
        )
        return evaluate(node, values).expand(*shape, 1)[..., 0]

    def choosing_heads(self) -> Tensor:
        """The query head that stands for each choice: the first of its group."""
        step = self.call.sizes["G"] if self.select.per_group else 1
        return torch.arange(self.heads, device=self.call.query.device) * step

    def candidates(self) -> Tensor:
        where = self.over_blocks(self.select.where, self.values(self.choosing_heads()))
        return where & self.columns.exists[:, None, None, :]

    def pooled_query(self, how: str) -> Tensor:
        return pool(self.call.query.detach(), self.rows, how)[:, :, :, None]

    def pooled_key(self, how: str) -> Tensor:
        pooled = pool(self.call.key.detach(), self.columns, how)
        return pooled.repeat_interleave(self.call.sizes["G"], 1)[:, :, None]

    def ranks(self) -> Tensor:
        """float32 [B, heads, rows.count, columns.count]; of a group the sum, in order of heads."""
        assert self.select.rank is not None
        sizes = self.call.sizes
        values = self.values(torch.arange(sizes["H"], device=self.call.query.device))
        for how in ("mean", "max", "min", ""):
            name = f"_{how}" if how else ""
            values.leaves[f"pooled query{name}"] = partial(self.pooled_query, how)
            values.leaves[f"pooled key{name}"] = partial(self.pooled_key, how)
        rank = self.over_blocks(self.select.rank, values)
        if self.select.per_group:
            parts = [rank[:, g :: sizes["G"]] for g in range(sizes["G"])]
            rank = parts[0]
            for part in parts[1:]:
                rank = rank + part
        return rank

    def keep(self, rank: Tensor, candidates: Tensor) -> Tensor:
        """Which candidates are kept; equal ranks go by their j."""
        assert self.select.limit is not None
        limit = self.over_blocks(self.select.limit, self.values(self.choosing_heads()))
        if self.select.keep == "above":
            return candidates & (rank > limit)
        # Stable sorts: by rank, and candidates before the others. -0.0 + 0.0 is 0.0.
        order = torch.where(candidates, rank + 0.0, 0.0)
        order = order.argsort(dim=-1, descending=True, stable=True)
        last = (~candidates).gather(-1, order).to(torch.int8).argsort(dim=-1, stable=True)
        order = order.gather(-1, last)
        is_candidate = candidates.gather(-1, order)
        if self.select.keep == "top":
            place = torch.arange(rank.shape[-1], device=rank.device)
            kept = is_candidate & (place < limit)
        else:
            kept = is_candidate & within_mass(rank.gather(-1, order), is_candidate, limit)
        return torch.zeros_like(candidates).scatter(-1, order, kept)

    def listed(self) -> Tensor:
        """The blocks that the tensor of a `given` lists."""
        given = self.call.tensors[self.select.given].to(torch.int64)
        if given.shape[2] != self.rows.count:
            raise ArgumentError(
                f"{self.select.given}: `{self.select.name}` has {self.rows.count} blocks of "
                f"queries in this call, but the tensor {[*given.shape]} has {given.shape[2]} rows"
            )
        number = given - self.columns.first[:, None, None, None]
        inside = (given >= 0) & (number >= 0) & (number < self.columns.count)
        return marked(torch.where(inside, number, -1), self.columns.count)

    def pairs(self, part: slice = slice(None)) -> Tensor:
        """The choice for pairs of rows, of these queries: bool [B, H, Nq, Nk]."""
        rows, columns = self.rows.number[:, part], self.columns.number
        return at_pairs(self.chosen, self.call, rows[:, None, :, None], columns[:, None, None])


def within_mass(rank: Tensor, is_candidate: Tensor, mass: Tensor) -> Tensor:
    """Of ranks in falling order, those before which less than `mass` of the softmax lies.

    The softmax is over the candidates, in float64.
    """
    if rank.shape[-1] == 0:
        return is_candidate
    rank = rank.to(torch.float64)
    greatest = rank[..., :1]
    weight = torch.where(rank == greatest, 1.0, torch.exp(rank - greatest))
    total = torch.where(is_candidate, weight, 0.0).cumsum(-1)
    before = torch.nn.functional.pad(total[..., :-1], (1, 0))
    return before < mass.to(torch.float64) * total[..., -1:]


def marked(numbers: Tensor, count: int) -> Tensor:
    """Lists of numbers [..., T] as bool [..., count]; negative entries mark nothing."""
    marks = torch.zeros(*numbers.shape[:-1], count + 1, dtype=torch.bool, device=numbers.device)
    return marks.scatter(-1, torch.where(numbers < 0, count, numbers), True)[..., :count]


def at_pairs(table: Tensor, call: Call, rows: Tensor, columns: Tensor) -> Tensor:
    """table[b, h or h // G, row, column] for rows and columns that broadcast to [B, H, Nq, Nk]."""
    heads = torch.arange(call.sizes["H"], device=table.device)
    if table.shape[1] != call.sizes["H"]:
        heads = torch.div(heads, call.sizes["G"], rounding_mode="floor")
    batches = torch.arange(call.sizes["B"], device=table.device)
    return table[batches[:, None, None, None], heads[:, None, None], rows, columns]


def choices(program: Program, call: Call) -> dict[str, Choice]:
    """What every select of a program chooses, by its name. Raises ArgumentError."""
    with torch.no_grad(), torch.autocast(call.query.device.type, enabled=False):
        return {select.name: Choice(select, call) for select in program.selects}


def chosen_pairs(program: Program, call: Call, part: slice = slice(None)) -> dict[str, Tensor]:
    """bool [B, H, Nq, Nk] for the `chosen` leaf of every select, for these queries."""
    made = choices(program, call)
    return {f"chosen {name}": choice.pairs(part) for name, choice in made.items()}


def listed_pairs(routed: Routed, call: Call) -> Tensor:
    """bool [B, H, Nq, Nk]: the pairs whose block of keys stands in the list of their row."""
    values = Values(torch.float32, call.query.device, call.sizes, call.scalars, call.tensors, {})
    size = int(evaluate(routed.columns, values))
    columns = cut(call.key.shape[2], size, call.k_offset, None, call.key)
    table = marked(call.tensors[routed.lists].to(torch.int64), columns.count)
    rows = torch.arange(call.query.shape[2], device=table.device)
    return at_pairs(table, call, rows[:, None], columns.number[:, None, None])
