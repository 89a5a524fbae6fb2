"""Lays a mask's pictures out on a sheet with axes and legend, and writes it as PNG or SVG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from attndsl.report.pictures.cells import ALL, KEPT, MASKED, MIXED, NOTHING, Cells
from attndsl.report.pictures.glyphs import ADVANCE, HEIGHT, dots
from attndsl.report.table import share

SCALE = 2  # pixels of a letter's dot
LETTER, LINE = ADVANCE * SCALE, HEIGHT * SCALE  # pixels
GAP = 16
# Colours by number. Blue and orange differ for every kind of colour blindness, and in lightness.
PALETTE = {
    NOTHING: (232, 232, 232),
    MASKED: (253, 231, 196),
    MIXED: (240, 178, 92),
    KEPT: (214, 116, 0),
    ALL: (20, 88, 158),
}
PAPER, INK, FAINT = 5, 6, 7
PALETTE |= {PAPER: (255, 255, 255), INK: (34, 34, 34), FAINT: (255, 255, 255)}
NAMES = {
    NOTHING: "empty tile",
    MASKED: "partial: masked",
    MIXED: "partial: mixed",
    KEPT: "partial: kept",
    ALL: "full tile",
}
SMALLEST_TILE = 12  # pixels of a tile between which lines are drawn


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int
    colour: int


@dataclass(frozen=True)
class Text:
    """A line of text; x is its left end, y its top."""

    x: int
    y: int
    text: str


@dataclass(frozen=True)
class Sheet:
    """What is drawn, in pixels: first the boxes, then the texts."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    texts: tuple[Text, ...]


@dataclass(frozen=True)
class Labels:
    """Words around the pictures: the title, what stands below it, lengths and first positions."""

    title: str
    subtitle: str
    lengths: tuple[int, int]
    offsets: tuple[int, int]


def sheet_of(cells: Cells, labels: Labels, pixels: tuple[int, int]) -> Sheet:
    """The panels side by side in rows, with axes, a title above and a legend below.

    pixels  how high and wide a panel may be
    """
    rows, columns = cells.panels[0].shades.shape
    scale = scales((rows, columns), pixels, cells.cell[0] == cells.cell[1])
    size = (rows * scale[0], columns * scale[1])
    left = LETTER * max(8, len(short(labels.lengths[0] + labels.offsets[0])) + 1)
    across = min(len(cells.panels), 4)
    above = (2 if cells.panels[0].title else 1) * (LINE + GAP // 2) + LINE
    step = (above + size[0] + 2 * LINE, left + max(size[1], 12 * LETTER) + 4 * LETTER)
    top = 2 * LINE + 3 * GAP
    boxes: list[Box] = []
    texts = [Text(GAP, GAP, labels.title), Text(GAP, GAP + LINE + GAP // 2, labels.subtitle)]
    for at, panel in enumerate(cells.panels):
        x, y = GAP + at % across * step[1] + left, top + at // across * step[0] + above
        boxes += fields(panel.shades, x, y, scale)
        boxes += grid_lines(cells, size, x, y, scale)
        texts += axis_texts(labels, cells.cell, scale, x, y)
        boxes += ticks(labels, cells.cell, scale, x, y)
        if panel.title:
            texts.append(Text(x, y - above, panel.title))
    bottom = top + -(-len(cells.panels) // across) * step[0]
    if cells.hidden:
        texts.append(Text(GAP, bottom, f"and {cells.hidden} more"))
        bottom += LINE + GAP
    legend_boxes, legend_texts, height = legend(cells, bottom)
    right = max(text.x + len(text.text) * LETTER for text in (*texts, *legend_texts))
    width = max(right + GAP, across * step[1])
    return Sheet(width, height, (*boxes, *legend_boxes), (*texts, *legend_texts))


def scales(shape: tuple[int, int], pixels: tuple[int, int], are_square: bool) -> tuple[int, int]:
    """Pixels of a cell: as many as about fit; squares where a cell has as many queries as keys."""
    fits = [max(1, most * 5 // 4 // max(n, 1)) for n, most in zip(shape, pixels, strict=True)]
    if are_square and max(shape) <= 8 * max(min(shape), 1):
        fits = [min(fits)] * 2
    return fits[0], fits[1]


def fields(shades: Tensor, x: int, y: int, scale: tuple[int, int]) -> Iterator[Box]:
    """Boxes of one colour, as large as runs of cells along a row and equal rows make them."""
    rows, columns = shades.shape
    lines = shades.tolist()
    start = 0
    for row in range(1, rows + 1):
        if row < rows and lines[row] == lines[start]:
            continue
        height = (row - start) * scale[0]
        line, first = lines[start], 0
        for column in range(1, columns + 1):
            if column == columns or line[column] != line[first]:
                width = (column - first) * scale[1]
                yield Box(x + first * scale[1], y + start * scale[0], width, height, line[first])
                first = column
        start = row


def grid_lines(
    cells: Cells, size: tuple[int, int], x: int, y: int, scale: tuple[int, int]
) -> Iterator[Box]:
    """Lines between tiles, where these are large enough."""
    high, wide = size
    steps = [s * (t // c) for s, t, c in zip(scale, cells.block, cells.cell, strict=True)]
    if min(steps) < SMALLEST_TILE:
        return
    for place in range(steps[0], high, steps[0]):
        yield Box(x, y + place, wide, 1, FAINT)
    for place in range(steps[1], wide, steps[1]):
        yield Box(x + place, y, 1, high, FAINT)


# -- axes and legend ------------------------------------------------------------------------


def marks(length: int) -> list[int]:
    """Where an axis is labelled: four equal parts where they are whole, else round numbers."""
    if length % 4 == 0 and length:
        return [length // 4 * part for part in range(5)]
    step = 1
    while length > 5 * step:
        step *= 5 if str(step)[0] == "1" else 2
    return list(range(0, length + 1, step))


def short(number: int) -> str:
    """A position in few letters.

    >>> short(768), short(65536), short(1 << 20), short(10_000_000)
    ('768', '64k', '1M', '10000000')
    """
    if number >= 1 << 20 and number % (1 << 18) == 0:
        return f"{number / (1 << 20):g}M"
    return f"{number >> 10}k" if number >= 8192 and number % 1024 == 0 else str(number)


def axis_texts(
    labels: Labels, cell: tuple[int, int], scale: tuple[int, int], x: int, y: int
) -> Iterator[Text]:
    """Positions along both axes: of keys above, of queries to the left."""
    yield Text(x, y - 2 * LINE - GAP // 2, "keys")
    yield Text(x - 8 * LETTER, y - 2 * LINE - GAP // 2, "queries")
    end = -1
    for mark in marks(labels.lengths[1]):
        word = short(mark + labels.offsets[1])
        place = x + mark * scale[1] // cell[1] - len(word) * LETTER // 2
        if place > end:
            yield Text(place, y - LINE - GAP // 2, word)
            end = place + (len(word) + 1) * LETTER
    end = -1
    for mark in marks(labels.lengths[0]):
        word = short(mark + labels.offsets[0])
        place = y + mark * scale[0] // cell[0] - LINE // 2
        if place > end:
            yield Text(x - GAP // 2 - len(word) * LETTER, place, word)
            end = place + LINE


def ticks(
    labels: Labels, cell: tuple[int, int], scale: tuple[int, int], x: int, y: int
) -> Iterator[Box]:
    for mark in marks(labels.lengths[1]):
        yield Box(x + mark * scale[1] // cell[1], y - 6, 1, 6, INK)
    for mark in marks(labels.lengths[0]):
        yield Box(x - 6, y + mark * scale[0] // cell[0], 6, 1, INK)


def legend(cells: Cells, top: int) -> tuple[list[Box], list[Text], int]:
    """Colours and what they stand for, with the number of tiles; and where it ends."""
    whole = sum(cells.tiles)
    counts = dict(zip((NOTHING, MIXED, ALL), cells.tiles, strict=True))
    shown = {shade for shade in PALETTE for panel in cells.panels if (panel.shades == shade).any()}
    are_split = bool(shown & {MASKED, KEPT})
    boxes, texts, y = [], [], top
    for shade in (ALL, KEPT, MIXED, MASKED, NOTHING):
        if shade not in shown and shade not in (ALL, NOTHING, *(() if are_split else (MIXED,))):
            continue
        name = NAMES[shade] if are_split or shade != MIXED else "partial tile"
        if shade in counts and (shade != MIXED or not are_split):
            name += f": {counts[shade]:,} ({share(counts[shade], whole)})"
        boxes.append(Box(GAP, y, LINE, LINE, shade))
        texts.append(Text(GAP + LINE + GAP // 2, y, name))
        y += LINE + GAP // 2
    if are_split:
        text = f"partial tiles: {counts[MIXED]:,} ({share(counts[MIXED], whole)})"
        texts.append(Text(GAP, y, text))
        y += LINE + GAP // 2
    return boxes, texts, y + GAP


# -- writing --------------------------------------------------------------------------------


def svg(sheet: Sheet) -> str:
    """The sheet as the text of an SVG file."""

    def colour(number: int) -> str:
        return "#" + "".join(f"{part:02x}" for part in PALETTE[number])

    size = f'width="{sheet.width}" height="{sheet.height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'viewBox="0 0 {sheet.width} {sheet.height}" shape-rendering="crispEdges">',
        f'<rect {size} fill="{colour(PAPER)}"/>',
    ]
    by_colour: dict[int, list[str]] = {}
    for box in sheet.boxes:
        path = f"M{box.x} {box.y}h{box.width}v{box.height}h-{box.width}z"
        by_colour.setdefault(box.colour, []).append(path)
    for number in sorted(by_colour):
        parts.append(f'<path fill="{colour(number)}" d="{"".join(by_colour[number])}"/>')
    # Letters of 0.6 of their size, as nearly all fonts of equal width have them.
    parts.append(
        f'<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{LETTER / 0.6:g}" '
        f'fill="{colour(INK)}">'
    )
    for text in sheet.texts:
        parts.append(f'<text x="{text.x}" y="{text.y + 7 * SCALE}">{escape(text.text)}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def png(sheet: Sheet) -> bytes:
    """The sheet as the bytes of a PNG file with a palette."""
    canvas = torch.full((sheet.height, sheet.width), PAPER, dtype=torch.uint8)
    for box in sheet.boxes:
        canvas[box.y : box.y + box.height, box.x : box.x + box.width] = box.colour
    for text in sheet.texts:
        letters = dots(text.text, SCALE)[:, : max(0, sheet.width - text.x)]
        high, wide = letters.shape
        part = canvas[text.y : text.y + high, max(text.x, 0) : max(text.x, 0) + wide]
        part[letters[: part.shape[0], : part.shape[1]]] = INK
    # Each row of a PNG begins with the number of its filter: 0, none.
    rows = torch.cat((torch.zeros((sheet.height, 1), dtype=torch.uint8), canvas), 1)
    data = zlib.compress(rows.numpy().tobytes(), 9)
    header = struct.pack(">IIBBBBB", sheet.width, sheet.height, 8, 3, 0, 0, 0)
    palette = bytes(part for number in sorted(PALETTE) for part in PALETTE[number])
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
