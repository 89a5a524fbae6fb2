"""attn.mask and attn.tiles against enumeration."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import attndsl
from attndsl.ir.nodes import TRUE, index, lookup, make, scalar, size
from attndsl.ir.program import Scalar, Tensor
from attndsl.runtime.attention import Attention
from tests.runtime.programs import CAUSAL, DISTANCE, attention, biased, windowed


def per_head() -> Attention:
    near = make("lt", DISTANCE, lookup("reach", "int", index("h")))
    return attention(Tensor("reach", "int", (size("H"),)), mask=make("and", CAUSAL, near))


def true_tiles(mask: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Tiles by enumeration; positions beyond the edge do not count."""
    rows, columns = mask.shape[2:]
    found = [
        [
            mask[:, :, i : i + block[0], j : j + block[1]].flatten(2)
            for j in range(0, columns, block[1])
        ]
        for i in range(0, rows, block[0])
    ]
    states = [[t.any(2).int() + t.all(2).int() for t in row] for row in found]
    return torch.stack([torch.stack(row, -1) for row in states], -2)


def test_mask_of_a_window() -> None:
    i, j = torch.arange(9)[:, None], torch.arange(11)[None]
    mask = windowed().mask(Nq=9, Nk=11, q_offset=2, window=3)
    assert mask.dtype == torch.bool and mask.shape == (1, 1, 9, 11)
    assert torch.equal(mask[0, 0], (j <= i + 2) & (i + 2 - j < 3))


def test_mask_has_the_dimensions_in_which_it_varies() -> None:
    mask = per_head().mask(Nq=4, Nk=4, reach=torch.tensor([1, 2, 4]))
    assert mask.shape == (1, 3, 4, 4)
    doc = torch.tensor([[0, 0, 1], [0, 1, 1]])
    assert biased().mask(Nq=3, Nk=3, doc=doc, R=0).shape == (2, 1, 3, 3)
    assert attention().mask(Nq=2, Nk=3, B=5, H=4).shape == (1, 1, 2, 3)
    lengths = attention(mask=TRUE).mask(Nq=2, Nk=3, k_len=torch.tensor([1, 3]))
    assert lengths.shape == (2, 1, 2, 3) and lengths.sum() == 8
    moved = attention().mask(Nq=2, Nk=3, q_offset=torch.tensor([0, 1]))
    assert moved.shape == (2, 1, 2, 3) and moved.sum() == 8


def test_parameters_that_the_mask_does_not_read_may_lack() -> None:
    doc = torch.zeros(1, 3, dtype=torch.int64)
    assert biased().mask(Nq=3, Nk=3, doc=doc).sum() == 6
    with pytest.raises(attndsl.ArgumentError, match=r"missing doc: int\[B, N\]"):
        biased().mask(Nq=3, Nk=3)
    with pytest.raises(attndsl.ArgumentError, match="missing R: int"):
        biased().mask(Nq=3, Nk=3, doc=doc, bias=torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Nq": 3}, "Nk: missing"),
        ({"Nq": -1, "Nk": 3}, "Nq: expected an int of 0 or more"),
        ({"Nq": 3.0, "Nk": 3}, "Nq: expected an int of 0 or more"),
        ({"Nq": True, "Nk": 3}, "Nq: expected an int of 0 or more"),
        ({"Nq": 3, "Nk": 3, "H": 4, "Hk": 3}, "H: 4 query heads do not go with Hk = 3"),
        ({"Nq": 3, "Nk": 3, "B": 2, "k_len": torch.tensor([1])}, "B: 2 from the call, but 1"),
        ({"Nq": 3, "Nk": 3, "widow": 3}, "unknown parameter widow; did you mean `window`"),
        ({"Nq": 3, "Nk": 3, "window": 2.5}, "window: declared int"),
        ({"Nq": 3, "Nk": 3, "q_offset": torch.tensor([2**62])}, r"q_offset: .* within ±2\*\*29"),
    ],
)
@pytest.mark.parametrize("method", ["mask", "tiles"])
def test_wrong_arguments(method: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(attndsl.ArgumentError, match=message):
        getattr(windowed(), method)(**arguments)


@pytest.mark.parametrize("block", [(0, 4), (4,), 4, (4.0, 4), "ab", (2, -1)])
def test_wrong_block(block: Any) -> None:
    with pytest.raises(attndsl.ArgumentError, match="block: expected"):
        windowed().tiles(Nq=3, Nk=3, block=block)


@pytest.mark.parametrize("block", [(1, 1), (2, 3), (4, 4), (16, 8)])
@pytest.mark.parametrize(("nq", "nk", "offset"), [(9, 11, 2), (8, 8, 0), (1, 7, 6), (5, 0, 0)])
def test_tiles_of_a_window_are_exact(block: tuple[int, int], nq: int, nk: int, offset: int) -> None:
    sizes: dict[str, Any] = {"Nq": nq, "Nk": nk, "q_offset": offset, "window": 4}
    tiles = windowed().tiles(block=block, **sizes)
    assert tiles.dtype == torch.int8
    mask = windowed().mask(**sizes)
    assert tiles.shape == (1, 1, -(-nq // block[0]), -(-nk // block[1]))
    if nk:
        assert torch.equal(tiles.int(), true_tiles(mask, block))


def test_tiles_are_sound_with_lengths_and_offsets_per_batch() -> None:
    sizes: dict[str, Any] = {
        "Nq": 10,
        "Nk": 13,
        "k_len": torch.tensor([0, 5, 13, 20]),
        "q_offset": torch.tensor([0, 3, 1, 0]),
        "k_offset": torch.tensor([0, 0, 2, -5]),
    }
    for block in ((3, 4), (1, 1), (5, 2)):
        tiles, wanted = windowed().tiles(block=block, **sizes), windowed().mask(**sizes)
        exact = true_tiles(wanted, block)
        assert tiles.shape == exact.shape
        assert (exact[tiles == 0] == 0).all() and (exact[tiles == 2] == 2).all()
        assert (tiles == 0).sum() > 0


def test_tiles_with_tables_are_sound() -> None:
    reach = torch.tensor([1, 4, 9])
    tiles = per_head().tiles(Nq=12, Nk=12, block=(4, 4), reach=reach)
    exact = true_tiles(per_head().mask(Nq=12, Nk=12, reach=reach), (4, 4))
    exact, tiles = torch.broadcast_tensors(exact, tiles)
    assert (exact[tiles == 0] == 0).all() and (exact[tiles == 2] == 2).all()


def test_sizes_come_from_tables() -> None:
    dense = attention(
        Tensor("m", "bool", (size("Nq"), size("Nk"))),
        mask=lookup("m", "bool", index("q"), index("k")),
    )
    table = torch.rand(4, 6) < 0.5
    assert torch.equal(dense.mask(m=table)[0, 0], table)
    with pytest.raises(attndsl.ArgumentError, match="Nq: 3 from the call, but 4 from m: bool"):
        dense.mask(m=table, Nq=3)


def test_group_size_in_a_mask() -> None:
    first = make("eq", make("floormod", index("h"), size("G")), scalar("g", "int"))
    attn = attention(Scalar("g", "int", 0), mask=first)
    assert attn.mask(Nq=1, Nk=1, H=4, Hk=2).flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("method", ["mask", "tiles", "explain"])
def test_nothing_goes_by_position(method: str) -> None:
    with pytest.raises(attndsl.ArgumentError, match="given by name"):
        getattr(biased(), method)(4, 4)


def test_a_parameter_may_be_called_block() -> None:
    text = "attention f(block: int = 4):\n    mask q // block == k // block\n"
    attn = attndsl.compile(text=text)
    assert attn.tiles(Nq=8, Nk=8, block=8).tolist() == [[[[2]]]]
    assert attn.tiles(Nq=8, Nk=8, block=(4, 4)).tolist() == [[[[2, 0], [0, 2]]]]


# -- tiles from tables -----------------------------------------------------------------------------

# Masks with tables, and whether tiles tell all that enumeration would.
TABLES = {
    "documents": ("doc: int[B, N]", "doc[b, q] == doc[b, k] and k <= q", True),
    "kinds": ("kind: int[N]", "kind[q] != kind[k]", False),
    "of tables": ("doc: int[N], root: int[N]", "root[doc[q]] == root[doc[k]]", True),
    "valid": ("valid: bool[B, N]", "valid[b, k] and valid[b, q]", True),
    "near": ("place: float[B, N]", "abs(place[b, q] - place[b, k]) < 0.7", False),
    "reach": ("reach: int[H, N]", "0 <= q - k < reach[h, q]", False),
    "dense": ("kept: bool[Nq, Nk]", "kept[q, k]", True),
    "dense per head": ("kept: bool[Nk, H, Nq]", "kept[k, h, q]", True),
    "dense float": ("gate: float[Nq, Nk]", "gate[q, k] > 0.5", False),
    "and more": ("kept: bool[Nq, Nk]", "kept[q, k] and k <= q + 3", False),
    "prefix": ("length: int[B]", "k <= q or k < length[b]", True),
    "prefix and one more": ("length: int[B]", "k <= q or k < length[b] + 1", False),
    "left and right": ("left: int[H], right: int[H]", "q - left[h] <= k <= q + right[h]", False),
    "times": ("time: int[B, N]", "0 <= time[b, q] - time[b, k] < 2", False),
    "reaches": ("reach: int[B, N]", "abs(q - k) <= reach[b, q] + reach[b, k]", False),
    "falling quotient": ("level: int[N]", "level[k] // -3 >= 0", True),
    "falling remainder": ("level: int[N]", "level[k] % -3 == -1", False),
    "below a square": ("level: int[N]", "q + k ** 2 <= level[q]", False),
    "number of a block": ("size: int[B], level: int[N]", "q // size[b] - k < level[k]", False),
    "difference": ("low: int[B], level: int[N]", "max(q, low[b]) - abs(q) == level[k]", False),
}


class Draw:
    """A random call of a mask with tables, from a seed."""

    def __init__(self, name: str, seed: int) -> None:
        pick = random.Random(f"{name} {seed}")
        self.torch = torch.Generator().manual_seed(seed)
        self.sizes = {
            "B": pick.randint(1, 3),
            "H": pick.randint(1, 2),
            "Nq": pick.randint(1, 40),
            "Nk": pick.randint(1, 40),
        }
        self.sizes["N"] = pick.randint(1, 50)  # shorter or longer than both
        self.pick = pick
        self.block = (pick.randint(1, 9), pick.randint(1, 9))
        self.call: dict[str, Any] = {}
        if pick.random() < 0.3:
            self.call["q_offset"] = pick.randint(-5, 12)
        if pick.random() < 0.2:
            self.call["k_offset"] = pick.randint(-5, 12)
        if pick.random() < 0.3:
            self.call["k_len"] = self.ints(-1, self.sizes["Nk"] + 3, self.sizes["B"])
        self.has_offsets = pick.random() < 0.15
        if self.has_offsets:
            self.call["q_offset"] = self.ints(-3, 9, self.sizes["B"])

    def ints(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.torch)

    def table(self, name: str, declared: str) -> torch.Tensor:
        kind, dims = declared.rstrip("]").split("[")
        shape = [self.sizes[dim] for dim in dims.split(", ")]
        if kind == "bool":
            return torch.rand(shape, generator=self.torch) < self.pick.choice((0.1, 0.5, 0.9))
        if kind == "float":
            drawn = torch.randn(shape, generator=self.torch)
            if self.pick.random() < 0.5:
                drawn.view(-1)[self.pick.randrange(drawn.numel())] = float("nan")
            return drawn
        drawn = self.ints(0, shape[-1] if name in ("root", "doc") else 5, *shape)
        if self.pick.random() < 0.5:
            drawn = drawn.sort(-1).values
        if self.pick.random() < 0.2:
            drawn[..., 0], drawn[..., -1] = 2**63 - 1, -(2**63)
        if self.pick.random() < 0.1:
            drawn[..., -1] = 2**62
        return drawn


@pytest.mark.parametrize("name", TABLES)
def test_tiles_say_what_tables_tell(name: str) -> None:
    parameters, mask, is_exact = TABLES[name]
    attn = attndsl.compile(text=f"attention a({parameters}):\n    mask {mask}\n")
    for seed in range(40):
        draw = Draw(name, seed)
        declared = [part.split(": ") for part in parameters.replace("], ", "];").split(";")]
        tables = {given: draw.table(given, kind) for given, kind in declared}
        sizes = {n: draw.sizes[n] for n in ("B", "H", "Nq", "Nk")}
        call = {**sizes, **tables, **draw.call}
        tiles = attn.tiles(block=draw.block, **call)
        exact = true_tiles(attn.mask(**call), draw.block)
        tiles, exact = torch.broadcast_tensors(tiles, exact)
        assert (exact[tiles == 0] == 0).all() and (exact[tiles == 2] == 2).all(), (seed, call)
        if is_exact and not draw.has_offsets:
            assert torch.equal(tiles.int(), exact), (seed, call, draw.block)


@pytest.mark.parametrize(
    ("parameters", "mask", "tables"),
    [
        ("time: int[N]", "0 <= time[q] - time[k] < 9", {"time": torch.arange(96) + 5}),
        ("l: int[H]", "q - l[h] <= k <= q + l[h]", {"l": torch.tensor([3, 0, 20])}),
        ("n: int[B]", "k <= q or k < n[b] + 1", {"n": torch.tensor([30, 0, -4])}),
    ],
)
def test_sums_of_table_entries_are_as_tight_as_entries(
    parameters: str, mask: str, tables: dict[str, Any]
) -> None:
    attn = attndsl.compile(text=f"attention a({parameters}):\n    mask {mask}\n")
    exact = true_tiles(attn.mask(Nq=96, Nk=96, **tables), (8, 16))
    assert torch.equal(attn.tiles(Nq=96, Nk=96, block=(8, 16), **tables).int(), exact)


def test_loose_documents_are_told_apart_by_their_values() -> None:
    attn = attndsl.compile(text="attention a(doc: int[N]):\n    mask doc[q] == doc[k]\n")
    for spread in (64, 640):  # more values than a signature has bits
        doc = torch.randint(0, spread, (200,), generator=torch.Generator().manual_seed(0))
        call: dict[str, Any] = {"Nq": 200, "Nk": 200, "doc": doc}
        exact = true_tiles(attn.mask(**call), (4, 4))
        tiles = attn.tiles(block=(4, 4), **call).int()
        assert torch.equal(tiles > 0, exact > 0)
        assert (exact == 0).float().mean() > 0.5


def test_tiles_without_the_time_for_exact_sets_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    from attndsl.runtime import blocks

    monkeypatch.setattr(blocks, "MOST_PRODUCTS", 0)
    attn = attndsl.compile(text="attention a(doc: int[N]):\n    mask doc[q] == doc[k]\n")
    doc = torch.randint(0, 1000, (200,), generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"Nq": 200, "Nk": 200, "doc": doc}
    exact = true_tiles(attn.mask(**call), (4, 4))
    tiles = attn.tiles(block=(4, 4), **call).int()
    assert (exact[tiles == 0] == 0).all() and (exact[tiles == 2] == 2).all()
    assert (tiles == 0).sum() > 0.5 * (exact == 0).sum()


@pytest.mark.parametrize("name", ["window", "documents"])
def test_a_row_of_tiles_of_ten_million_tokens(name: str) -> None:
    length, row = 10_000_000, 5_000_064
    call: dict[str, Any] = {"Nq": 128, "Nk": length, "q_offset": row}
    if name == "window":
        attn = attndsl.compile(text="attention a(w: int):\n    mask 0 <= q - k < w\n")
        call["w"] = first = 4096
        first = row - 4095
    else:
        text = "attention a(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k] and k <= q\n"
        attn = attndsl.compile(text=text)
        call["doc"] = torch.arange(length)[None] // 1000
        first = row // 1000 * 1000
    tiles = attn.tiles(**call)
    assert tiles.shape == (1, 1, 1, -(-length // 128))
    kept = tiles.flatten().nonzero().flatten()
    assert kept.tolist() == list(range(first // 128, (row + 127) // 128 + 1))
