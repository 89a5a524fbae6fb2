"""What is told of selects: counts against enumeration, forms and why, and what is drawn."""

from __future__ import annotations

import itertools
import re
from math import prod
from pathlib import Path

import pytest
import torch

import attndsl
from attndsl.cli import main
from attndsl.diagnostics import ArgumentError
from attndsl.report.arguments import Sizes, random_parameters
from attndsl.report.choices.call import shown_call
from attndsl.report.choices.text import select_lines
from attndsl.report.differences.sides import check_alike
from attndsl.report.explain import explain
from attndsl.report.pictures.cells import Wish, call_of, parameters_of, tiles_of
from attndsl.report.pictures.picture import show
from attndsl.runtime.views import mask_pairs
from tests.oracle.examples import FOLDER
from tests.report.test_explain import section

MOBA = """
attention moba(block: const int = 8, n: int = 2):
    select routed[i = q, j = k // block]:
        rank  dot(query, mean(key))
        where j < i // block
        keep  top n
    mask (routed or k // block == q // block) and k <= q
"""
GATED = """
attention gated(gate: float[B, Hk, Ni, Nj], level: float, far: int = 3):
    select open[i = q // 8, j = k // 4] per group:
        rank  gate[b, h // G, i, j]
        where 2 * i - far <= j <= 2 * i + h // G
        keep  above level
    mask open and abs(q - k) < 40
"""
HEADS = """
attention heads(budget: int[H], last: int[B]):
    select best[i = q // 3, j = k // 5]:
        rank  dot(mean(query), max(key))
        where j < last[b] or j == i
        keep  top budget[h] - i % 2
    mask not best
"""


def inputs_of(sizes: Sizes, seed: int = 0):  # type: ignore[no-untyped-def]
    random = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn((sizes.batch, heads, length, sizes.head_dim), generator=random)
        for heads, length in ((sizes.heads, sizes.nq), (sizes.kv_heads, sizes.nk))
    )


def blocks(offset: int, length: int, extent: int) -> list[tuple[int, int]]:
    """The index of every block, and how many rows it has."""
    found: dict[int, int] = {}
    for position in range(offset, offset + length):
        found[position // extent] = found.get(position // extent, 0) + 1
    return list(found.items())


@pytest.mark.parametrize("q_offsets,k_offset,k_len", [
    ((0, 0), 0, None), ((5, 5), 2, None), ((3, 30), 0, (7, 40)), ((1, 17), 9, (0, 23)),
])  # fmt: skip
def test_counts_are_those_of_enumeration(q_offsets, k_offset, k_len) -> None:  # type: ignore[no-untyped-def]
    queries, keys, heads = 22, 41, 3
    budget, last = [0, 2, 5], [2, 6]
    expected = [0, 0, 0, 0]
    for b, h in itertools.product(range(2), range(heads)):
        there = keys if k_len is None else k_len[b]
        columns = [j for j, _ in blocks(k_offset, there, 5)]
        for i, rows in blocks(q_offsets[b], queries, 3):
            candidates = sum(j < last[b] or j == i for j in columns)
            kept = min(candidates, max(budget[h] - i % 2, 0))
            new = (len(columns), candidates, kept, kept * rows)
            expected = [old + more for old, more in zip(expected, new, strict=True)]
    attention = attndsl.compile(text=HEADS)
    shown = shown_call(
        attention.program,
        {"B": 2, "H": heads, "Nq": queries, "Nk": keys, "D": 4},
        torch.tensor(q_offsets) if q_offsets[0] != q_offsets[1] else q_offsets[0],
        k_offset,
        None if k_len is None else torch.tensor(k_len),
        {"budget": torch.tensor(budget), "last": torch.tensor(last)},
    )
    assert shown.routing is not None
    (choice,) = shown.routing.choices
    found = [choice.in_all, choice.candidates, choice.kept, choice.entries]
    assert found == expected
    assert not choice.is_sample and not choice.unknown


def test_a_sample_stands_for_many_rows() -> None:
    attention = attndsl.compile(text=MOBA)
    length = 1 << 20
    (choice,) = shown_call(
        attention.program, {"Nq": length, "Nk": length, "H": 2}, 0, 0, None, {}
    ).routing.choices  # type: ignore[union-attr]
    rows = length // 8
    exact = 2 * 8 * (rows * (rows - 1) // 2)
    assert choice.is_sample
    assert abs(choice.candidates - exact) < 1e-3 * exact
    assert abs(choice.kept - 2 * (8 * 1 + 8 * 2 * (rows - 2))) < 1e-3 * choice.kept


def test_lists_are_told_and_counted() -> None:
    attention = attndsl.compile(text=MOBA)
    sizes = Sizes(heads=4, kv_heads=2, nq=64, nk=64, head_dim=16)
    told = attention.explain(Nq=64, Nk=64, H=4, Hk=2, D=16)
    assert "select   routed[i = q, j = k // 8]:" in told
    assert "rank   dot(query, mean(key))" in told and "keep   top n" in told
    choosing = section(told, "choosing")
    assert "64 of 1 query and 8 of 8 keys; each head for itself" in choosing
    assert "mean(key) of 8 blocks, 1.02 kB" in choosing
    assert f"of {4 * 8 * 28} of {4 * 64 * 8:,} pairs of blocks" in choosing
    kept = 4 * 8 * (1 + 2 * 6)
    assert f"at most {kept} blocks" in choosing
    assert f"room for 2 blocks: {4 * 64 * 2 * 4 / 1e3:.3g} kB" in choosing
    assert "as lists: every query chooses for itself" in choosing
    assert f"at most {kept} rows" in section(told, "attending")
    assert "give" in section(told, "attending")
    assert "k // 8 == q // 8 and k <= q" in section(told, "the mask beside")
    query, key = inputs_of(sizes)
    counted = section(explain(attention, query=query, key=key), "attending")
    assert f"{kept} rows and {kept * 8 / 1e3:.3g} k pairs" in counted
    computed = re.search(r"(\d+) tiles of (\d+) rows, in each (\d+) steps? of (\d+) keys", counted)
    assert computed is not None
    pairs = prod(int(number) for number in computed.groups())
    assert f"{pairs / 1e3:.3g} k pairs computed, {pairs * 64 / 1e3:.3g} kFLOP" in counted
    assert "at most" not in counted


def test_heads_of_a_group_are_rows_of_a_tile() -> None:
    text = MOBA.replace("k // block]", "k // block] per group").replace("i // block", "1000")
    text = text[: text.index("mask")] + "mask routed\n"
    attention = attndsl.compile(text=text)
    query, key = inputs_of(Sizes(heads=6, kv_heads=2, nq=19, nk=64, head_dim=16))
    lists = attention.select(query, key).flatten(0, 1)
    counts = [int((chosen == j).sum()) for chosen in lists for j in range(8)]
    told = section(explain(attention, query=query, key=key), "attending")
    assert f"{sum(-(-3 * count // 16) for count in counts)} tiles of 16 rows" in told


def test_nothing_but_lists() -> None:
    """No tiles are told of a mask that is empty beside what is chosen."""
    text = "attention a(idx: int[B, H, Nq, T]):\n    select s[i = q, j = k // 4]:\n"
    text += "        given idx\n    mask s"
    idx = torch.tensor([0, 0, 2, -1, 99, 1]).expand(1, 2, 10, 6)
    attention = attndsl.compile(text=text)
    query, key = torch.randn(1, 2, 10, 8), torch.randn(1, 2, 12, 8)
    told = explain(attention, query=query, key=key, idx=idx)
    assert "given  idx" in told and "tiles for" not in told
    assert "60 rows" in section(told, "attending")


REASONS = {
    "8 queries in a row choose together": "i = q // 8, j = k]:\n keep top 1",
    "how many blocks `keep above` keeps": "i = q, j = k]:\n keep above 0.5",
    "how many blocks `keep mass` keeps": "i = q, j = k]:\n keep mass 0.5",
    "nothing bounds `h` for all queries": "i = q, j = k]:\n keep top h",
    "the mask may lose pairs by `s`": "i = q, j = k]:\n keep top 1\nnot ",
}


@pytest.mark.parametrize("reason", REASONS)
def test_why_a_table(reason: str) -> None:
    head, keep, *negated = REASONS[reason].split("\n")
    text = (
        f"attention a():\n    select s[{head}\n        rank sum(max(key))\n"
        f"        {keep.strip()}\n    mask {''.join(negated)}s and k <= q\n"
    )
    told = attndsl.compile(text=text).explain(Nq=40, Nk=40)
    assert f"as table: {reason}" in section(told, "choosing")


@pytest.mark.parametrize("offset", [0, 13])
def test_tiles_of_tables_are_those_of_the_mask(offset: int) -> None:
    attention = attndsl.compile(text=GATED)
    sizes = Sizes(heads=4, kv_heads=2, nq=300, nk=280, head_dim=8, q_offset=offset)
    drawn = random_parameters(attention.program, sizes, {"level": 0.8})
    assert drawn["gate"].shape == (1, 2, (300 + offset + 7) // 8, 70)
    inputs = inputs_of(sizes)
    program, seen = call_of(attention.program, sizes, drawn, inputs)
    pairs = mask_pairs(program, seen)
    told = explain(attention, query=inputs[0], key=inputs[1], q_offset=offset, **drawn)
    tiles = section(told, "tiles for")
    assert f"{int(pairs.sum()) / 1e3:.3g} k pairs" in tiles
    most = section(
        explain(attention, Nq=300, Nk=280, H=4, Hk=2, q_offset=offset, **drawn), "tiles for"
    )
    assert "at most: if every candidate were chosen" in " ".join(most.split())
    everything = drawn | {"level": -torch.inf}
    pairs = mask_pairs(*call_of(attention.program, sizes, everything, inputs))
    assert f"{int(pairs.sum()) / 1e3:.3g} k pairs" in most


def test_what_is_missing_is_named() -> None:
    query, key = torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
    gated = attndsl.compile(text=GATED)
    with pytest.raises(ArgumentError, match="missing gate: float"):
        explain(gated, query=query, key=key, level=1.0)
    with pytest.raises(ArgumentError, match="key: give query= and key="):
        explain(gated, query=query)
    with pytest.raises(ArgumentError, match="Nq: 3 is given, but query and key have 16"):
        explain(gated, query=query, key=key, Nq=3)
    text = MOBA.replace("const int = 8", "int").replace("n: int = 2", "n: int")
    with pytest.raises(ArgumentError, match="missing block"):
        attndsl.compile(text=text).explain(Nq=16, Nk=16)
    assert "choosing" in gated.explain(Nq=16, Nk=16, level=1.0)
    with pytest.raises(ArgumentError, match="depends on queries and keys"):
        check_alike(gated.program, gated.program)
    told = attndsl.compile(text=HEADS).explain(Nq=16, Nk=16, H=2)
    assert "fewer by `last`, which is not given" in " ".join(told.split())


def test_pictures_are_of_what_is_chosen() -> None:
    attention = attndsl.compile(text=MOBA)
    sizes = Sizes(nq=48, nk=48, head_dim=8)
    inputs = inputs_of(sizes, seed=4)
    drawn = parameters_of(attention, sizes, {"n": 1}, seed=0)
    program, seen = call_of(attention.program, sizes, drawn, inputs)
    mask = mask_pairs(program, seen)
    query, key = (x.double() for x in inputs)
    means = key.unflatten(2, (6, 8)).mean(3)
    ranks = query @ means.mT
    for h, q in itertools.product(range(2), range(48)):
        own = q // 8
        best = {int(ranks[0, h, q, :own].argmax())} if own else set()
        expected = [k <= q and k // 8 in best | {own} for k in range(48)]
        assert mask[0, h, q].tolist() == expected
    assert torch.equal(tiles_of(program, seen, (1, 1)) == 2, mask)
    told = show(attention, sizes, {"n": 1}, Wish(), inputs=inputs)
    assert "`routed`: chosen by the query and key given" in told
    first, again, other = (show(attention, sizes, {}, Wish(), seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert "`routed`: chosen by random queries and keys, seed 0" in first


CHOOSING = sorted(path for path in FOLDER.glob("*.attn") if "    select " in path.read_text())


@pytest.mark.parametrize("path", CHOOSING, ids=lambda path: path.stem)
def test_examples_are_told_and_drawn(path: Path, capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sizes = ["--nq", "200", "--nk", "260", "--heads", "4", "--kv-heads", "2", "--q-offset", "60"]
    assert main(["explain", str(path), *sizes]) == 0
    told = capsys.readouterr().out
    assert "choosing" in told and "kernels for" in told
    assert all(len(line) <= 130 for line in told.splitlines())
    assert main(["show", str(path), *sizes]) == 0
    assert "chosen by random " in capsys.readouterr().out
    image = tmp_path / "image.png"
    assert main(["show", str(path), *sizes, "-o", str(image)]) == 0
    assert image.read_bytes().startswith(b"\x89PNG")


def test_statements_read_as_they_were_written() -> None:
    text = """
attention a(t: float[B, Hk, N, D]):
    select s[i = q // 4, j = k // 2] per group:
        rank  sum(max(mean(query) * min(key), mean(query) * max(key))) + dot(query, t[b, h // G, j])
        where i >= j
        keep  mass 0.5
    mask s
""".replace("dot(query,", "dot(max(query),")
    assert select_lines(attndsl.compile(text=text).program) == [
        "select   s[i = q // 4, j = k // 2] per group:",
        "             rank   sum(max(mean(query) * min(key), mean(query) * max(key))) + "
        "dot(max(query), t[b, h // G, j])",
        "             where  j <= i",
        "             keep   mass 0.5",
    ]


def test_kernels_of_lists() -> None:
    """Those that gather, and those of the mask beside it only where it may have a pair."""
    text = (
        "attention a():\n    select s[i = q, j = k // 64]:\n        rank dot(query, mean(key))\n"
        "        keep top 2\n    mask s{more}\n"
    )
    both, alone = (
        section(
            attndsl.compile(text=text.format(more=more), backend="triton").explain(Nq=256, Nk=256),
            "kernels for",
        )
        for more in (" or q == k", " and k <= q")
    )
    for told in (both, alone):
        assert "routed_forward" in told and "routed_backward_dkv" in told
    assert "\n  forward" in both and "\n  forward" not in alone
