"""Pictures of masks: cells are what enumeration says, files are what viewers read."""

from __future__ import annotations

import struct
import xml.dom.minidom
import zlib
from pathlib import Path

import pytest
import torch

import attndsl
from attndsl.diagnostics import ArgumentError
from attndsl.report.arguments import Sizes
from attndsl.report.pictures.cells import (
    ALL,
    KEPT,
    MASKED,
    MIXED,
    NOTHING,
    Wish,
    cells_of,
    parameters_of,
)
from attndsl.report.pictures.glyphs import DOTS, dots
from attndsl.report.pictures.image import PALETTE, Labels, marks, png, sheet_of, short, svg
from attndsl.report.pictures.picture import draw_file, extent_of, show

EXAMPLES = Path(__file__).parents[2] / "examples"
WINDOW = attndsl.compile(EXAMPLES / "mistral.attn")
DUO = attndsl.compile(EXAMPLES / "duo_heads.attn")
DIFFUSION = attndsl.compile(EXAMPLES / "block_diffusion.attn")  # has a parameter called `block`


def drawn(attention, sizes: Sizes, wish: Wish, pixels: tuple[int, int], **given):  # type: ignore[no-untyped-def]
    parameters = parameters_of(attention, sizes, given, seed=3)
    cells = cells_of(attention, sizes, parameters, wish, pixels)
    return cells, parameters


@pytest.mark.parametrize("nq,nk,block", [(40, 40, 8), (37, 50, 8), (64, 64, None), (5, 90, 16)])
def test_a_dot_for_every_pair(nq: int, nk: int, block: int | None) -> None:
    sizes = Sizes(nq=nq, nk=nk, q_offset=nk - nq)
    cells, parameters = drawn(WINDOW, sizes, Wish(block), (512, 512), window=11)
    mask = WINDOW.mask(**sizes.keywords, **parameters)[0, 0]
    (panel,) = cells.panels
    assert panel.shades.shape == mask.shape and cells.cell == (1, 1)
    kept = (panel.shades == KEPT) | (panel.shades == ALL)
    assert torch.equal(kept, mask)
    for row in range(0, nq, cells.block[0]):
        for column in range(0, nk, cells.block[1]):
            place = slice(row, row + cells.block[0]), slice(column, column + cells.block[1])
            tile, shades = mask[place], set(panel.shades[place].flatten().tolist())
            if tile.all():
                assert shades == {ALL}
            elif not tile.any():
                assert shades == {NOTHING}
            else:
                assert shades == {KEPT, MASKED}


@pytest.mark.parametrize("block", [None, 16, 24, 128])
def test_cells_of_many_pairs(block: int | None) -> None:
    sizes = Sizes(nq=600, nk=700)
    cells, parameters = drawn(WINDOW, sizes, Wish(block), (100, 100), window=90)
    mask = WINDOW.mask(**sizes.keywords, **parameters)[0, 0]
    (panel,) = cells.panels
    assert max(panel.shades.shape) <= 100
    high, wide = cells.cell
    for i, line in enumerate(panel.shades.tolist()):
        for j, shade in enumerate(line):
            part = mask[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            assert shade not in (ALL, KEPT) or part.all()
            assert shade not in (NOTHING, MASKED) or not part.any()
            assert shade != MIXED or part.any() != part.all()  # a window is known exactly


def test_heads_and_batches() -> None:
    sizes = Sizes(batch=2, heads=16, kv_heads=16, nq=32, nk=32)
    cells, _ = drawn(DUO, sizes, Wish(), (64, 64))
    assert [panel.title for panel in cells.panels] == [f"head {h}" for h in range(12)]
    assert cells.hidden == 4
    one, _ = drawn(DUO, sizes, Wish(head=3), (64, 64))
    assert [panel.title for panel in one.panels] == ["head 3"]
    assert torch.equal(one.panels[0].shades, cells.panels[3].shades)
    with pytest.raises(ArgumentError, match="there is no head 16 of 16"):
        drawn(DUO, sizes, Wish(head=16), (64, 64))


def decoded(data: bytes) -> tuple[int, int, bytes, torch.Tensor]:
    """Width, height, palette and pixels of a PNG with a palette; its checksums are verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = {}, 8
    while place < len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        (check,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert check == zlib.crc32(name + body)
        found[name] = body
        place += 12 + length
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert (depth, colour) == (8, 3) and b"IEND" in found
    rows = torch.tensor(list(zlib.decompress(found[b"IDAT"]))).view(height, width + 1)
    assert not rows[:, 0].any()
    return width, height, found[b"PLTE"], rows[:, 1:]


def test_png_and_svg_show_the_same_cells() -> None:
    sizes = Sizes(nq=24, nk=24)
    cells, _ = drawn(WINDOW, sizes, Wish(8), (240, 240), window=5)
    labels = Labels("title <&>", "below", (24, 24), (0, 0))
    sheet = sheet_of(cells, labels, (240, 240))
    width, height, palette, pixels = decoded(png(sheet))
    assert (width, height) == (sheet.width, sheet.height)
    assert palette[:3] == bytes(PALETTE[NOTHING])
    boxes = [box for box in sheet.boxes if box.colour <= ALL]
    field = boxes[0]
    size = 240 * 5 // 4 // 24  # pixels of a pair
    shades = cells.panels[0].shades
    middle = torch.arange(24) * size + size // 2
    assert torch.equal(pixels[field.y + middle][:, field.x + middle], shades.long())
    document = xml.dom.minidom.parseString(svg(sheet))
    words = [text.firstChild.data for text in document.getElementsByTagName("text")]
    assert "title <&>" in words and "queries" in words and "keys" in words
    areas = [box.width * box.height for box in boxes if box.width > 1 and box.height > 1]
    assert sum(areas) >= (24 * size) ** 2


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("name", ["mistral", "duo_heads", "block_diffusion", "packed_documents"])
def test_a_million_tokens(name: str, suffix: str, tmp_path: Path) -> None:
    """From tiles alone, not from 10 ** 12 pairs."""
    attention = attndsl.compile(EXAMPLES / f"{name}.attn")
    path = tmp_path / f"mask{suffix}"
    draw_file(str(path), attention, Sizes(nq=1 << 20, nk=1 << 20), {}, Wish(128))
    assert 1000 < path.stat().st_size < 1_000_000


def test_the_terminal_of_a_million_tokens() -> None:
    sizes = Sizes(nq=1 << 20, nk=1 << 20)
    text = show(DIFFUSION, sizes, {"block": 65536}, Wish(128, plain=True))
    assert "empty" in text and len(text) < 20_000


def test_shapes_of_pictures() -> None:
    assert extent_of(Sizes(nq=100, nk=100), 1) == (768, 768)
    assert extent_of(Sizes(nq=1, nk=1 << 20), 1) == (96, 768)
    empty, _ = drawn(WINDOW, Sizes(nq=0, nk=16), Wish(), (64, 64))
    labels = Labels("none", "", (0, 16), (0, 0))
    assert decoded(png(sheet_of(empty, labels, (64, 64))))[0] > 0


def test_an_image_has_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="ends in .png or .svg"):
        draw_file(str(tmp_path / "mask.gif"), WINDOW, Sizes(), {}, Wish())


def test_letters() -> None:
    assert all(len(rows) == 8 for rows in DOTS.values())
    assert len({dots(letter, 1).numpy().tobytes() for letter in DOTS}) == len(DOTS)
    assert not dots(" ", 1).any()


@pytest.mark.parametrize(
    ("length", "expected"), [(64, [0, 16, 32, 48, 64]), (37, [0, 10, 20, 30]), (3, [0, 1, 2, 3])]
)
def test_marks(length: int, expected: list[int]) -> None:
    assert marks(length) == expected


def test_short_numbers() -> None:
    assert [short(n) for n in (0, 4096, 65536, 786432, 3 << 20)] == [
        "0", "4096", "64k", "768k", "3M"
    ]  # fmt: skip
