"""Pairs that take part, counted line by line: against the mask of every pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attndsl
from attndsl.report.tiles import pairs
from attndsl.report.tiles.pairs import count_by_lines
from tests.report.test_visits import planned, seen_by

BEGIN = "attention a(s: int = 7{more}):\n    mask "
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": (BEGIN.format(more="") + "0 <= q - k < 30", {}),
    "two ranges": (BEGIN.format(more="") + "k < 10 or abs(q - k) < 12", {"q_offset": 5}),
    "a hole": (BEGIN.format(more="") + "9 <= abs(q - k) < 40", {"B": 3}),
    "blocks": (BEGIN.format(more="") + "q // s == k // s", {}),
    "columns": (BEGIN.format(more="") + "k <= q and (q - k < 9 or k % s == 0)", {}),
    "rows": (BEGIN.format(more="") + "k <= q and (q - k < 9 or q % s == 0)", {}),
    "heads": (
        BEGIN.format(more=", reach: int[H]") + "0 <= q - k < reach[h]",
        {"H": 6, "reach": torch.tensor([0, 3, 1000, -5, 50, 51])},
    ),
    "lengths": (
        BEGIN.format(more="") + "k <= q + 3",
        {"k_len": torch.tensor([0, 50, 91]), "q_offset": torch.tensor([4, 0, -30])},
    ),
    "nothing": (BEGIN.format(more="") + "k < q and q < k", {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_lines_are_counted(name: str) -> None:
    text, call = CALLS[name]
    attention = attndsl.compile(text=text)
    sizes = {"B": 1, "H": 2, "Nq": 77, "Nk": 91, **call}
    if "k_len" in call:
        sizes["B"] = 3
    found = count_by_lines(planned(attention), seen_by(attention, **sizes))
    batches, heads = sizes["B"], sizes["H"]
    mask = attention.mask(**sizes).expand(batches, heads, 77, 91)
    assert found is not None and found.is_known
    assert found.count == int(mask.sum())


@pytest.mark.parametrize("mask", ["(q - k) % s == 0", "doc[q] == doc[k]"])
def test_what_segments_do_not_decide_is_not_counted(mask: str) -> None:
    attention = attndsl.compile(text=BEGIN.format(more=", doc: int[N]") + mask)
    seen = seen_by(attention, Nq=50, Nk=50, doc=torch.arange(50) // 9)
    assert count_by_lines(planned(attention), seen) is None


# In the second, three columns hold three quarters of the pairs.
@pytest.mark.parametrize(
    "mask", ["k <= q and (q - k < 9 or k % s == 0)", "k % 8192 == s or q == k"]
)
def test_a_sample_of_lines(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attndsl.compile(text=BEGIN.format(more="") + mask)
    made, seen = planned(attention), seen_by(attention, B=2, Nq=24_000, Nk=24_000, s=10)
    exact = count_by_lines(made, seen)
    monkeypatch.setattr(pairs, "MOST_STEPS", 100)
    monkeypatch.setattr(pairs, "SAMPLED", 90)
    about = count_by_lines(made, seen)
    assert exact is not None and about is not None and exact.is_known and not about.is_known
    assert about.error < 0.1
    assert abs(about.count - exact.count) <= 3 * about.error * exact.count
    monkeypatch.setattr(pairs, "SAMPLED", 1000)
    assert count_by_lines(made, seen) == exact


def test_ten_million_rows() -> None:
    length = 10 << 20
    attention = attndsl.compile(text="attention a():\n    mask 0 <= q - k < 100")
    found = count_by_lines(planned(attention), seen_by(attention, Nq=length, Nk=length, H=2))
    assert found is not None
    assert found.count == 2 * (100 * length - 99 * 100 // 2) == 2_097_142_100
