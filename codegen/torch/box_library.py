"""Functions that a generated PyTorch module carries along where its tiles are boxes of a grid.

The same rules hold as for codegen/library.py: their source is copied verbatim. Besides its number
(`attndsl/plan/boxes.py`) a box has a *place*: the bits of its indices along the axes, one axis
behind the other. Boxes that share the higher bits of their places make up a box, too, so that wide
ones can be looked at first (`attn_refine`). Places beyond the last index of an axis are empty.
"""

from __future__ import annotations

import math

import torch

from attndsl.plan.boxes import attn_counts, attn_positions

from .span_library import attn_runs


def attn_boxed(
    grid: tuple[int, ...], box: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, list[int]]:
    """The order of the boxes: the position of every place in it, int64 [positions], and where each
    box begins, with the end of the last."""
    found = attn_positions(grid, box, device)
    there = found >= 0
    return found[there], [0, *there.sum(1).cumsum(0).tolist()]


def attn_reordered(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """x [n, positions in the order of the boxes, ..] in the user's order."""
    return torch.empty_like(x).index_copy_(1, order, x)


def attn_box_bits(grid: tuple[int, ...], box: tuple[int, ...]) -> tuple[int, ...]:
    """The bits of a place along each axis. The last place is always empty, so that what one row
    reaches on a line never touches what the next one does."""
    outermost, *inner = attn_counts(grid, box)
    return (outermost.bit_length(), *((count - 1).bit_length() for count in inner))


def attn_box_places(
    grid: tuple[int, ...], box: tuple[int, ...], bits: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of every box; and the box of every place, of an empty one the nearest."""
    counts = attn_counts(grid, box)
    places = torch.arange(1 << sum(bits), device=device).view([1 << width for width in bits])
    boxes = torch.arange(math.prod(counts), device=device).view(counts)
    for axis, (count, width) in enumerate(zip(counts, bits, strict=True)):
        places = places.narrow(axis, 0, count)
        nearest = torch.arange(1 << width, device=device).clamp(max=count - 1)
        boxes = boxes.index_select(axis, nearest)
    return places.reshape(-1), boxes.reshape(-1)


def attn_box_ends(
    first: torch.Tensor,
    last: torch.Tensor,
    grid: tuple[int, ...],
    box: tuple[int, ...],
    bits: tuple[int, ...],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The least and the greatest coordinate along each axis of what the boxes at places first to
    last cover together, where those differ in lower bits only. An empty one has least > greatest
    along some axis."""
    lows, highs = [], []
    for extent, size, width in reversed(list(zip(grid, box, bits, strict=True))):
        within = (1 << width) - 1
        lows.append((first & within) * size)
        highs.append(((last & within) * size + (size - 1)).clamp(max=extent - 1))
        first, last = first >> width, last >> width
    return lows[::-1], highs[::-1]


def attn_box_position(coordinates: list[torch.Tensor], grid: tuple[int, ...]) -> torch.Tensor:
    """The positions at these coordinates."""
    found = coordinates[0]
    for along, extent in zip(coordinates[1:], grid[1:], strict=True):
        found = found * extent + along
    return found


def attn_box_begins(
    grid: tuple[int, ...], box: tuple[int, ...], bits: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """How many positions, in the order of the boxes, come before each place, and in all."""
    places = torch.arange(1 << sum(bits), device=device)
    sizes = torch.ones_like(places)
    for low, high in zip(*attn_box_ends(places, places, grid, box, bits), strict=True):
        sizes = sizes * (high - low + 1).clamp(min=0)
    return torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))


def attn_box_runs(
    runs: tuple[torch.Tensor, torch.Tensor], begins: torch.Tensor, depth: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of places, 2**depth a row, as runs of columns in the order of the boxes: on a line with
    one more than there are columns a row."""
    first, end = runs
    row = first >> depth
    columns = begins[first - (row << depth)], begins[end - (row << depth)]
    line = row * (begins[-1] + 1)
    return attn_runs(columns[0] + line, columns[1] + line)


def attn_box_refine_start(
    rows: int, places: torch.Tensor, depth: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What `attn_refine` begins with where nothing is known: from the first to the last place of
    every row, and no full ones."""
    line = torch.arange(rows, device=places.device) << depth
    return (line, line + (places[-1] + 1)), (line[:0], line[:0])
