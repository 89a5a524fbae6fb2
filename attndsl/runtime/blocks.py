"""What a call's tables hold per block of positions: profiles, extremes and signatures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attndsl.analysis.summaries import Summary
from attndsl.ir.nodes import Node, find
from attndsl.plan.signatures import attn_bit, attn_bits
from attndsl.reference import broadcast_shape, evaluate, positions
from attndsl.runtime.views import View

Reduction = Callable[[Tensor, int], Tensor]  # of a tensor along one dimension
IN_CACHE = 1 << 15  # entries that several operations in a row go over


def profile(summary: Summary, seen: View) -> Tensor:
    """The value of a summary for every position: [B or 1, H or 1, N], and for one over q and k
    [B or 1, H or 1, Nq, Nk].

    Bool, int or float; a table that is read as it stands keeps its own dtype and is not copied,
    except where positions reach beyond it: a lookup there is 0.
    """
    node, axes = summary.node, summary.axes
    if is_slice(node, seen):
        return slice_of(node, seen, axes)
    (axis,) = axes  # only a slice varies with both
    values = seen.values
    values.leaves["b"] = torch.arange(seen.sizes["B"], device=seen.device)[:, None, None]
    values.leaves["h"] = torch.arange(seen.sizes["H"], device=seen.device)[:, None]
    length = seen.sizes["Nq" if axis == "q" else "Nk"]
    offset = seen.q_offset if axis == "q" else seen.k_offset
    values.leaves[axis] = positions(length, offset, seen.device)[:, None]
    for lookup in find(node, "lookup"):
        if is_slice(lookup, seen) and axis in lookup.varies:
            values.done[lookup] = converted(slice_of(lookup, seen, axes), lookup)
    found = evaluate(node, values)
    found = found[(None,) * (3 - found.dim())]
    return found.expand(found.shape[0], found.shape[1], length)


def is_slice(node: Node, seen: View) -> bool:
    """Whether a lookup has bare indices, each another one, and all batches the same positions."""
    if node.op != "lookup":
        return False
    names = [arg.attr for arg in node.args if arg.op == "index"]
    moved = (("q", seen.q_offset), ("k", seen.k_offset))
    return len(names) == len(node.args) == len(set(names)) and not any(
        name in node.varies and isinstance(offset, Tensor) for name, offset in moved
    )


def slice_of(node: Node, seen: View, axes: tuple[str, ...]) -> Tensor:
    """A lookup with bare indices as [B or 1, H or 1, *axes]: a part of the table."""
    first = {"b": 0, "h": 0, "q": seen.q_offset, "k": seen.k_offset}
    extents = {"b": "B", "h": "H", "q": "Nq", "k": "Nk"}
    names = [arg.name for arg in node.args]
    table = seen.tensors[node.name].detach()
    for dim, name in enumerate(names):
        start = first[name]
        assert not isinstance(start, Tensor)
        table = part(table, dim, start, seen.sizes[extents[name]])
    order = ("b", "h", *axes)
    table = table.permute([names.index(name) for name in order if name in names])
    for dim, name in enumerate(order):
        if name not in names:
            table = table.unsqueeze(dim)
    return table


def part(table: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`length` entries of one dimension from `start` on; 0 where the table has none."""
    extent = table.shape[dim]
    low, high = min(max(start, 0), extent), min(max(start + length, 0), extent)
    inner = table.narrow(dim, low, max(high - low, 0))
    if inner.shape[dim] == length:
        return inner
    shape = list(table.shape)
    shape[dim] = length
    whole = table.new_zeros(shape)
    if inner.shape[dim]:
        whole.narrow(dim, low - start, high - low).copy_(inner)
    return whole


def converted(value: Tensor, node: Node) -> Tensor:
    """A table's entries in the dtype in which masks are computed."""
    dtypes = {"bool": torch.bool, "int": torch.int64, "float": torch.float32}
    return value.to(dtypes[node.kind])


class Blocks:
    """The summaries of a mask for blocks of rows and columns of one size, computed when asked for.

    block       rows and columns of a tile
    lengths     int64 [B] or None: entries of a block from there on do not count. Without it the
                last blocks of every axis still have only the entries that exist.
    """

    def __init__(self, seen: View, block: tuple[int, int], lengths: Tensor | None) -> None:
        self.seen, self.block, self.lengths = seen, block, lengths
        self._profiles: dict[int, Tensor] = {}
        self._parts: dict[tuple[int, str], Tensor] = {}

    def part(self, summary: Summary, what: str) -> Tensor:
        """ "least", "greatest" or "signature", found once."""
        key = (summary.number, what)
        if key not in self._parts:
            find_it = {"least": self.least, "greatest": self.greatest, "signature": self.signature}
            self._parts[key] = find_it[what](summary)
        return self._parts[key]

    def least(self, summary: Summary) -> Tensor:
        """[B or 1, H or 1, blocks], or [B or 1, H or 1, row blocks, column blocks]; of a bool,
        whether all are true."""
        return self._end(summary, torch.amin)

    def greatest(self, summary: Summary) -> Tensor:
        return self._end(summary, torch.amax)

    def signature(self, summary: Summary) -> Tensor:
        """int64 [B or 1, H or 1, blocks]: the bits of the values that occur."""
        return self._reduced(bits_of(self.profile(summary)), summary, attn_bits)

    def profile(self, summary: Summary) -> Tensor:
        found = self._profiles.get(summary.number)
        if found is None:
            found = self._profiles[summary.number] = profile(summary, self.seen)
        return found

    def _end(self, summary: Summary, reduce: Reduction) -> Tensor:
        value = as_bytes(self.profile(summary))
        return converted(self._reduced(value, summary, reduce), summary.node)

    def _reduced(self, value: Tensor, summary: Summary, reduce: Reduction) -> Tensor:
        if "k" in summary.axes:
            value = reduced_keys(value, self.block[1], reduce, self.lengths)
        if "q" in summary.axes:
            value = reduced(value, 2, self.block[0], reduce)
        return value


def as_bytes(value: Tensor) -> Tensor:
    """Bools as bytes, which are reduced many times faster."""
    return value.view(torch.uint8) if value.dtype == torch.bool else value


def reduced(value: Tensor, dim: int, block: int, reduce: Reduction) -> Tensor:
    """Blocks of one dimension, each reduced to one entry; the last has the entries that it has."""
    whole, rest = divmod(value.shape[dim], block)
    if block == 1:
        return value
    parts = []
    if whole or not rest:
        inner = value.narrow(dim, 0, whole * block)
        blocks = inner.view(*value.shape[:dim], whole, block, *value.shape[dim + 1 :])
        parts.append(reduce(blocks, dim + 1))
    if rest:
        last = value.narrow(dim, whole * block, rest)
        parts.append(reduce(last, dim).unsqueeze(dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def reduced_keys(value: Tensor, block: int, reduce: Reduction, lengths: Tensor | None) -> Tensor:
    """Blocks of the last dimension; the block in which a batch ends has its own entries only."""
    dim = value.dim() - 1
    found = reduced(value, dim, block, reduce)
    if lengths is None or not value.shape[dim]:
        return found
    batches = len(lengths)
    last = (lengths - 1).clamp(0, value.shape[dim] - 1)
    first = last // block * block
    inside = torch.arange(block, device=value.device)
    at = torch.minimum(first[:, None] + inside, last[:, None])
    at = at.view(batches, *(1,) * (dim - 1), block)
    entries = value.expand(batches, *value.shape[1:]).gather(
        dim, at.expand(batches, *value.shape[1:-1], block)
    )
    place = (first // block).view(batches, *(1,) * dim).expand(batches, *value.shape[1:-1], 1)
    found = found.expand(batches, *found.shape[1:]).clone()
    return found.scatter_(dim, place, reduce(entries, dim).unsqueeze(dim))


def bits_of(value: Tensor) -> Tensor:
    """The bit of each int, a stretch at a time."""
    parts = [
        attn_bit(value[..., start : start + IN_CACHE].to(torch.int64))
        for start in range(0, max(1, value.shape[-1]), IN_CACHE)
    ]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


# Work on two sets of values that is done exactly: multiply-adds of a product of matrices with a
# row for each block and a column for each value, about 0.1 s of one core.
MOST_PRODUCTS = 1 << 32
MOST_ENTRIES = 1 << 24  # of one such matrix
MOST_POSITIONS = 1 << 20  # whose values are sorted


def common_values(
    rows: Tensor, columns: Tensor, block: tuple[int, int], lengths: Tensor | None = None
) -> Tensor | None:
    """Which blocks have a value in common: bool [B or 1, H or 1, row blocks, column blocks]; rows
    and columns are int profiles, and lengths [B] say how many columns count. None where that is
    too much work."""
    batches, heads = broadcast_shape([rows[:, :, :1], columns[:, :, :1]])[:2]
    batches = batches if lengths is None else len(lengths)
    if batches * heads * (rows.shape[2] + columns.shape[2]) > MOST_POSITIONS:
        return None
    tall, wide = -(-rows.shape[2] // block[0]), -(-columns.shape[2] // block[1])
    found = rows.new_zeros((batches, heads, tall, wide), dtype=torch.bool)
    for b in range(batches):
        for h in range(heads):
            sides = [x[b % x.shape[0], h % x.shape[1]].to(torch.int64) for x in (rows, columns)]
            if lengths is not None:
                sides[1] = sides[1][: max(int(lengths[b]), 0)]
            met = common_values_of(sides[0], sides[1], block)
            if met is None:
                return None
            found[b, h, :, : met.shape[1]] = met
    return found


def common_values_of(rows: Tensor, columns: Tensor, block: tuple[int, int]) -> Tensor | None:
    known, numbers = torch.unique(torch.cat((rows, columns)), return_inverse=True)
    lengths = (len(rows), len(columns))
    tall, wide = (-(-length // extent) for length, extent in zip(lengths, block, strict=True))
    if tall * wide * len(known) > MOST_PRODUCTS or max(tall, wide) * len(known) > MOST_ENTRIES:
        return None
    occurs = []
    for part, count, extent in zip(numbers.split(lengths), (tall, wide), block, strict=True):
        matrix = torch.zeros((count, len(known)), device=rows.device)
        matrix[torch.arange(len(part), device=rows.device) // extent, part] = 1
        occurs.append(matrix)
    return occurs[0] @ occurs[1].T > 0
