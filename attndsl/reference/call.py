"""A checked call, and the positions of its rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.reference.values import Number


@dataclass(frozen=True)
class Call:
    """A checked call: what a program is evaluated on.

    query [B, H, Nq, D], key [B, Hk, Nk, D], value [B, Hk, Nk, Dv]; offsets are ints or int [B];
    k_len is None or int [B]. `sizes` has every size by name.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    q_offset: int | Tensor
    k_offset: int | Tensor
    k_len: Tensor | None
    sizes: Mapping[str, int]
    scalars: Mapping[str, Number]
    tensors: Mapping[str, Tensor]


def positions(length: int, offset: int | Tensor, device: torch.device) -> Tensor:
    """Positions along one axis: [1 or B, length]."""
    rows = torch.arange(length, device=device)[None]
    return rows + (offset.to(torch.int64)[:, None] if isinstance(offset, Tensor) else offset)


def at_position(positions: Tensor, batch: Tensor, rows: Tensor) -> Tensor:
    """Positions [1 or B, N] of rows."""
    if positions.shape[0] == 1:
        return positions[0, rows]
    return positions[batch, rows]
