"""Pictures of speed over length."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import pytest
import torch

from attndsl.diagnostics import ArgumentError
from attndsl.report.bench.cases import Case
from attndsl.report.bench.comparison import Comparison
from attndsl.report.bench.drawing import INK, Drawing, Polygon, Words, box, fill, png, stroke
from attndsl.report.bench.masks import CAUSAL, DECODE, PACKED
from attndsl.report.bench.plot import Field, Panel, axis, draw, rows, write
from attndsl.report.bench.results import Entry, Figure
from attndsl.report.bench.shapes import Shape


def entry(name: str, length: int, ms: float, mask=CAUSAL, **more) -> Entry:  # type: ignore[no-untyped-def]
    case = Case(mask, Shape(1, 4, 2, length, length, 64), "bfloat16", **more)
    passes = {"forward": Figure(ms, 0.1, 0.1), "backward": Figure(3 * ms, 0.1, 0.1)}
    return Entry(case, name, "cuda", 4 * length * length // 2, 1.0, 0.0, passes=passes)


def found() -> Comparison:
    entries = [
        entry(name, length, factor * length**2 / 1e6, mask)
        for mask in (CAUSAL, PACKED)
        for length in (1024, 4096, 16_384)
        for name, factor in (("attndsl", 1.0), ("FlexAttention", 1.5))
    ]
    return Comparison("core", "about", tuple(entries))


def test_rows_panels_and_lines() -> None:
    forward, backward = rows([found()])
    assert forward.title == "core, forward, TFLOP/s: batch 1, heads 4:2, D 64, bfloat16"
    assert "backward" in backward.title
    assert [panel.title for panel in forward.panels] == ["causal", "documents"]
    lines = forward.panels[0].lines
    assert list(lines) == ["attndsl", "FlexAttention"]
    assert [length for length, _ in lines["attndsl"]] == [1024, 4096, 16_384]
    assert lines["attndsl"][0][1] == pytest.approx(4 * 2 * 1024**2 * 64 / (1024**2 / 1e6) / 1e9)
    ratio = lines["attndsl"][1][1] / lines["FlexAttention"][1][1]
    assert ratio == pytest.approx(1.5)


def test_reading_is_drawn_in_bytes() -> None:
    case = Case(DECODE, Shape(2, 8, 2, 1, 1000, 64), "bfloat16", backward=False, is_read=True)
    one = Entry(case, "attndsl", "cuda", 2 * 8 * 1000, 1.0, 0.0, passes={})
    one.passes["forward"] = Figure(0.5, 0.1, 0.1)
    # keys and values of two heads, and query and result of eight, of two sequences; two bytes each
    size = 2 * 2 * (2 * 1000 + 8) * 64 * 2
    assert one.gb_per_s == pytest.approx(size / 0.5e-3 / 1e9)
    (row,) = rows([Comparison("decode", "about", (one,))])
    assert "GB/s" in row.title


def test_points_rise_with_speed_and_stay_in_their_field() -> None:
    panel = rows([found()])[0].panels[0]
    field = Field(panel, 50, 100, *axis(panel.most))
    xs = [field.x(length) for length in panel.lengths]
    assert xs == sorted(xs) and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])  # equal factors
    ys = [field.y(speed) for _, speed in (panel.lines["FlexAttention"][0], (0, panel.most))]
    assert 100 <= ys[1] < ys[0] <= 210
    corners = [c for polygon in field.polygons(list(panel.lines)) for c in polygon.corners]
    assert all(45 <= x <= 225 and 95 <= y <= 215 for x, y in corners)


def test_one_length_is_drawn_as_bars() -> None:
    panel = Panel("causal", {"attndsl": [(64, 2.0)], "other": [(64, 1.0)]})
    field = Field(panel, 0, 0, 2.0, 0.5)
    bars = [p for p in field.polygons(list(panel.lines)) if p.colour != INK][-2:]
    heights = {max(y for _, y in bar.corners) - min(y for _, y in bar.corners) for bar in bars}
    assert heights == {110.0, 55.0}


@pytest.mark.parametrize("most", [0.0, 1e-7, 0.03, 0.9, 1.0, 4.99, 7.0, 437.0, 2000.0, 2001.0])
def test_axes_end_at_round_numbers_above_the_most(most: float) -> None:
    end, step = axis(most)
    assert end >= most and end / step <= 5.001 and (not most or end < 2 * most)
    assert f"{step:.0e}"[0] in "125" and end / step == pytest.approx(round(end / step))


def test_an_svg_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "speed.svg"
    write(str(path), [found()])
    root = ElementTree.parse(path).getroot()
    kind = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{kind}text")]
    assert {"attndsl", "FlexAttention", "causal", "documents", "1k", "16k"} <= set(texts)
    width, height = (float(root.get(name) or 0) for name in ("width", "height"))
    for polygon in root.iter(f"{kind}polygon"):
        for corner in (polygon.get("points") or "").split():
            x, y = map(float, corner.split(","))
            assert 0 <= x <= width and 0 <= y <= height


def test_a_png_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "speed.png"
    write(str(path), [found()])
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    drawn = draw(rows([found()]), "core")
    assert (width, height) == (2 * drawn.width, 2 * drawn.height)
    start = data.index(b"IDAT") + 4
    (size,) = struct.unpack(">I", data[start - 8 : start - 4])
    pixels = zlib.decompress(data[start : start + size])
    assert len(pixels) == height * (width + 1) and len(set(pixels)) > 3


def test_polygons_are_filled_inside_alone() -> None:
    canvas = torch.zeros(40, 40, dtype=torch.uint8)
    fill(canvas, box(2, 3, 10, 5, INK).corners, 1)  # at twice the size
    assert int(canvas.sum()) == 20 * 10 and bool(canvas[6:16, 4:24].all())
    canvas.zero_()
    fill(canvas, stroke((2, 2), (17, 17), 2, INK).corners, 1)
    assert bool(canvas[20, 20]) and not canvas[20, 30] and 60 < int(canvas.sum()) < 200
    triangle = Polygon(((1, 1), (1, 9), (9, 9)), INK)
    turned = Polygon(tuple(reversed(triangle.corners)), INK)
    drawn = [png(Drawing(20, 20, (each,), (Words(2, 12, "a"),))) for each in (triangle, turned)]
    assert drawn[0] == drawn[1]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="plot: nothing was timed"):
        write(str(tmp_path / "speed.svg"), [])
    with pytest.raises(ArgumentError, match="ends in .svg or .png"):
        write(str(tmp_path / "speed.gif"), [found()])
