"""Boxes of a grid: their extents, their numbers, and where each position lies.

A box has extents that are powers of two. Boxes are numbered row-major, and so are the rows of a
box. Of grid extents E and box extents e, last axis fastest:

    counts[j] = ceil(E[j] / e[j])           boxes along an axis
    corner[j] = number // counts[j + 1:].product() % counts[j] * e[j]
    offset[j] = row // e[j + 1:].product() % e[j]
    position  = sum over j of (corner[j] + offset[j]) * E[j + 1:].product()
    is there  = all of corner[j] + offset[j] < E[j]

Generated host code carries these functions along as they stand here: they use nothing but torch,
math and each other.
"""

from __future__ import annotations

import math

import torch


def attn_box(positions: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Extents of the boxes of so many positions (a power of two): powers of two, as even as they
    can be, later axes longer; no longer than the grid needs; or, where that leaves clearly fewer
    boxes, with one axis half and another twice as long.

    >>> attn_box(128, (56, 56)), attn_box(64, (16, 48, 80)), attn_box(128, (30, 48, 80))
    ((8, 16), (4, 4, 4), (2, 8, 8))
    """
    box = [1] * len(grid)
    while math.prod(box) < positions:
        short = [j for j, extent in enumerate(grid) if box[j] < extent] or [len(grid) - 1]
        box[min(reversed(short), key=lambda j: box[j])] *= 2
    even = tuple(box)
    others = []
    for i, size in enumerate(even):
        for j in range(len(even)):
            if size > 1 and i != j:
                factors = [0.5 if axis == i else 2 if axis == j else 1 for axis in range(len(even))]
                others.append(tuple(int(e * f) for e, f in zip(even, factors, strict=True)))
    needed = {box: math.prod(attn_counts(grid, box)) for box in (even, *others)}
    best = min(others, key=lambda e: (needed[e], max(e) / min(e), e), default=even)
    return best if needed[best] < 0.95 * needed[even] else even


def attn_counts(grid: tuple[int, ...], box: tuple[int, ...]) -> tuple[int, ...]:
    """Boxes along each axis."""
    return tuple(-(-extent // size) for extent, size in zip(grid, box, strict=True))


def attn_positions(
    grid: tuple[int, ...], box: tuple[int, ...], device: torch.device | None = None
) -> torch.Tensor:
    """Positions of every box: int64 [boxes, rows of a box], -1 beyond the grid."""
    found = torch.zeros((1, 1), dtype=torch.int64, device=device)
    there = torch.ones((1, 1), dtype=torch.bool, device=device)
    for extent, size in zip(grid, box, strict=True):
        along = torch.arange(-(-extent // size) * size, device=device).view(1, -1, 1, size)
        boxes, rows = found.shape
        found = found.view(boxes, 1, rows, 1) * extent + along
        there = there.view(boxes, 1, rows, 1) & (along < extent)
        found, there = (x.reshape(boxes * along.shape[1], rows * size) for x in (found, there))
    return torch.where(there, found, -1)


def attn_order(
    grid: tuple[int, ...], box: tuple[int, ...], device: torch.device | None = None
) -> torch.Tensor:
    """The positions of all boxes, one box after the other: int64 [boxes * rows of a box]. What is
    beyond the grid has the position of its box's corner, so extremes of a box are as without it."""
    found = attn_positions(grid, box, device)
    return torch.where(found < 0, found[:, :1], found).view(-1)
