"""`explain`: what it says of segments, strategies, preparation and losses."""

from __future__ import annotations

import re

import pytest
import torch

import attndsl
from attndsl.report.explain import explain
from attndsl.report.tiles import cost
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs
from tests.report.conftest import GiveTiles
from tests.report.room import bytes_of_lists

WINDOW = "attention a(window: int = 100):\n    mask 0 <= q - k < window"
DOCUMENTS = "attention a(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k]\n    mask k <= q"


def section(told: str, title: str) -> str:
    """One section of a report, as if lines were never broken."""
    found = next(part for part in told.split("\n\n") if part.startswith(title))
    return re.sub(r"(\S)\n {4}(?=\w)", r"\1 ", found)


def test_ranges_are_formulas_in_the_users_names() -> None:
    told = attndsl.compile(text=WINDOW).explain(Nq=4096, Nk=4096)
    ranges = section(told, "needed by a tile")
    assert "keys     q_lo - window + 1 .. q_hi\n" in ranges
    assert "full   q_hi - window + 1 .. q_lo" in ranges
    found = section(told, "how tiles are found")
    assert "ranges:" in found and "nothing is prepared" in found
    assert "what costs" not in told


def test_cases_that_the_call_decides_are_left_out() -> None:
    text = (
        "attention a(block: int = 16, all: bool = false):\n    mask all or q // block == k // block"
    )
    told = section(attndsl.compile(text=text).explain(Nq=64, Nk=64), "needed by a tile")
    assert "keys     block * (q_lo // block) .. block * (q_hi // block) + block - 1" in told
    assert " if " not in told


def test_several_segments_are_all_shown(give_tiles: GiveTiles) -> None:
    give_tiles(*((128, 128),) * 3)
    text = "attention a(near: int = 90):\n    mask k <= q and (k < 40 or q - k < near)"
    told = attndsl.compile(text=text).explain(Nq=1024, Nk=1024)
    ranges = section(told, "needed by a tile")
    assert "first .. min(39, q_hi)" in ranges.replace("min(q_hi, 39)", "min(39, q_hi)")
    assert "q_lo - near + 1 .. q_hi" in ranges
    tiles = section(told, "tiles for")
    assert "for example rows 512 .. 639 reach columns 0 .. 39 and 423 .. 639" in tiles


def test_lists_say_why_and_what_they_cost(give_tiles: GiveTiles) -> None:
    give_tiles((128, 128), (128, 64), (64, 128))
    attention = attndsl.compile(text=DOCUMENTS)
    doc = torch.arange(2048)[None] // 300
    told = attention.explain(Nq=2048, Nk=2048, doc=doc)
    found = section(told, "how tiles are found")
    assert "lists: `doc[b, q]`, `doc[b, k]` are data" in found
    # least, greatest and signature of int64 of blocks of 128 x 128, 128 x 64 and 64 x 128 positions
    blocks = 24 * (16 + 16 + 16 + 32 + 32 + 16)
    assert f"{blocks / 1e3:.3g} kB of values by block" in found
    lists = bytes_of_lists(16, 16) + 2 * bytes_of_lists(16, 32)
    assert f"{lists / 1e3:.3g} kB of lists" in found
    assert "ms, measured with the PyTorch backend on this machine" in found
    cost = section(told, "what costs a better answer")
    assert "line 2: `doc[b, k]`" in cost and "every tile that is visited is needed" in cost


def test_narrow_tables_are_widened_first() -> None:
    """But for kernels, which read them as they stand."""
    doc = (torch.arange(2048)[None] // 300).to(torch.int32)
    for backend in ("torch", "triton"):
        attention = attndsl.compile(text=DOCUMENTS, backend=backend)
        found = section(attention.explain(Nq=2048, Nk=2048, doc=doc), "how tiles are found")
        assert ("32.8 kB of values by position" in found) == (backend == "torch")
        assert ("by position" in found) == (backend == "torch")


def test_work_that_is_needed_and_done(give_tiles: GiveTiles) -> None:
    give_tiles(*((128, 128),) * 3)
    told = attndsl.compile(text="attention a():\n    mask k <= q").explain(Nq=1024, Nk=1024, D=64)
    tiles = section(told, "tiles for")
    pairs = 1024 * 1025 // 2
    computed = 36 * 128 * 128
    assert f"forward: {computed / 1e3:.3g} k pairs computed, {pairs / 1e3:.3g} k pairs" in tiles
    assert f"{computed * 256 / 1e6:.3g} MFLOP" in tiles
    assert "36             28      36" in tiles


def test_what_was_proved() -> None:
    proved = section(attndsl.compile(text=WINDOW).explain(Nq=64, Nk=64), "proved")
    assert "the mask is the same for every batch and head" in proved
    assert "every query has a key" in proved


def test_every_weight_form_and_a_table() -> None:
    text = """
attention a(bias: float[H, 64], seen: bool[Nk], window: int = 8):
    mask   seen[k] and abs(q - k) < window
    score  score + bias[h, q - k + 32]
    weights normalize(1 + score ** 2)
    output out * sigmoid(out)
"""
    attention = attndsl.compile(text=text)
    told = attention.explain(Nq=256, Nk=256, H=2, seen=torch.ones(256, dtype=torch.bool))
    assert "seen: bool[Nk]" in told
    assert "normalize(" in told and "output   out * sigmoid(out)" in told
    assert "line 3: `seen[k]`" in section(told, "what costs a better answer")
    assert "bias" in section(told, "gradients")


def test_a_mask_that_is_never_true() -> None:
    told = attndsl.compile(text="attention a():\n    mask k < q and q < k").explain(Nq=64, Nk=64)
    assert "keys     none: the mask is never true" in told


def test_no_mask_at_all() -> None:
    told = attndsl.compile(text="attention a():\n    score score").explain(Nq=64, Nk=64)
    assert "there is no mask" in section(told, "how tiles are found")


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_examples_at_their_sizes(name: str, backend: str) -> None:
    """Every example is explained, with lengths and offsets of its batches."""
    *_, inputs = example_inputs(name, Sizes(batch=2, heads=4, key_heads=2, length=100))
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend=backend, **inputs.consts)
    sizes = {"B": 2, "H": 4, "Hk": 2, "Nq": inputs.rows, "Nk": inputs.columns}
    told = attention.explain(**sizes, **inputs.arguments)
    assert all(len(line) <= 130 for line in told.splitlines())
    lengths = torch.tensor([3, 50])
    # Of `listed` all pairs are in lists: no tile of the mask has one.
    part = "gathered:" if name == "listed" else "tiles for"
    for offsets in ({}, {"q_offset": torch.tensor([0, 7])}):
        assert part in attention.explain(**sizes, **inputs.arguments, k_len=lengths, **offsets)


def test_ten_million_tokens(give_tiles: GiveTiles) -> None:
    give_tiles((64, 64), (64, 32), (32, 32))
    length = 10_000_000
    for text, call in (
        (WINDOW, {}),
        ("attention a():\n    mask k <= q and (k < 40 or q - k < 4000)", {}),
        (DOCUMENTS, {"doc": torch.arange(length)[None] // 1000}),
    ):
        for backend in ("auto", "torch"):
            attention = attndsl.compile(text=text, backend=backend)
            told = attention.explain(Nq=length, Nk=length, H=8, **call)
            assert ("from some rows of tiles, drawn at random" in told) == bool(call)


def test_refuses_what_mask_refuses() -> None:
    attention = attndsl.compile(text=WINDOW)
    with pytest.raises(attndsl.ArgumentError, match="did you mean"):
        explain(attention, Nq=8, Nk=8, windw=3)
    with pytest.raises(attndsl.ArgumentError, match="Nk"):
        explain(attention, Nq=8)


def test_takes_the_width_from_a_tensor() -> None:
    text = "attention a(rel: float[8, D]):\n    score score + dot(query, rel[clamp(q - k, 0, 7)])"
    attention = attndsl.compile(text=text)
    assert "D = 64" in attention.explain(Nq=8, Nk=8)
    assert "D = 32" in attention.explain(Nq=8, Nk=8, rel=torch.zeros(8, 32))


def test_long_preparations_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, doc = attndsl.compile(text=DOCUMENTS), torch.arange(2048)[None] // 300
    monkeypatch.setattr(cost, "MOST_TESTS", 10)
    found = section(attention.explain(Nq=2048, Nk=2048, doc=doc), "how tiles are found")
    assert "measured" not in found and "the time was not tried" in found
    assert cost.duration(0.0123456) == "12.3 ms" and cost.duration(8.294) == "8.29 s"


def test_pairs_that_take_part_are_one_number() -> None:
    text = "attention a(frame: int[N]):\n    mask 0 <= frame[q] - frame[k] <= 1"
    told = attndsl.compile(text=text).explain(
        Nq=30_000, Nk=30_000, frame=torch.arange(30_000) // 60
    )
    found = re.findall(r"computed, (~?\S+ \S* ?pairs)", told)
    assert len(found) == 3 and len(set(found)) == 1
    assert found[0].startswith("~") and "most likely within" in told
