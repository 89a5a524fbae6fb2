"""Ranges as people read them: cases, guards left out, remainders by name, terms in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attndsl
from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW
from attndsl.ir.nodes import bound, constant, index, lookup, make, scalar, size
from attndsl.report.tiles.ends import ends_text, positions_first, with_extremes, without_guards
from attndsl.report.tiles.formulas import formula
from tests.report.test_explain import section

NAMES = {"lo": "k_lo", "hi": "k_hi"}
LOW, HIGH, W, S = bound("lo"), bound("hi"), scalar("w", "int"), scalar("s", "int")
FIRST, LAST = constant(EVERYTHING_LOW), constant(EVERYTHING_HIGH)
ENTRY = lookup("l", "int", index("h"))


def explained(text: str, **call: Any) -> str:
    told = attndsl.compile(text=text).explain(Nq=512, Nk=512, **call)
    return section(told, "needed by a tile")


@pytest.mark.parametrize(
    ("mask", "lines"),
    [
        (
            "k < base",
            [
                "keys     first .. base - 1",
                "queries  all if k_lo < base, else nothing",
                "full   all if k_hi < base, else nothing",
            ],
        ),
        (
            "k < base or 0 <= q - k < w",
            [
                "queries  all if k_lo < base, else k_lo .. k_hi + w - 1",
                "full   k_hi .. max(k_lo, base) + w - 1 if base <= k_hi, else all",
            ],
        ),
        (
            "(k - 3) % s < w",
            [
                "queries  all if least((k - 3) % s) < w, else nothing",
                "full   all if greatest((k - 3) % s) < w, else nothing",
                "least(...), greatest(...): over the positions of the tile",
            ],
        ),
        ("abs(q - k) < w", ["keys     q_lo - w + 1 .. q_hi + w - 1"]),
        (
            "0 <= q - k < l[h]",
            ["keys     q_lo - l[h] + 1 .. q_hi\n", "full   k_hi .. k_lo + l[h] - 1"],
        ),
        (
            "k < l[h] + base and k <= q",
            ["keys     first .. min(", "as long as entries of tables fit 32 bits"],
        ),
    ],
)
def test_ranges_read_as_conditions(mask: str, lines: list[str]) -> None:
    text = f"attention a(base: int = 9, w: int = 40, s: int = 50, l: int[H]):\n    mask {mask}"
    told = explained(text, H=2, l=torch.tensor([3, 50]))
    for line in lines:
        assert line in told
    assert "inf" not in told and "1073" not in told and "2147483" not in told


def where(condition: Any, then: Any, other: Any) -> Any:
    return make("where", condition, then, other)


def test_cases_of_both_ends_are_told_together() -> None:
    near, far = make("lt", LOW, W), make("lt", HIGH, S)
    start = where(near, FIRST, LOW)
    assert (
        ends_text(start, where(near, LAST, HIGH), NAMES) == "all if k_lo < w, else k_lo .. k_hi - 1"
    )
    start, end = where(near, LAST, LOW), where(near, FIRST, HIGH)
    assert ends_text(start, end, NAMES) == "k_lo .. k_hi - 1 if w <= k_lo, else nothing"
    assert ends_text(where(near, LOW, FIRST), where(far, HIGH, LAST), NAMES).startswith("by cases")
    start = where(near, where(far, LOW, W), FIRST)
    assert (
        ends_text(start, LAST, NAMES)
        == "all if w <= k_lo, else k_lo .. last if k_hi < s, else w .. last"
    )


def test_guards_and_clips_are_left_out_and_nothing_else() -> None:
    fits = make(
        "and", make("le", constant(-(2**31)), ENTRY), make("le", ENTRY, constant(2**31 - 1))
    )
    clipped = make("max", make("min", ENTRY, constant(2**30 + 5)), constant(-(2**30) - 5))
    assert without_guards(clipped) is ENTRY
    for node in (
        make("min", ENTRY, constant(4096)),
        make("max", ENTRY, constant(2**30)),
        make("le", ENTRY, constant(-(2**31))),
        make("le", constant(2**31), ENTRY),
        make("le", ENTRY, W),
    ):
        assert without_guards(node) is node
    assert "2147483647" not in formula(without_guards(where(fits, clipped, LAST)))


def test_only_known_extremes_of_a_remainder_get_a_name() -> None:
    def remainder(end: Any, quotient: Any, other: Any) -> Any:
        same = make("eq", make("floordiv", LOW, S), make("floordiv", HIGH, quotient))
        return where(same, make("floormod", end, S), other)

    least = make("min", make("add", S, constant(1)), constant(0))
    assert formula(with_extremes(remainder(LOW, S, least), "k")) == "least(k % s)"
    assert formula(with_extremes(remainder(HIGH, S, constant(9)), "k")) == "greatest(k % s)"
    for other in (remainder(LOW, W, least), remainder(LOW, S, W)):
        assert with_extremes(other, "k") is other


def test_positions_come_first_in_sums() -> None:
    one = constant(1)
    cases = [
        (make("sub", make("add", W, HIGH), one), "k_hi + w - 1"),
        (make("add", make("sub", LOW, W), one), "k_lo - w + 1"),
        (make("sub", W, LOW), "w - k_lo"),
        (make("add", size("Nk"), make("sub", W, one)), "Nk + w - 1"),
        (make("add", W, make("mul", S, make("floordiv", LOW, S))), "s * (k_lo // s) + w"),
    ]
    values = {"k_lo": 11, "k_hi": 17, "w": 5, "s": 3, "Nk": 100}
    for node, text in cases:
        found = formula(positions_first(node), NAMES)
        assert eval(found, {}, values) == eval(formula(node, NAMES), {}, values)
        assert found == text or node.args[0].op == "size"


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        ("k <= q * c", "line 2: `k <= q * c`: floats are compared by their range over a tile"),
        (
            "q // w <= k and k * k <= q",
            "line 2: `q // w <= k`, `k * k <= q`: each may be met in a tile, but by different",
        ),
    ],
)
def test_every_loss_has_a_line_and_a_condition(mask: str, line: str) -> None:
    text = f"attention a(w: int = 7, c: float = 0.5):\n    mask {mask}"
    told = attndsl.compile(text=text).explain(Nq=512, Nk=512)
    cost = section(told, "what costs a better answer")
    assert line in cost
    assert all(row.startswith(("  line", "  tiles", "  here")) for row in cost.splitlines()[1:])
