"""Choosing in one kernel of a GPU: ranks that are products of vectors are never stored.

For `keep top` of one number for all rows, where `where` holds for one range of columns of a row.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attndsl.analysis.ranges import solve_keys
from attndsl.ir.nodes import Node, bound, constant, find, index, substitute
from attndsl.ir.program import Select
from attndsl.reference import evaluate
from attndsl.runtime import cache
from attndsl.runtime.choosing.blocks import as_column
from attndsl.runtime.choosing.numbers import is_number
from attndsl.runtime.choosing.ranks import DeviceValues, Evaluation, cut
from attndsl.runtime.choosing.totals import Product, products_of
from attndsl.transform.simplify import simplified

MOST_KEPT = 64  # by the kernel
LEAST_ROWS = 16  # of a list: a tile of the kernel has 32
TILE_ROWS, TILE_COLUMNS = 32, 64
MOST_STEPS = 16  # that a program may take for each program that there is
MOST_VECTORS = 1 << 26  # elements of vectors of rows that are computed at once
OLDEST_CUDA = (8, 0)  # compute capability

Ends = tuple[Node, Node]


@dataclass(frozen=True)
class Fused:
    """A choice that one kernel makes.

    products  whose sum is the rank
    ends      of the range of columns [low, high) that are candidates: absolute indices, ints over
              bound("lo"), the absolute index of the row
    count     n of `keep top n`
    """

    select: Select
    evaluation: Evaluation
    products: tuple[Product, ...]
    ends: Ends
    count: int

    @staticmethod
    def of(select: Select, evaluation: Evaluation, count: int | None) -> Fused | None:
        """None where tensor operations must do it, or do it faster."""
        if not has_kernel(evaluation.inputs.device):
            return None
        if count is None or not pays(select, evaluation):
            return None
        count = min(count, evaluation.columns.count)
        if not 1 <= count <= MOST_KEPT:
            return None
        products = None if select.rank is None else products_of_rank(select.rank)
        if products is None:
            return None
        ends = ends_of(select.where, evaluation)
        return None if ends is None else Fused(select, evaluation, products, ends, count)

    def write(self, lists: Tensor) -> None:
        """Fills int32 lists [B, H or Hk, I, T], T <= count, as `choice.lists_of` describes them."""
        kernel = cache.fixed_module("triton.choosing")
        lows, highs = self.ranges()
        y = self.columns()
        for rows in self.pieces():
            kernel.run(
                self.rows(rows),
                y,
                lows[:, rows].contiguous(),
                highs[:, rows].contiguous(),
                lists[:, :, rows],
                self.count,
                self.select.per_group,
            )

    def ranges(self) -> tuple[Tensor, Tensor]:
        """The candidates of each row as numbers within the call: int32 [B or 1, I] and the same."""
        evaluation = self.evaluation
        inputs, rows, columns = evaluation.inputs, evaluation.rows, evaluation.columns
        at = rows.indices(slice(0, rows.count))
        known = (inputs.sizes, inputs.scalars, inputs.tensors)
        values = DeviceValues(torch.float32, inputs.device, *known, {"lo": at})
        first = as_column(columns.first)
        low, high = ((evaluate(end, values) - first).clamp(0, columns.count) for end in self.ends)
        if columns.lengths is not None or isinstance(first, Tensor):
            # Blocks that have a key are the first ones.
            exist = columns.exist(slice(0, columns.count)).sum(1, keepdim=True)
            high = torch.minimum(high, exist)
        low, high, _ = torch.broadcast_tensors(low, high, at)  # type: ignore[no-untyped-call]
        return low.to(torch.int32), high.to(torch.int32)

    # Vectors

    def is_read_in_place(self) -> bool:
        """Whether the rows of the kernel are those of the queries."""
        first, *others = self.products
        return not others and first.sign > 0 and self.evaluation.in_place(first.x) is not None

    def pieces(self) -> Iterator[slice]:
        """Rows of which vectors are made at once."""
        sizes, whole = self.evaluation.inputs.sizes, slice(0, self.evaluation.rows.count)
        if self.is_read_in_place():
            yield whole
            return
        each = sizes["B"] * sizes["H"] * sizes["D"] * len(self.products)
        step = max(1, MOST_VECTORS // (each * TILE_ROWS)) * TILE_ROWS
        yield from cut(whole, step)

    def rows(self, rows: slice) -> Tensor:
        """[B, Hk, G, I, D], the vectors of several products side by side."""
        found = []
        for product in self.products:
            x = self.evaluation.vectors(product.x, rows, slice(0, 1)).squeeze(4)
            found.append(-x if product.sign < 0 else x)
        return self.joined(found, rows.stop - rows.start)

    def columns(self) -> Tensor:
        """[B, Hk, G, J, D], likewise."""
        count = self.evaluation.columns.count
        every, one = slice(0, count), slice(0, 1)
        found = [self.evaluation.vectors(p.y, one, every).squeeze(3) for p in self.products]
        return self.joined(found, count)

    def joined(self, parts: list[Tensor], count: int) -> Tensor:
        shape = torch.broadcast_shapes(*(p.shape for p in parts))  # type: ignore[no-untyped-call]
        found = parts[0] if len(parts) == 1 else torch.cat([p.expand(shape) for p in parts], -1)
        if found.stride(-1) != 1:
            found = found.contiguous()
        batches = self.evaluation.inputs.sizes["B"]
        return found.expand(batches, *self.evaluation.heads, count, found.shape[-1])


def products_of_rank(rank: Node) -> tuple[Product, ...] | None:
    return products_of(rank.args[0]) if rank.op == "total" else None


def pays(select: Select, evaluation: Evaluation) -> bool:
    """Whether there are rows for the tiles of the kernel, and programs for the columns."""
    sizes, rows = evaluation.inputs.sizes, evaluation.rows.count
    members = sizes["G"] if select.per_group else 1
    programs = sizes["B"] * sizes["H"] // members * -(-rows // TILE_ROWS)
    steps = -(-evaluation.columns.count // TILE_COLUMNS) * members
    return rows >= LEAST_ROWS and steps <= MOST_STEPS * programs


@functools.cache
def has_kernel(device: torch.device) -> bool:
    """Whether a device runs the kernel."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= OLDEST_CUDA


# Candidates


@lru_cache(maxsize=256)
def segment_of_row(where: Node) -> tuple[Node, Node, Node, Node] | None:
    """The ends of the one segment of columns of a row, and those of its full part, where sizes and
    scalars determine them."""
    mask = substitute(where, {index("i"): index("q"), index("j"): index("k")})
    segments = solve_keys(mask).segments
    if len(segments) != 1:
        return None
    (one,) = segments
    low, high, full_low, full_high = (
        substitute(end, {bound("hi"): bound("lo")})
        for end in (one.lo, one.hi, one.full_lo, one.full_hi)
    )
    ends = (low, high, full_low, full_high)
    return ends if all(is_number(end) for end in ends) else None


def ends_of(where: Node, evaluation: Evaluation) -> Ends | None:
    """The range of columns for which `where` holds of a row, if it holds for just one: outside its
    segment none is a candidate, inside its full part every one, and in this call they are one."""
    ends = segment_of_row(where)
    if ends is None:
        return None
    inputs, known = evaluation.inputs, {}
    for end in ends:
        for leaf in find(end, "size", "scalar"):
            if leaf.kind == "float":
                return None
            values = inputs.sizes if leaf.op == "size" else inputs.scalars
            known[leaf] = constant(values[leaf.name])
    low, high, full_low, full_high = (simplified(substitute(end, known)) for end in ends)
    return (low, high) if low is full_low and high is full_high else None
