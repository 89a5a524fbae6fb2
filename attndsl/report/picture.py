"""Draws a mask and its tiles in the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attndsl.report.arguments import Parameter, Sizes
from attndsl.report.table import share

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

EMPTY, PARTIAL, FULL = 0, 1, 2
BLOCKS = ("··", "▒▒", "██")
ASCII = (" .", " +", " #")
MOST_ROWS = 48
MOST_PICTURES = 4


def show(
    attention: Attention,
    sizes: Sizes,
    parameters: Mapping[str, Parameter],
    *,
    block: int | None = None,
    plain: bool = False,
) -> str:
    """The mask as a picture: queries downwards, keys to the right, a cell for each tile.

    A tile is as small as the terminal allows, or `block` x `block`; where even those are too many,
    a cell stands for several. Heads and batches get a picture each where they differ.
    """
    width = max(8, (shutil.get_terminal_size().columns - 12) // 2)
    cell = max(-(-sizes.nq // MOST_ROWS), -(-sizes.nk // width), 1)
    size = block or cell
    given: dict[str, Any] = {**sizes.keywords, **parameters}
    tiles = attention.tiles(block=(size, size), **given)
    shown = merge(tiles, max(1, -(-cell // size)))
    symbols = ASCII if plain else BLOCKS
    parts = [
        f"{attention.program.name}: {sizes.nq} queries (down) by {sizes.nk} keys (right), "
        f"a cell is {describe_cell(tiles, shown, size)}"
    ]
    pictures = [
        (b, h, draw(shown[b, h], symbols))
        for b in range(shown.shape[0])
        for h in range(shown.shape[1])
    ]
    for b, h, picture in pictures[:MOST_PICTURES]:
        titles = [f"batch {b}"] * (shown.shape[0] > 1) + [f"head {h}"] * (shown.shape[1] > 1)
        parts += ["", *([", ".join(titles)] if titles else []), picture]
    if len(pictures) > MOST_PICTURES:
        parts += ["", f"and {len(pictures) - MOST_PICTURES} more"]
    return "\n".join([*parts, "", legend(tiles, size, symbols)])


def describe_cell(tiles: Tensor, shown: Tensor, size: int) -> str:
    if size == 1 and shown.shape == tiles.shape:
        return "a pair"
    if shown.shape == tiles.shape:
        return f"a tile of {size} x {size}"
    factor = -(-tiles.shape[2] // max(shown.shape[2], 1))
    return f"{factor} x {factor} tiles of {size} x {size}"


def merge(tiles: Tensor, factor: int) -> Tensor:
    """Squares of factor x factor tiles as one: empty or full where all are, else partial."""
    if factor == 1:
        return tiles
    batch, heads, rows, columns = tiles.shape
    high, wide = -(-rows // factor), -(-columns // factor)

    def pooled(value: Tensor, fill: int) -> Tensor:
        padded = value.new_full((batch, heads, high * factor, wide * factor), fill)
        padded[:, :, :rows, :columns] = value
        return padded.view(batch, heads, high, factor, wide, factor).amax((3, 5))

    highest = pooled(tiles.to(torch.int8), EMPTY)
    lowest = -pooled(-tiles.to(torch.int8), -FULL)
    return torch.where(highest == lowest, highest, PARTIAL)


def draw(tiles: Tensor, symbols: tuple[str, str, str]) -> str:
    """One picture from tiles [rows, columns]."""
    return "\n".join("  " + "".join(symbols[cell] for cell in row) for row in tiles.tolist())


def legend(tiles: Tensor, size: int, symbols: tuple[str, str, str]) -> str:
    empty, partial, full = (int((tiles == kind).sum()) for kind in (EMPTY, PARTIAL, FULL))
    names = ("masked", "", "kept") if size == 1 else ("empty", "partial", "full")
    counts = zip(symbols, names, (empty, partial, full), strict=True)
    words = [
        f"{symbol.strip()} {name} {count:,} ({share(count, tiles.numel())})"
        for symbol, name, count in counts
        if name
    ]
    return "   ".join(words)
