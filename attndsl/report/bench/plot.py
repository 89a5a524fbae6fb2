"""A suite as small pictures: speed over length, one for each mask, a line for who computed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10
from pathlib import Path

from attndsl.diagnostics import ArgumentError
from attndsl.report.bench.comparison import Comparison
from attndsl.report.bench.drawing import (
    INK,
    LETTER,
    LINE,
    Colour,
    Drawing,
    Point,
    Polygon,
    Words,
    box,
    png,
    star,
    stroke,
    svg,
)
from attndsl.report.bench.results import PASSES, Entry, unit_of
from attndsl.report.pictures.image import short

WIDE, HIGH = 170, 110  # pixels of a picture's field
LEFT, GAP = 44, 16
FAINT: Colour = (225, 225, 225)
# A colour, and the corners of a mark and how it is turned. The colours differ for every kind of
# colour blindness.
STYLES: dict[str, tuple[Colour, int, float]] = {
    "attndsl": ((0, 90, 181), 16, 0.0),
    "attndsl, PyTorch": ((120, 190, 240), 16, 0.0),
    "attndsl, tuned": ((0, 40, 100), 16, 0.0),
    "attndsl, not deterministic": ((86, 150, 220), 16, 0.0),
    "FlexAttention": ((220, 100, 0), 4, 0.5),
    "FlexAttention, tuned": ((240, 175, 60), 4, 0.5),
    "SDPA, flash": ((0, 140, 100), 3, 0.0),
    "SDPA, cudnn": ((100, 200, 150), 3, 0.5),
    "SDPA, efficient": ((204, 121, 167), 4, 0.0),
    "SDPA, math": ((150, 150, 150), 4, 0.0),
    "PyTorch, dense": ((90, 90, 90), 6, 0.0),
}
OTHER: tuple[Colour, int, float] = ((170, 60, 60), 5, 0.0)


@dataclass(frozen=True)
class Panel:
    """title, and (length, speed) of each implementation"""

    title: str
    lines: dict[str, list[tuple[int, float]]]

    @property
    def lengths(self) -> list[int]:
        return sorted({length for line in self.lines.values() for length, _ in line})

    @property
    def most(self) -> float:
        return max((speed for line in self.lines.values() for _, speed in line), default=0.0)


@dataclass(frozen=True)
class Row:
    """Panels of one pass of equal shapes but for the length, with one axis of speed."""

    title: str
    panels: list[Panel]


def write(path: str, comparisons: Sequence[Comparison]) -> None:
    """Writes .svg or .png; raises ArgumentError for another name, and where no suite has lines."""
    check_name(path)
    found = rows(comparisons)
    if not found:
        raise ArgumentError(
            "plot: nothing was timed that has a length, as in the suites core and cpu"
        )
    drawn = draw(found, ", ".join(comparison.suite for comparison in comparisons))
    if path.endswith(".svg"):
        Path(path).write_text(svg(drawn), encoding="utf-8")
    else:
        Path(path).write_bytes(png(drawn))


def check_name(path: str) -> None:
    """Raises ArgumentError before anything is measured for it."""
    if not path.endswith((".svg", ".png")):
        raise ArgumentError(f"plot: expected a name that ends in .svg or .png, got {path!r}")


# -- what is drawn ---------------------------------------------------------------------------------


def rows(comparisons: Sequence[Comparison]) -> list[Row]:
    """A row for every pass and everything that a case has beside mask and length."""
    found: dict[str, dict[str, Panel]] = {}
    for comparison in comparisons:
        for name in PASSES:
            for entry in comparison.entries:
                speed, unit = speed_of(entry, name)
                if speed is None:
                    continue
                title = f"{comparison.suite}, {name}, {unit}: {group_of(entry)}"
                panels = found.setdefault(title, {})
                mask = entry.case.mask.name
                panel = panels.setdefault(mask, Panel(mask, {}))
                panel.lines.setdefault(entry.name, []).append((entry.case.shape.keys, speed))
    return [Row(title, list(panels.values())) for title, panels in found.items()]


def speed_of(entry: Entry, name: str) -> tuple[float | None, str]:
    """What is drawn of a pass, and its unit."""
    if entry.case.is_read:
        return (entry.gb_per_s if name in entry.passes else None), "GB/s"
    speed = entry.tflops(name)
    factor, unit = unit_of(entry.device)
    return None if speed is None else factor * speed, unit


def group_of(entry: Entry) -> str:
    case, shape = entry.case, entry.case.shape
    threads = "" if case.threads is None else f", threads {case.threads}"
    return (
        f"batch {shape.batch}, heads {shape.heads}:{shape.kv_heads}, D {shape.width}, "
        f"{case.dtype}{threads}"
    )


# -- how -------------------------------------------------------------------------------------------


def draw(found: Sequence[Row], title: str) -> Drawing:
    """Rows below each other, the legend above them."""
    names = dict.fromkeys(n for row in found for panel in row.panels for n in panel.lines)
    across = max(max(len(row.panels) for row in found), 3)
    width = across * (WIDE + LEFT + GAP) + 2 * GAP
    polygons: list[Polygon] = []
    words = [
        Words(GAP, GAP, f"attndsl bench {title}: speed over the number of keys, higher is better")
    ]
    y = GAP + 2 * LINE
    x = GAP
    for name in names:
        if x + (len(name) + 5) * LETTER > width:
            x, y = GAP, y + 2 * LINE
        colour = style_of(name)[0]
        polygons.append(box(x, y + 2, 18, 3, colour))
        polygons.append(mark(name, (x + 9, y + 3.5)))
        words.append(Words(x + 24, y, name))
        x += (len(name) + 7) * LETTER
    y += 3 * LINE
    for row in found:
        words.append(Words(GAP, y, row.title))
        top = y + 2 * LINE
        most, step = axis(max(panel.most for panel in row.panels))
        for number, panel in enumerate(row.panels):
            left = GAP + LEFT + number * (WIDE + LEFT + GAP)
            field = Field(panel, left, top + 2 * LINE, most, step)
            polygons += field.polygons(list(names))
            words += field.words()
        y = top + 2 * LINE + HIGH + 4 * LINE
    return Drawing(width, int(y), tuple(polygons), tuple(words))


def style_of(name: str) -> tuple[Colour, int, float]:
    return STYLES.get(name, OTHER)


def mark(name: str, at: Point) -> Polygon:
    colour, corners, turn = style_of(name)
    return star(at, 4.5, corners, turn, colour)


def axis(most: float) -> tuple[float, float]:
    """The end of an axis from 0, and the step of its marks: 1, 2 or 5 of a power of ten.

    >>> axis(437.0), axis(0.9)
    ((500.0, 100.0), (1.0, 0.2))
    """
    if most <= 0:
        return 1.0, 1.0
    power = 10.0 ** floor(log10(most))
    step = next(part * power for part in (0.2, 0.5, 1.0, 2.0) if most <= 5 * part * power)
    return round(step * ceil(most / step), 12), round(step, 12)


@dataclass(frozen=True)
class Field:
    """A panel at a place, with the axis of its row."""

    panel: Panel
    left: float
    top: float
    most: float
    step: float

    @property
    def is_single(self) -> bool:
        """One length: bars instead of lines."""
        return len(self.panel.lengths) == 1

    def x(self, length: int) -> float:
        """Lengths by their logarithm."""
        lengths = self.panel.lengths
        if self.is_single:
            return self.left + WIDE / 2
        first, last = log2(lengths[0]), log2(lengths[-1])
        return self.left + 8 + (WIDE - 16) * (log2(length) - first) / (last - first)

    def y(self, speed: float) -> float:
        return self.top + HIGH * (1 - speed / self.most)

    @property
    def levels(self) -> list[float]:
        return [self.step * i for i in range(round(self.most / self.step) + 1)]

    def polygons(self, names: Sequence[str]) -> Iterator[Polygon]:
        for level in self.levels:
            yield box(self.left, self.y(level), WIDE, 1, INK if level == 0 else FAINT)
        drawn = [name for name in names if name in self.panel.lines]
        for number, name in reversed(list(enumerate(drawn))):  # ours, which comes first, on top
            points = [(self.x(n), self.y(speed)) for n, speed in sorted(self.panel.lines[name])]
            colour = style_of(name)[0]
            if self.is_single:
                wide = (WIDE - 16) / len(drawn)
                (_, y), x = points[0], self.left + 8 + number * wide
                yield box(x, y, wide - 2, self.top + HIGH - y, colour)
                continue
            width = 3.0 if name == "attndsl" else 1.5
            for first, last in zip(points, points[1:], strict=False):
                yield stroke(first, last, width, colour)
            for point in points:
                yield mark(name, point)

    def words(self) -> Iterator[Words]:
        yield Words(self.left, self.top - 2 * LINE, self.panel.title)
        for level in self.levels:
            yield Words(self.left - 6, self.y(level) - LINE / 2, f"{level:g}", "end")
        end = -1e9
        for length in self.panel.lengths:
            text = short(length) if length % 1024 else f"{length // 1024}k"
            x = self.x(length)
            if x - len(text) * LETTER / 2 > end:
                yield Words(x, self.top + HIGH + 6, text, "middle")
                end = x + (len(text) / 2 + 1) * LETTER
