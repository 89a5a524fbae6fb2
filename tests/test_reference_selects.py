"""What the reference chooses, against choices that are worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl

GATED = """
attention a(gate: float[B, H, I, J], n: int = 1):
    select picked[i = q, j = k]:
        rank gate[b, h, i, j]
        {clauses}
    mask picked
    weights 1.0
"""
NAN, INF = math.nan, math.inf


def pairs(text: str, query: Tensor, key: Tensor, **given: Any) -> Tensor:
    """Which pairs take part, [B, H, Nq, Nk], of a program whose weights are 1."""
    length = key.shape[2]
    value = torch.eye(length, dtype=query.dtype).expand(*key.shape[:2], length, length)
    out = attndsl.compile(text=text).reference(query, key, value, **given)
    assert isinstance(out, Tensor) and ((out == 0) | (out == 1)).all()
    return out == 1


def kept(ranks: list[float], clauses: str, **given: Any) -> list[int]:
    """The keys that one query keeps, ranked so."""
    gate = torch.tensor(ranks, dtype=torch.float64)[None, None, None]
    key = torch.zeros(1, 1, len(ranks), 2, dtype=torch.float64)
    found = pairs(GATED.format(clauses=clauses), key[:, :, :1], key, gate=gate, **given)
    return found[0, 0, 0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("ranks", "n", "wanted"),
    [
        ([1, 3, 2, 3], 1, [1]),
        ([1, 3, 2, 3], 2, [1, 3]),
        ([1, 3, 2, 3], 3, [1, 2, 3]),
        ([5, 5, 5, 5], 2, [0, 1]),
        ([-0.0, 0.0, -0.0], 2, [0, 1]),
        ([0.0, -0.0, 0.0], 1, [0]),
        ([1, 2], 9, [0, 1]),
        ([1, 2], 0, []),
        ([1, 2], -3, []),
        ([NAN, 1, NAN, -INF], 3, [1, 3]),
        ([NAN, NAN], 1, []),
        ([1, INF, -INF, INF], 1, [1]),
        ([1.0, 1.0 + 1e-12], 1, [0]),  # the same in float32
    ],
)
def test_top(ranks: list[float], n: int, wanted: list[int]) -> None:
    assert kept(ranks, "keep top n", n=n) == wanted


def test_top_of_candidates() -> None:
    clauses = "where j % 2 == 1\n        keep top n"
    assert kept([9, 1, 9, 2, 9, 3], clauses, n=2) == [3, 5]
    assert kept([9, -INF, 9, -INF], clauses, n=5) == [1, 3]
    assert kept([9], clauses, n=1) == []


def test_above() -> None:
    assert kept([1, 2, 3, NAN, INF, -INF], "keep above 2.0") == [2, 4]
    assert kept([-INF, 0, INF], "keep above -inf") == [1, 2]


@pytest.mark.parametrize(
    ("ranks", "mass", "wanted"),
    [
        ([math.log(2), math.log(5), 0.0], 0.6, [1]),  # shares 2/8, 5/8, 1/8
        ([math.log(2), math.log(5), 0.0], 0.7, [0, 1]),
        ([math.log(2), math.log(5), 0.0], 0.9, [0, 1, 2]),
        ([1, 2, 3], 0.0, []),
        ([1, 2, 3], -1.0, []),
        ([0, -1000, -2000], 1.5, [0, 1, 2]),
        ([7, 7, 7, 7], 0.5, [0, 1]),
        ([7, 7, 7, 7], 0.51, [0, 1, 2]),
        ([1, INF, 2, INF], 0.5, [1]),
        ([1, INF, 2, INF], 0.75, [1, 3]),
        ([-INF, -INF], 0.75, [0, 1]),
        ([NAN, 0, NAN, 0], 0.75, [1, 3]),
        ([NAN], 0.75, []),
    ],
)
def test_mass(ranks: list[float], mass: float, wanted: list[int]) -> None:
    assert kept(ranks, f"keep mass {mass}") == wanted


def test_limits_may_vary_with_heads_and_rows() -> None:
    text = """
attention a(gate: float[B, H, I, J], budget: int[H]):
    select picked[i = q, j = k]:
        rank gate[b, h, i, j]
        keep top budget[h] + i
    mask picked
    weights 1.0
"""
    query, key = torch.zeros(1, 3, 2, 1), torch.zeros(1, 3, 4, 1)
    gate = torch.arange(4.0).expand(1, 3, 2, 4)
    found = pairs(text, query, key, gate=gate, budget=torch.tensor([1, 0, 3]))
    assert found.sum(-1)[0].tolist() == [[1, 2], [0, 1], [3, 4]]
    assert found[0, 0, 0].tolist() == [False, False, False, True]


POOLED = """
attention a(m: int, n: int):
    select picked[i = q // m, j = k // n]:
        rank {rank}
        keep {keep}
    mask picked
    weights 1.0
"""


def column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[None, None, :, None]


def test_blocks_are_cut_at_both_ends_of_the_call() -> None:
    """Keys at positions 3 .. 9 in blocks of 4: [3], [4 .. 7], [8, 9]."""
    key = column([5, 1, 2, 3, 0, 4, 1])
    text = POOLED.format(rank="sum(mean(key))", keep="top 2")
    found = pairs(text, column([1]), key, m=1, n=4, k_offset=3)
    assert found[0, 0, 0].tolist() == [True] + [False] * 4 + [True] * 2
    text = POOLED.format(rank="sum(min(key))", keep="above 0.5")
    found = pairs(text, column([1]), key, m=1, n=4, k_offset=3)
    assert found[0, 0, 0].tolist() == [True] + [False] * 4 + [True] * 2


def test_queries_of_a_block_choose_together() -> None:
    """Queries at positions -1 .. 3 in blocks of 2: [-1], [0, 1], [2, 3]."""
    query = column([-1, 5, -1, 1, 2])
    text = POOLED.format(rank="dot(max(query), mean(key))", keep="top 1")
    found = pairs(text, query, column([-1, 1]), m=2, n=1, q_offset=-1)
    assert found[0, 0, :, 1].tolist() == [False, True, True, True, True]
    text = POOLED.format(rank="dot(mean(query), mean(key))", keep="above 2.0")
    found = pairs(text, query, column([-1, 1]), m=2, n=1, q_offset=-1)
    assert found[0, 0].tolist() == [[False] * 2] * 5


def test_indices_of_blocks_are_absolute() -> None:
    text = POOLED.format(rank="float(i * 100 + j)", keep="above 201.5")
    query, key = torch.zeros(2, 1, 4, 1), torch.zeros(2, 1, 6, 1)
    offsets = {"q_offset": torch.tensor([3, -8]), "k_offset": torch.tensor([1, 900])}
    found = pairs(text, query, key, m=2, n=3, **offsets)
    # Batch 0: i = 1, 2, 2, 3 and j = 0, 0, 1, 1, 1, 2. Batch 1: i < 0, j = 300, 301.
    assert found[0, 0].tolist() == [[False] * 6, [False] * 5 + [True]] + [
        [False] * 5 + [True],
        [True] * 6,
    ]
    rows = [[i * 100 + j > 201.5 for j in [300] * 3 + [301] * 3] for i in (-4, -4, -3, -3)]
    assert found[1, 0].tolist() == rows


def test_keys_beyond_k_len_are_not_pooled_and_give_no_block() -> None:
    key = column([1, 1, 2, NAN, NAN, NAN])
    for rank in ("sum(mean(key))", "sum(max(key))", "sum(min(key))"):
        text = POOLED.format(rank=rank, keep="top 3")
        found = pairs(text, column([1]), key, m=1, n=2, k_len=torch.tensor([3]))
        assert found[0, 0, 0].tolist() == [True] * 3 + [False] * 3
    text = POOLED.format(rank="float(j)", keep="top 1")
    found = pairs(text, column([1]), key, m=1, n=2, k_len=torch.tensor([3]))
    assert found[0, 0, 0].tolist() == [False, False, True, False, False, False]
    assert not pairs(text, column([1]), key, m=1, n=2, k_len=torch.tensor([0])).any()


def test_blocks_of_equal_keys_tie_whatever_their_length() -> None:
    text = POOLED.format(rank="dot(query, mean(key))", keep="top 1").replace("q // m", "q")
    text = text.replace("m: int, ", "")
    for number in (0.1, 1 / 3, 0.7):
        key = torch.full((1, 1, 11, 3), number)
        query = torch.tensor([[[[1.0, 0.3, 2.0], [-1.0, 0.1, 0.3]]]])
        for n in (3, 4, 7):
            found = pairs(text, query, key, n=n)
            assert found[0, 0].tolist() == [[True] * n + [False] * (11 - n)] * 2


def test_per_group_sums_the_ranks_of_its_heads() -> None:
    text = """
attention a(gate: float[B, H, I, J]):
    select picked[i = q, j = k] per group:
        rank gate[b, h, i, j]
        keep top 1
    mask picked
    weights 1.0
"""
    gate = torch.tensor([[3.0, 0, 2], [0, 3, 2], [0, 1, 0], [0, 1, 2]])[None, :, None]
    found = pairs(text, torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 3, 1), gate=gate)
    assert found[0, :, 0].nonzero()[:, 1].tolist() == [2, 2, 1, 1]  # 3 3 4, then 0 2 2
    text = text.replace(" per group", "")
    alone = pairs(text, torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 3, 1), gate=gate)
    assert alone[0, :, 0].nonzero()[:, 1].tolist() == [0, 1, 1, 2]


GIVEN = """
attention a(blocks: int[B, H, I, T], m: int = 2):
    select picked[i = q // m, j = k // 2]:
        given blocks
        where j != 3
    mask picked
    weights 1.0
"""


def test_given_lists_absolute_blocks() -> None:
    query, key = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 7, 1)
    blocks = torch.tensor([[[[1, 1, -1, 9], [2, 3, 0, -5]]]])
    # Queries at 5, 6, 7: blocks 2 (row 0) and 3 (row 1). Keys at 1 .. 7: 0, 1, 1, 2, 2, 3, 3.
    found = pairs(GIVEN, query, key, blocks=blocks, q_offset=5, k_offset=1)
    assert found[0, 0].int().tolist() == [[0, 1, 1, 0, 0, 0, 0]] + [[1, 0, 0, 1, 1, 0, 0]] * 2


def test_given_needs_a_row_for_every_block_of_queries() -> None:
    query, key = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 7, 1)
    blocks = torch.zeros(1, 1, 3, 1, dtype=torch.int64)
    with pytest.raises(attndsl.ArgumentError, match="blocks: .*2 blocks"):
        pairs(GIVEN, query, key, blocks=blocks)
    with pytest.raises(attndsl.ArgumentError, match="picked"):
        pairs(GIVEN, query, key, blocks=blocks, m=0)


def test_choosing_passes_no_gradient() -> None:
    text = """
attention a(gate: float[B, H, I, J]):
    select picked[i = q, j = k // 2]:
        rank dot(query, mean(key)) + gate[b, h, i, j]
        keep top 1
    mask picked or k == q
"""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 4, requires_grad=True) for _ in range(3))
    gate = torch.randn(1, 2, 6, 3, requires_grad=True)
    attention = attndsl.compile(text=text)
    out = attention.reference(query, key, value, gate=gate)
    rank = query @ key.unflatten(2, (3, 2)).mean(3).transpose(-1, -2) + gate
    picked = torch.zeros_like(rank).scatter(-1, rank.argmax(-1, keepdim=True), 1)
    mask = (picked.repeat_interleave(2, -1) + torch.eye(6)) > 0
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(out, wanted)
    grads = torch.autograd.grad(out.square().sum(), (query, key, value, gate), allow_unused=True)
    expected = torch.autograd.grad(wanted.square().sum(), (query, key, value))
    torch.testing.assert_close(grads[:3], expected)
    assert grads[3] is None or (grads[3] == 0).all()


def test_a_mask_may_deny_a_choice_and_use_it_twice() -> None:
    gate = torch.tensor([[[[3.0, 1, 2, 0]]]])
    text = GATED.format(clauses="keep top 2").replace("mask picked", "mask not picked or k == 2")
    found = pairs(text, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 4, 1), gate=gate)
    assert found[0, 0, 0].tolist() == [False, True, True, True]
    text = GATED.format(clauses="keep top 2").replace(
        "mask picked", "mask picked != (picked or k > 2)"
    )
    found = pairs(text, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 4, 1), gate=gate)
    assert found[0, 0, 0].tolist() == [False, False, False, True]
