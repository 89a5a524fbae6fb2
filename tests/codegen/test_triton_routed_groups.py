"""Heads of a group that share gathered tiles, and both ways to merge, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attndsl.runtime import cache
from tests.codegen.test_triton_routed import (
    ALIBI,
    CASES,
    DOTS,
    NORMALIZE,
    OWN,
    REST,
    SINK,
    TABLES,
    Case,
    block_count,
    check,
    check_parts,
    check_repeats,
    floats,
    load_plan,
)

DIFFERS = "(q + k + h) % 3 > 0"  # from head to head
GROUPS = {
    "groups of 2": Case(body=ALIBI, parameters="slope: float[H]", sizes=(2, 4, 2, 17, 33, 16, 16)),
    "groups of 3": Case(
        body=TABLES,
        parameters="bias: float[N], place: int[N], near_by: float[H, 7]",
        arguments={"bias": floats(33), "place": torch.arange(33) * 7 % 33, "near_by": floats(6, 7)},
        sizes=(1, 6, 2, 33, 33, 16, 16),
    ),
    "groups of 8": Case(
        body=ALIBI, parameters="slope: float[H]", sizes=(1, 8, 1, 9, 33, 16, 24), columns=5
    ),
    "a group of 40": Case("false", "k <= q", sizes=(1, 40, 1, 3, 20, 16, 16), q_offset=9),
    "dots by head": Case(
        body=DOTS,
        parameters="rel: float[H, M, D], own: float[M, D]",
        arguments={"rel": floats(3, 5, 16), "own": floats(5, 16)},
        sizes=(1, 3, 1, 17, 17, 16, 16),
    ),
    "gains of rows by head": Case(
        body="    weights sigmoid(score - gain[h, q]) * gain[h, q // 2]\n",
        parameters="gain: float[H, N]",
        arguments={"gain": floats(6, 33)},
        sizes=(2, 6, 2, 17, 33, 16, 16),
    ),
    "gains of key heads": Case(
        body="    score score * gain[h // G] + near_by[b, h // G, min(abs(q - k), 6)]\n",
        parameters="gain: float[Hk], near_by: float[B, Hk, 7]",
        arguments={"gain": floats(2), "near_by": floats(2, 2, 7)},
        sizes=(2, 6, 2, 9, 33, 16, 16),
    ),
    "gains of keys by head": Case(
        body="    score score * gain[h, k]\n",
        parameters="gain: float[H, N]",
        arguments={"gain": floats(3, 33)},
        sizes=(1, 3, 1, 17, 33, 16, 16),
    ),
    "normalize by head": Case(
        body=NORMALIZE,
        parameters="decay: float[H]",
        arguments={"decay": floats(3).abs()},
        sizes=(1, 3, 1, 17, 33, 16, 16),
    ),
    "sinks of heads": Case(body=SINK, parameters="sink: float[H]", sizes=(1, 8, 1, 9, 33, 16, 16)),
    "masks of heads": Case(
        f"{DIFFERS} and {OWN}", f"{DIFFERS} and {REST}", sizes=(2, 6, 2, 17, 33, 16, 16)
    ),
    "windows of heads": Case(
        "k <= q and q - k < window[h]",
        "k <= q and q - k >= window[h]",
        parameters="window: int[H]",
        arguments={"window": torch.tensor([2, 40, 0, 9, 17, 33])},
        sizes=(1, 6, 2, 33, 33, 16, 16),
        slots=5,
    ),
    "decode, one row": Case(
        "false", "k <= q", sizes=(2, 8, 1, 1, 70, 16, 32), q_offset=69, slots=7
    ),
    "decode, alibi": Case(
        body=ALIBI, parameters="slope: float[H]", sizes=(2, 16, 2, 1, 70, 16, 16), q_offset=69
    ),
    "sequences of groups": Case(
        "false",
        "k <= q",
        sizes=(3, 6, 2, 9, 33, 16, 16),
        q_offset=torch.tensor([16, -2, 40]),
        k_offset=torch.tensor([0, 5, -3]),
        k_len=torch.tensor([33, 0, 18]),
    ),
}
for case in GROUPS.values():
    case.per_group = True
    for parameter in ("slope", "sink"):
        if f"{parameter}: float[H]" in case.parameters:
            case.arguments = {parameter: floats(case.sizes[1])}


@pytest.mark.parametrize("name", GROUPS)
def test_results_and_gradients(name: str) -> None:
    check(GROUPS[name])


@pytest.mark.parametrize(("name", "room"), [("groups of 3", 9000), ("windows of heads", 4000)])
def test_parts_of_lists(monkeypatch: pytest.MonkeyPatch, name: str, room: int) -> None:
    check_parts(monkeypatch, GROUPS[name], room)


@pytest.mark.parametrize("name", ["groups of 8", "dots by head", "decode, alibi"])
def test_results_are_the_same_bits_each_time(name: str) -> None:
    check_repeats(GROUPS[name])


@pytest.mark.parametrize("name", GROUPS)
def test_heads_of_a_group_share_tiles(name: str) -> None:
    """But where something would have to be kept for each key and head."""
    assert load_plan(GROUPS[name]).packs_heads == (name != "gains of keys by head")


@pytest.mark.parametrize(
    "name", ["plain", "groups of two", "sinks of heads", "normalize", "elementwise", "widths"]
)
def test_many_rows_are_merged_in_tiles(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module_of = cache.module_of

    def with_few(*arguments: Any) -> Any:
        module = module_of(*arguments)
        monkeypatch.setattr(module, "FEW_MERGED", 0)
        return module

    monkeypatch.setattr(cache, "module_of", with_few)
    check({**CASES, **GROUPS}[name])


@pytest.mark.parametrize("name", ["proved", "decode", "decode, one row", "normalize by head"])
def test_slots_taken_at_once(name: str) -> None:
    """More slots than are taken at once, also none of a row."""
    case = {**CASES, **GROUPS}[name]
    batch, heads, key_heads, rows, *_ = case.sizes
    blocks = torch.arange(40).expand(batch, key_heads if case.per_group else heads, rows, 40)
    lists = torch.where(blocks < (block_count(case) - 1), blocks, -1).roll(30, -1).int()
    if case.is_past:
        lists = torch.where(lists < (torch.arange(rows) // case.columns)[:, None], lists, -1)
    check(replace(case, lists=lists, slots=40))
