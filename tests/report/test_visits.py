"""Counted visits against what the loops are documented to do, and against enumeration."""

from __future__ import annotations

import pytest
import torch

import attndsl
from attndsl.plan.planner import plan
from attndsl.report.explain import explain
from attndsl.report.requests import request_for
from attndsl.report.visits import numbered, ranges_of, table_of_tiles, visits_of
from attndsl.runtime import views
from attndsl.runtime.arguments import slots_of

TEXTS = {
    "causal": "attention a():\n    mask k <= q",
    "window": "attention a(window: int = 100):\n    mask 0 <= q - k < window",
    "global": "attention a():\n    mask k <= q and (k < 40 or q - k < 90)",
    "two": "attention a():\n    mask k < 30 or k >= q",
    "none": "attention a():\n    score score",
}


def seen_by(attention, **sizes):
    sizes = {"B": 1, "H": 1, "Hk": 1, "D": 16, **sizes}
    offset = sizes.pop("q_offset", 0)
    k_len = sizes.pop("k_len", None)
    slots = slots_of(attention.program)
    return views.view(attention.program, slots, sizes, offset, 0, k_len, {})


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("sizes", [{"Nq": 500, "Nk": 500}, {"Nq": 70, "Nk": 301, "q_offset": 231}])
def test_every_needed_tile_is_visited_and_no_other_one_is_full(name, sizes):
    attention = attndsl.compile(text=TEXTS[name])
    request = request_for(attention.program, "sm_90", "bfloat16", 64, 64)
    made = plan(attention.program, request)
    seen = seen_by(attention, **sizes)
    mask = views.mask_pairs(attention.program, seen)[0, 0]
    for by_keys, config in ((False, made.forward), (True, made.backward_dkv)):
        block = (config.block_m, config.block_n)
        ranges = ranges_of(made, seen, block, by_keys=by_keys)
        for i in range(-(-sizes["Nq"] // block[0])):
            for j in range(-(-sizes["Nk"] // block[1])):
                tile = mask[i * block[0] :, j * block[1] :][: block[0], : block[1]]
                outer, inner = (j, i) if by_keys else (i, j)
                visits = sum(
                    int(r.first[0, 0, outer]) <= inner < int(r.last[0, 0, outer]) for r in ranges
                )
                full = any(
                    int(r.full_first[0, 0, outer]) <= inner < int(r.full_last[0, 0, outer])
                    for r in ranges
                )
                assert visits <= 1
                assert visits or not tile.any()
                assert not full or (visits and tile.all())


def test_a_causal_mask_visits_what_it_needs():
    attention = attndsl.compile(text=TEXTS["causal"])
    request = request_for(attention.program, "sm_90", "bfloat16", 64, 64)
    found = list(visits_of(plan(attention.program, request), seen_by(attention, Nq=1024, Nk=1024)))
    assert [visits.kernel for visits in found] == ["forward", "backward_dq", "backward_dkv"]
    forward = found[0]
    tiles = 1024 // forward.block[0]
    assert forward.block[0] == forward.block[1]
    assert forward.visited == forward.needed == tiles * (tiles + 1) // 2
    assert forward.full == tiles * (tiles - 1) // 2
    assert forward.total == tiles * tiles
    assert "backward_dkv" in table_of_tiles(found)


def test_k_len_limits_the_visits():
    attention = attndsl.compile(text=TEXTS["none"])
    request = request_for(attention.program, "sm_90", "bfloat16", 64, 64)
    lengths = torch.tensor([0, 130])
    seen = seen_by(attention, Nq=128, Nk=512, B=2, k_len=lengths)
    found = list(visits_of(plan(attention.program, request), seen))
    assert all(visits.visited == visits.needed for visits in found)


def test_ranges_are_sorted_and_do_not_overlap():
    ends = [
        [torch.tensor([[[30]]]), torch.tensor([[[61]]]), torch.tensor([[[40]]]), torch.tensor(61)],
        [torch.tensor([[[0]]]), torch.tensor([[[35]]]), torch.tensor([[[0]]]), torch.tensor(35)],
    ]
    found = [(int(r.first), int(r.last), int(r.full_first), int(r.full_last)) for r in
             numbered(ends, 10)]  # fmt: skip
    assert found == [(0, 4, 0, 3), (4, 7, 4, 6)]


def test_explain_of_every_weight_form_and_of_a_table():
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
    assert "line 3: `seen[k]` is data" in told
    assert "bias" in told.split("gradients")[1]


def test_explain_refuses_what_mask_refuses():
    attention = attndsl.compile(text=TEXTS["window"])
    with pytest.raises(attndsl.ArgumentError, match="did you mean"):
        explain(attention, Nq=8, Nk=8, windw=3)
    with pytest.raises(attndsl.ArgumentError, match="Nk"):
        explain(attention, Nq=8)


def test_explain_takes_the_width_from_a_tensor():
    text = "attention a(rel: float[8, D]):\n    score score + dot(query, rel[clamp(q - k, 0, 7)])"
    attention = attndsl.compile(text=text)
    assert "D = 64" in attention.explain(Nq=8, Nk=8)
    assert "D = 32" in attention.explain(Nq=8, Nk=8, rel=torch.zeros(8, 32))
