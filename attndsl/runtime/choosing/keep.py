"""Which of ranked blocks are kept: as bools, or as the numbers of the best.

A rank and its column become one int, greater for a higher rank and, among equal ranks, for a lower
column: an order without ties, whatever a device does with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW = 2**31 - 1  # the lower half of a key is LOW - column
NONE = -(2**63)  # the key of what is no candidate: below every other


def keys_of(ranks: Tensor, candidates: Tensor, first: int) -> Tensor:
    """int64 keys of ranks (float32), the last dimension being columns first, first + 1, ..."""
    bits = (ranks + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    bits ^= (bits >> 31) & LOW  # as ints, floats below 0 fall where they should rise
    keys = bits.to(torch.int64)
    keys <<= 32
    columns = torch.arange(first, first + ranks.shape[-1], device=ranks.device)
    keys += LOW - columns
    return keys.masked_fill_(~candidates, NONE)


def ranks_in(keys: Tensor) -> Tensor:
    """The ranks in keys: float32; of NONE any."""
    bits = (keys >> 32).to(torch.int32)
    bits ^= (bits >> 31) & LOW
    return bits.view(torch.float32)


def best_columns(keys: Tensor, count: int, none: int) -> Tensor:
    """The columns of the `count` greatest keys, rising, with `none` (beyond every column) behind
    where there are fewer: int64 [..., min(count, columns)]."""
    best = keys.topk(min(count, keys.shape[-1]), -1, sorted=False).values
    columns = (LOW - (best & LOW)).masked_fill_(best == NONE, none)
    return columns.sort(-1).values


def kept_top(keys: Tensor, count: int) -> Tensor:
    """Which keys are the `count` greatest: bool."""
    count = min(count, keys.shape[-1])
    if count == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    least = keys.topk(count, -1, sorted=False).values.amin(-1, keepdim=True)
    return (keys >= least) & (keys != NONE)


def kept_first(keys: Tensor, falling: Tensor, counts: Tensor) -> Tensor:
    """Which keys are among the first `counts` [..., 1] of the same keys in falling order."""
    place = (counts - 1).clamp(0, keys.shape[-1] - 1)
    least = falling.gather(-1, place.expand(*keys.shape[:-1], 1))
    return (keys >= least) & (keys != NONE) & (counts > 0)


def kept_mass(keys: Tensor, mass: Tensor) -> Tensor:
    """Which keys are the fewest greatest whose softmax adds up to `mass` [..., 1], in float64."""
    falling = keys.sort(-1, descending=True).values
    ranks = ranks_in(falling).to(torch.float64)
    weights = torch.where(ranks == ranks[..., :1], 1.0, torch.exp(ranks - ranks[..., :1]))
    sums = weights.masked_fill_(falling == NONE, 0.0).cumsum(-1)
    before = torch.nn.functional.pad(sums[..., :-1], (1, 0))
    within = before < mass.to(torch.float64) * sums[..., -1:]
    counts = (within & (falling != NONE)).sum(-1, keepdim=True)
    return kept_first(keys, falling, counts)
