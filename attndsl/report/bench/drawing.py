"""Polygons and words on a sheet, written as SVG or PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from xml.sax.saxutils import escape

import torch

from attndsl.report.pictures.glyphs import ADVANCE, HEIGHT, dots
from attndsl.report.pictures.image import chunk

Colour = tuple[int, int, int]
Point = tuple[float, float]
PAPER: Colour = (255, 255, 255)
INK: Colour = (34, 34, 34)
LETTER, LINE = ADVANCE, HEIGHT  # pixels of a letter
ZOOM = 2  # pixels of a PNG for one of the sheet


@dataclass(frozen=True)
class Polygon:
    """A convex one, its corners in order around it."""

    corners: tuple[Point, ...]
    colour: Colour


@dataclass(frozen=True)
class Words:
    """A line of text. x, y: where it begins, is in the middle of, or ends, and its top."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # or "middle", "end"

    @property
    def left(self) -> float:
        part = {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]
        return self.x - part * LETTER * len(self.text)


@dataclass(frozen=True)
class Drawing:
    """In pixels; what comes later lies on top, words above all."""

    width: int
    height: int
    polygons: tuple[Polygon, ...]
    words: tuple[Words, ...]


def box(x: float, y: float, width: float, height: float, colour: Colour) -> Polygon:
    right, bottom = x + width, y + height
    return Polygon(((x, y), (right, y), (right, bottom), (x, bottom)), colour)


def stroke(first: Point, last: Point, width: float, colour: Colour) -> Polygon:
    """A line of a width."""
    dx, dy = last[0] - first[0], last[1] - first[1]
    length = hypot(dx, dy) or 1.0
    nx, ny = -dy / length * width / 2, dx / length * width / 2
    corners = tuple(
        (point[0] + sign * nx, point[1] + sign * ny)
        for point, sign in ((first, 1), (last, 1), (last, -1), (first, -1))
    )
    return Polygon(corners, colour)


def star(at: Point, radius: float, corners: int, turn: float, colour: Colour) -> Polygon:
    """A regular polygon; a turn of 0 has a corner above."""
    angles = [2 * pi * (number + turn) / corners for number in range(corners)]
    return Polygon(
        tuple((at[0] + radius * sin(a), at[1] - radius * cos(a)) for a in angles), colour
    )


# -- writing ---------------------------------------------------------------------------------------


def svg(drawing: Drawing) -> str:
    """The text of an SVG file."""
    size = f'width="{drawing.width}" height="{drawing.height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'viewBox="0 0 {drawing.width} {drawing.height}">',
        f'<rect {size} fill="{hexadecimal(PAPER)}"/>',
    ]
    for polygon in drawing.polygons:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in polygon.corners)
        parts.append(f'<polygon fill="{hexadecimal(polygon.colour)}" points="{points}"/>')
    # Letters of 0.6 of their size, as nearly all fonts of equal width have them.
    parts.append(
        f'<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{LETTER / 0.6:g}" '
        f'fill="{hexadecimal(INK)}">'
    )
    for words in drawing.words:
        place = f'x="{words.x:.1f}" y="{words.y + 7:.1f}" text-anchor="{words.anchor}"'
        parts.append(f"<text {place}>{escape(words.text)}</text>")
    return "\n".join([*parts, "</g>", "</svg>", ""])


def hexadecimal(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def png(drawing: Drawing) -> bytes:
    """The bytes of a PNG file with a palette."""
    colours = list(dict.fromkeys((PAPER, INK, *(p.colour for p in drawing.polygons))))
    numbers = {colour: number for number, colour in enumerate(colours)}
    size = (drawing.height * ZOOM, drawing.width * ZOOM)
    canvas = torch.zeros(size, dtype=torch.uint8)
    for polygon in drawing.polygons:
        fill(canvas, polygon.corners, numbers[polygon.colour])
    for words in drawing.words:
        letters = dots(words.text, ZOOM)
        x, y = max(0, round(words.left * ZOOM)), max(0, round(words.y * ZOOM))
        part = canvas[y : y + letters.shape[0], x : x + letters.shape[1]]
        part[letters[: part.shape[0], : part.shape[1]]] = numbers[INK]
    # Each row of a PNG begins with the number of its filter: 0, none.
    rows = torch.cat((torch.zeros((size[0], 1), dtype=torch.uint8), canvas), 1)
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 3, 0, 0, 0)
    palette = bytes(part for colour in colours for part in colour)
    data = zlib.compress(rows.numpy().tobytes(), 9)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def fill(canvas: torch.Tensor, corners: Sequence[Point], colour: int) -> None:
    """Sets the pixels whose middle lies within all edges; at least one, so that a thin line is not
    lost between two rows."""
    xs, ys = ([point[axis] * ZOOM for point in corners] for axis in (0, 1))
    left, top = max(0, int(min(xs)) - 1), max(0, int(min(ys)) - 1)
    part = canvas[top : int(max(ys)) + 2, left : int(max(xs)) + 2]
    y = torch.arange(part.shape[0])[:, None] + top + 0.5
    x = torch.arange(part.shape[1]) + left + 0.5
    inside = torch.ones(part.shape, dtype=torch.bool)
    area = sum(
        xs[i] * ys[(i + 1) % len(xs)] - xs[(i + 1) % len(xs)] * ys[i] for i in range(len(xs))
    )
    for i in range(len(xs)):
        j = (i + 1) % len(xs)
        side = (xs[j] - xs[i]) * (y - ys[i]) - (ys[j] - ys[i]) * (x - xs[i])
        inside &= side >= 0 if area > 0 else side <= 0
    part[inside] = colour
