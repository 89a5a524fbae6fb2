"""Draws a mask and its tiles in the terminal, or as an image."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import find
from attndsl.ir.program import Program
from attndsl.report.arguments import Number, Parameter, Sizes
from attndsl.report.pictures.cells import (
    MOST_TILES,
    Cells,
    Inputs,
    Wish,
    call_of,
    cells_of,
    chosen_head,
    fitting,
    how_many,
    parameters_of,
    tiles_of,
)
from attndsl.report.pictures.image import Labels, png, sheet_of, svg
from attndsl.report.table import share
from attndsl.runtime.views import EMPTY, FULL, PARTIAL
from attndsl.transform.route import used_selects

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

BLOCKS = ("··", "▒▒", "██")
ASCII = (" .", " +", " #")
MOST_ROWS = 48
MOST_PICTURES = 4


def show(
    attention: Attention,
    sizes: Sizes,
    given: Mapping[str, Number],
    wish: Wish,
    *,
    seed: int = 0,
    inputs: Inputs | None = None,
) -> str:
    """The mask as a picture for a terminal: queries downwards, keys to the right, a cell for each
    tile. What selects choose is drawn for the query and key given, else for random ones.

    A tile is as small as the terminal allows, or as large as wished for; where even those are too
    many, a cell stands for several. Heads and batches get a picture each where they differ. What
    the mask reads and is not `given` has its default, or is random.
    """
    width = max(8, (shutil.get_terminal_size().columns - 12) // 2)
    cell = max(-(-sizes.nq // MOST_ROWS), -(-sizes.nk // width), 1)
    size = wish.block or cell
    if -(-sizes.nq // size) * -(-sizes.nk // size) > MOST_TILES:
        size = fitting(cell, size)
    parameters = parameters_of(attention, sizes, given, seed)
    program, seen = call_of(attention.program, sizes, parameters, inputs, seed)
    tiles = chosen_head(tiles_of(program, seen, (size, size)), sizes, wish)
    shown = merge(tiles, max(1, -(-cell // size)))
    symbols = ASCII if wish.plain else BLOCKS
    parts = [
        f"{attention.program.name}: queries down, keys to the right, {sizes.nq} x {sizes.nk}; "
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
    note = chosen_by(attention.program, inputs, seed)
    return "\n".join([*parts, "", *([note] if note else []), legend(tiles, size, symbols)])


def chosen_by(program: Program, inputs: Inputs | None, seed: int) -> str:
    """What decided what selects choose; nothing where there are none."""
    used = used_selects(program)
    names = ", ".join(f"`{select.name}`" for select in used)
    if not names or inputs is not None:
        return f"{names}: chosen by the query and key given" if names else ""
    ranks = [select.rank for select in used if select.rank is not None]
    compares = any(find(rank, "pooled") for rank in ranks)
    return f"{names}: chosen by random {'queries and keys' if compares else 'tensors'}, seed {seed}"


def draw_file(
    path: str,
    attention: Attention,
    sizes: Sizes,
    given: Mapping[str, Number],
    wish: Wish,
    *,
    seed: int = 0,
    inputs: Inputs | None = None,
) -> None:
    """Writes the mask and its tiles as an image: a pixel or more for each pair where the mask is
    small, else for a cell of many, which is drawn from what is known of it as a tile.

    path  ends in .png or .svg; ArgumentError where it does not
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ArgumentError(f"{path}: an image ends in .png or .svg")
    pixels = extent_of(sizes, how_many(attention, sizes, wish))
    parameters = parameters_of(attention, sizes, given, seed)
    cells = cells_of(attention, sizes, parameters, wish, pixels, inputs, seed)
    labels = labels_of(attention, sizes, parameters, cells)
    note = chosen_by(attention.program, inputs, seed).replace("`", "")
    if note:
        labels = replace(labels, title=f"{labels.title}, {note}")
    sheet = sheet_of(cells, labels, pixels)
    data = png(sheet) if suffix == ".png" else svg(sheet).encode()
    Path(path).write_bytes(data)


def extent_of(sizes: Sizes, panels: int) -> tuple[int, int]:
    """How high and wide a panel is, in pixels; a short side keeps an eighth of the long one."""
    side = 768 if panels == 1 else 512 if panels <= 4 else 320
    longest = max(sizes.nq, sizes.nk, 1)
    high, wide = (max(side // 8, side * n // longest) for n in (sizes.nq, sizes.nk))
    return high, wide


def labels_of(
    attention: Attention, sizes: Sizes, parameters: Mapping[str, Parameter], cells: Cells
) -> Labels:
    scalars = [f"{n} = {v}" for n, v in parameters.items() if not isinstance(v, Tensor)]
    read = {node.name for node in find(attention.program.mask, "scalar")}
    scalars = [word for word in scalars if word.split(" ", 1)[0] in read]
    tile, dot = (f"{high} x {wide}" for high, wide in (cells.block, cells.cell))
    what = f"{sizes.nq} queries, {sizes.nk} keys, "
    if cells.block == cells.cell:
        what += f"a dot is a tile of {tile}"
    else:
        what += f"tiles of {tile}, " + ("a dot is a pair" if dot == "1 x 1" else f"dots of {dot}")
    return Labels(
        ", ".join([attention.program.name, *scalars]),
        what,
        (sizes.nq, sizes.nk),
        (sizes.q_offset, sizes.k_offset),
    )


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
