"""Listed blocks whose pairs another part of the mask has already are taken off the lists."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from attndsl.analysis import build
from attndsl.analysis.implications import implies
from attndsl.analysis.ranges import solve_keys
from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import FALSE, TRUE, Node, bound, substitute
from attndsl.ir.program import Routed
from attndsl.reference import evaluate
from attndsl.runtime.choosing.choice import Choosing, pieces
from attndsl.runtime.choosing.ranks import DeviceValues


@lru_cache(maxsize=256)
def possible_of(mask: Node, where: Node) -> Node:
    """Whether a tile of one row may have a pair of the mask, all its pairs being in `where`: from
    the facts of the tile, and from the ranges of keys that a row needs."""
    if implies(where, mask):
        return TRUE
    k_lo, k_hi = bound("k_lo"), bound("k_hi")
    row = {bound("lo"): bound("q_lo"), bound("hi"): bound("q_lo")}
    met = FALSE
    for segment in solve_keys(mask).segments:
        lo, hi = (substitute(end, row) for end in (segment.lo, segment.hi))
        both = build.both(build.at_most(lo, k_hi), build.less(k_lo, hi), build.less(lo, hi))
        met = build.either(met, both)
    return build.both(classify(mask).possible, met)


def drop_covered(lists: Tensor, routed: Routed, choosing: Choosing) -> None:
    """Sets entries of lists [B, H or Hk, Nq, T] to -1 whose block has no pair of the row to add, as
    far as that is proved from the mask."""
    possible = possible_of(routed.mask, routed.where)
    if possible is TRUE or not lists.numel() or not choosing.columns.count:
        return
    for rows in pieces(choosing, lists.shape[3]):
        part = lists[:, :, rows]
        adds = may_add(possible, part, rows, choosing)
        lists[:, :, rows] = part.masked_fill(~adds, -1)


def may_add(possible: Node, part: Tensor, rows: slice, choosing: Choosing) -> Tensor:
    """For entries of some rows (-1: any answer), of a group whether one of its heads needs them."""
    inputs, device = choosing.inputs, part.device
    sizes = inputs.sizes
    heads = (sizes["Hk"], sizes["G"])
    numbers = torch.unflatten(part.clamp(min=0).to(torch.int64), 1, (sizes["Hk"], -1))
    low, high = choosing.columns.rows(numbers)
    offsets = [as_leaf(offset) for offset in (inputs.q_offset, inputs.k_offset)]
    q = torch.arange(rows.start, rows.stop, device=device)[:, None] + offsets[0]
    dtype = torch.float64 if inputs.query.dtype == torch.float64 else torch.float32
    values = DeviceValues(dtype, device, sizes, inputs.scalars, inputs.tensors, {})
    values.leaves["b"] = torch.arange(sizes["B"], device=device).view(-1, 1, 1, 1, 1)
    values.leaves["h"] = torch.arange(sizes["H"], device=device).view(*heads, 1, 1)
    values.leaves["q_lo"] = values.leaves["q_hi"] = q
    values.leaves["k_lo"], values.leaves["k_hi"] = low + offsets[1], high - 1 + offsets[1]
    shape = (sizes["B"], *heads, *part.shape[2:])
    adds = evaluate(possible, values).expand(shape)
    return adds.any(2) if choosing.select.per_group else adds.flatten(1, 2)


def as_leaf(offset: int | Tensor) -> int | Tensor:
    return offset.to(torch.int64).view(-1, 1, 1, 1, 1) if isinstance(offset, Tensor) else offset
