"""Signatures: 64 bits for the values of a block; blocks with no bit in common share no value.

Generated host code carries these functions along as they stand here; they use nothing but torch.
"""

from __future__ import annotations

import torch


def attn_bit(x: torch.Tensor) -> torch.Tensor:
    """One of 64 bits for each int64: the one that its digits of six bits name, xor-ed.

    64 values in a row, from a multiple of 64 on, have a bit each.
    """
    for shift in (6, 12, 24, 48):
        x = x ^ (x >> shift)
    return 1 << (x & 63)


def attn_bits(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The bits that are set anywhere along a dimension, by halves (which share the middle of an odd
    number)."""
    while (extent := x.shape[dim]) > 1:
        half = (extent + 1) // 2
        x = x.narrow(dim, 0, half) | x.narrow(dim, extent - half, half)
    return x.select(dim, 0)
