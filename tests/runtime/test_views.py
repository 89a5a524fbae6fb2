"""attn.mask and attn.tiles against enumeration."""

from __future__ import annotations

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
