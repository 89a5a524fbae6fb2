"""MoBA and NSA against plain transcriptions of their papers' equations: values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import attndsl
from tests.oracle.compare import Results, cast, difference, differentiate
from tests.oracle.examples import FOLDER, Random

# What computes, its dtype and the tolerance against float64.
ENGINES = [
    pytest.param("reference", torch.float64, 1e-9, id="reference"),
    pytest.param("torch", torch.float64, 1e-6, id="torch"),
    pytest.param("triton", torch.float32, 2e-3, id="triton"),
]
GROUPS = [1, 2, 3, 8]
KEY_HEADS, WIDTH = 2, 8
Function = Callable[..., Tensor]


def engine(name: str, backend: str, **consts: int) -> Callable[..., Tensor]:
    """An example by its reference or by a generator."""
    chosen = "auto" if backend == "reference" else backend
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend=chosen, **consts)
    return attention.reference if backend == "reference" else attention


def compare(
    ours: Function, paper: Function, inputs: dict[str, Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    """Values and all gradients of two functions of the same inputs; float64 is what is meant."""

    def run(function: Function, given: dict[str, Tensor]) -> Results:
        return differentiate(lambda **named: (function(**named), None), given, False)

    want = run(paper, inputs)
    got = run(ours, {name: cast(given, dtype) for name, given in inputs.items()})
    assert all((grad != 0).any() for name, grad in want.items() if name != "out")
    wrong = difference(got, want, tolerance, 1e-3 if dtype == torch.float64 else 0.1)
    assert not wrong, wrong


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q K^T / sqrt(d)) V of one query; 0 where there is no key."""
    if not len(keys):
        return torch.zeros_like(values.sum(0))
    return torch.softmax(keys @ query / math.sqrt(len(query)), 0) @ values


# -- MoBA, arXiv 2502.13189, section 2.2 ----------------------------------------------------------


def moba_paper(query: Tensor, key: Tensor, value: Tensor, block: int, top_k: int) -> Tensor:
    """Equations 2 to 6: `top_k` counts the query's own block, whose gate is always 1."""
    batches, heads, length, _ = query.shape
    group = heads // key.shape[1]
    rows = []
    for b in range(batches):
        for h in range(heads):
            keys, values = key[b, h // group], value[b, h // group]
            means = torch.stack([part.mean(0) for part in keys.split(block)])
            for t in range(length):
                affinity = means.detach() @ query[b, h, t].detach()
                starts = torch.arange(len(means)) * block
                affinity[starts > t] = -torch.inf  # no query reads the future
                affinity[t // block] = torch.inf
                best = affinity.topk(min(top_k, len(means))).indices
                gated = [int(i) for i in best if affinity[i] > -torch.inf]
                read = [p for i in gated for p in range(i * block, (i + 1) * block) if p <= t]
                rows.append(attend(query[b, h, t], keys[read], values[read]))
    return torch.stack(rows).view(batches, heads, length, -1)


def moba_inputs(group: int, length: int) -> dict[str, Tensor]:
    random = Random(group)
    return {
        "query": random.floats(1, KEY_HEADS * group, length, WIDTH),
        "key": random.floats(1, KEY_HEADS, length, WIDTH),
        "value": random.floats(1, KEY_HEADS, length, WIDTH),
    }


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("backend", "dtype", "tolerance"), ENGINES)
def test_moba(backend: str, dtype: torch.dtype, tolerance: float, group: int) -> None:
    """The last block is short, and early rows have fewer blocks than they may read."""
    length = 29 if group < 8 else 13
    ours = engine("moba", backend, block=4, n=2)

    def paper(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return moba_paper(query, key, value, block=4, top_k=3)

    compare(ours, paper, moba_inputs(group, length), dtype, tolerance)


MOBA_PARTS = """
attention own(block: const int):
    mask k // block == q // block and k <= q

attention routed(block: const int, n: const int):
    select picked[i = q, j = k // block]:
        rank dot(query, mean(key))
        where j < i // block
        keep top n
    mask picked
"""


@pytest.mark.parametrize(("backend", "dtype", "tolerance"), ENGINES)
def test_moba_is_its_two_parts_merged(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """As the paper's algorithm 1 computes it: attention to the own block and to the others, joined
    by their denominators."""
    chosen = "auto" if backend == "reference" else backend
    parts = [
        attndsl.compile(text=MOBA_PARTS, name="own", backend=chosen, block=4),
        attndsl.compile(text=MOBA_PARTS, name="routed", backend=chosen, block=4, n=2),
    ]

    def ours(**given: Tensor) -> Tensor:
        runs = [part.reference if backend == "reference" else part for part in parts]
        return attndsl.merge([run(**given, return_lse=True) for run in runs])[0]

    def paper(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return moba_paper(query, key, value, block=4, top_k=3)

    compare(ours, paper, moba_inputs(2, 22), dtype, tolerance)


# -- NSA, arXiv 2502.11089, section 3.3 -----------------------------------------------------------

LENGTH, STRIDE, BLOCK, CHOSEN, WINDOW = 4, 2, 4, 2, 5
BRANCHES = ("compressed", "selected", "window")


def compress(tokens: Tensor, weight: Tensor) -> Tensor:
    """Equation 7, with a linear map for phi: tokens [B, Hk, N, D], weight [LENGTH * D, D]."""
    return tokens.unfold(2, LENGTH, STRIDE).transpose(-1, -2).flatten(-2) @ weight


def shares_of_blocks(shares: Tensor, blocks: int) -> Tensor:
    """Equation 9: what the compressed tokens give to each block of selection.

    shares [compressed tokens] -> [blocks]: the sum over m < BLOCK / STRIDE and n < LENGTH / STRIDE
    of the share of the compressed token that begins n strides before stride m of the block. (The
    paper counts from 1, and m from the last stride of the block.)
    """
    found = torch.zeros(blocks, dtype=shares.dtype)
    for j in range(blocks):
        for m in range(BLOCK // STRIDE):
            for n in range(LENGTH // STRIDE):
                t = BLOCK // STRIDE * j + m - n
                if 0 <= t < len(shares):
                    found[j] += shares[t]
    return found


def nsa_paper(**given: Tensor) -> Tensor:
    """Equations 5 to 12: three branches, each times its gate, added."""
    query, gate = given["query"], given["gate"]
    batches, heads, length, _ = query.shape
    group = heads // KEY_HEADS
    compressed_key = compress(given["compressed_key"], given["key_map"])
    compressed_value = compress(given["compressed_value"], given["value_map"])
    blocks = -(-length // BLOCK)
    out = []
    for b in range(batches):
        for h in range(heads):
            head = h // group
            for t in range(length):
                # Compressed tokens of which every token is known at t.
                known = [i for i in range(compressed_key.shape[2]) if i * STRIDE + LENGTH - 1 <= t]
                compressed = attend(
                    query[b, h, t], compressed_key[b, head, known], compressed_value[b, head, known]
                )
                importance = torch.zeros(blocks, dtype=query.dtype)
                for other in range(head * group, (head + 1) * group):  # equation 10
                    logits = compressed_key[b, head, known] @ query[b, other, t] / WIDTH**0.5
                    shares = torch.softmax(logits.detach(), 0)
                    importance += shares_of_blocks(shares, blocks)
                own = t // BLOCK
                always = {0, own, max(own - 1, 0)}
                rivals = [j for j in range(own) if j not in always]
                best = sorted(rivals, key=lambda j: (-float(importance[j]), j))[:CHOSEN]
                read = [p for p in range(t + 1) if p // BLOCK in always | {*best}]
                selected = attend(
                    query[b, h, t],
                    given["selected_key"][b, head, read],
                    given["selected_value"][b, head, read],
                )
                near = range(max(0, t - WINDOW + 1), t + 1)
                window = attend(
                    query[b, h, t],
                    given["window_key"][b, head, near],
                    given["window_value"][b, head, near],
                )
                parts = torch.stack((compressed, selected, window))
                out.append(gate[b, h, t] @ parts)
    return torch.stack(out).view(batches, heads, length, -1)


def importance_of(query: Tensor, key: Tensor) -> Tensor:
    """[B, H, N, blocks]: shares of blocks in the compressed branch, for `nsa_selected`."""
    heads, length = query.shape[1], query.shape[2]
    logits = query @ key.repeat_interleave(heads // key.shape[1], 1).mT / WIDTH**0.5
    ends = torch.arange(key.shape[2]) * STRIDE + LENGTH - 1
    logits = torch.where(ends <= torch.arange(length)[:, None], logits, -torch.inf)
    shares = torch.nan_to_num(torch.softmax(logits, -1))  # rows that know no compressed token
    blocks = -(-length // BLOCK)
    rows = [shares_of_blocks(row, blocks) for row in shares.flatten(0, 2)]
    return torch.stack(rows).view(*query.shape[:3], blocks)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("backend", "dtype", "tolerance"), ENGINES)
def test_nsa(backend: str, dtype: torch.dtype, tolerance: float, group: int) -> None:
    compressed = engine("nsa_compressed", backend)
    selected = engine("nsa_selected", backend, block=BLOCK)
    window = engine("nsa_window", backend)

    def ours(**given: Tensor) -> Tensor:
        query = given["query"]
        key = compress(given["compressed_key"], given["key_map"])
        value = compress(given["compressed_value"], given["value_map"])
        with torch.no_grad():
            importance = importance_of(query, key)
        outs = (
            compressed(query, key, value, length=LENGTH, stride=STRIDE),
            selected(
                query,
                given["selected_key"],
                given["selected_value"],
                importance=importance,
                n=CHOSEN,
            ),
            window(query, given["window_key"], given["window_value"], window=WINDOW),
        )
        gate = given["gate"]
        return sum(gate[..., at, None] * out for at, out in enumerate(outs))

    length, random = (27 if group < 8 else 22), Random(group)
    heads = KEY_HEADS * group
    inputs = {"query": random.floats(1, heads, length, WIDTH)}
    for branch in BRANCHES:
        inputs[f"{branch}_key"] = random.floats(1, KEY_HEADS, length, WIDTH)
        inputs[f"{branch}_value"] = random.floats(1, KEY_HEADS, length, WIDTH)
    # Maps that leave the products of compressed tokens of about the size of those of tokens.
    inputs["key_map"] = random.floats(LENGTH * WIDTH, WIDTH) / 4
    inputs["value_map"] = random.floats(LENGTH * WIDTH, WIDTH) / 4
    inputs["gate"] = random.floats(1, heads, length, 3).sigmoid().float().double()
    compare(ours, nsa_paper, inputs, dtype, tolerance)
