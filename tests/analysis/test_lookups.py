"""Proofs that lookups are in range, and warnings where there is none."""

from __future__ import annotations

import itertools

import pytest

from attndsl.analysis.lookups import (
    NOT_EMPTY,
    WHERE_KEPT,
    assumed_lookups,
    is_in_range,
    lookups_of,
    prove,
    unproved_lookups,
)
from attndsl.analysis.warnings import is_never_true, warnings_of
from attndsl.ir.nodes import Node, constant
from attndsl.ir.program import Program
from attndsl.semantics import analyse
from attndsl.source import Source
from tests.analysis.masks import CAUSAL, WINDOW, K, Q, W, every, node

HEAD = "attention test({parameters}):\n"


def program(parameters: str, *statements: str) -> Program:
    text = HEAD.format(parameters=parameters) + "".join(f"    {s}\n" for s in statements)
    return analyse(Source("test.attn", text), None, {})


PROVED = [
    ("bias: float[H]", ["score score + bias[h]"], ()),
    ("bias: float[Hk]", ["score score + bias[h // G]"], ()),
    ("bias: float[B, H]", ["score score + bias[b, h]"], ()),
    ("bias: float[8]", ["score score + bias[(q - k) % 8]"], ()),
    ("bias: float[8]", ["score score + bias[clamp(q - k, 0, 7)]"], ()),
    (
        "bias: float[2 * R + 1], R: int",
        ["mask abs(q - k) <= R", "score score + bias[q - k + R]"],
        (WHERE_KEPT,),
    ),
    ("bias: float[2 * R + 1], R: int", ["score score + bias[clamp(q - k, -R, R) + R]"], ()),
    ("bias: float[2 * R + 1], R: int", ["score score + bias[(q - k) % (2 * R + 1)]"], ()),
    ("bias: float[w], w: int", ["mask 0 <= q - k < w", "score score + bias[q - k]"], (WHERE_KEPT,)),
    ("bias: float[n]", ["score score + bias[clamp(q - k, 0, n - 1)]"], (NOT_EMPTY,)),
    ("bias: float[Nk]", ["score score + bias[k]"], ("while k_offset is 0",)),
    ("bias: float[Nq, Nk]", ["score score + bias[0, k // 2]"], ("while k_offset is 0",)),
    ("bias: float[16]", ["score score + bias[k % 4 * 4 + q % 4]"], ()),
    ("bias: float[9]", ["score score + bias[4 if q < k else q % 9]"], ()),
    ("bias: float[9]", ["score score + bias[k - q if q <= k and k < q + 9 else 0]"], ()),
    (
        "bias: float[2 * w - 1], w: int",
        ["mask q // w == k // w", "score score + bias[q - k + w - 1]"],
        (WHERE_KEPT,),
    ),
]


@pytest.mark.parametrize(("parameters", "statements", "assumes"), PROVED)
def test_proved(parameters: str, statements: list[str], assumes: tuple[str, ...]) -> None:
    found = program(parameters, *statements)
    for lookup in lookups_of(found):
        last = len(lookup.args) - 1
        proof = prove(found, lookup, last)
        assert proof is not None and proof.assumes == assumes
        assert is_in_range(found, lookup, last) == (set(assumes) <= {WHERE_KEPT})
    assert not warnings_of(found)


UNPROVED = [
    ("bias: float[H]", ["score score + bias[h + 1]"], "beyond the last entry"),
    ("bias: float[H]", ["score score + bias[h - 1]"], "below 0"),
    ("bias: float[R], R: int", ["mask abs(q - k) <= R", "score score + bias[q - k + R]"], "beyond"),
    ("bias: float[8], t: int[B]", ["score score + bias[t[b]]"], "looked up"),
    ("bias: float[8]", ["score score + bias[q % 9]"], "beyond"),
    ("bias: float[Nk]", ["score score + bias[q]"], "beyond"),
    ("bias: bool[8]", ["mask bias[q - k]"], "below 0 or beyond"),
]


@pytest.mark.parametrize(("parameters", "statements", "reason"), UNPROVED)
def test_unproved(parameters: str, statements: list[str], reason: str) -> None:
    found = program(parameters, *statements)
    assert len(unproved_lookups(found)) == 1
    assert reason in unproved_lookups(found)[0][3]
    (warning,) = warnings_of(found)
    assert warning.code == "W201" and warning.line == 1 + len(statements)


def test_a_sink_does_not_rely_on_the_mask() -> None:
    found = program("s: float[4]", "mask 0 <= q and q < 4", "weights softmax(sink = s[q])")
    assert unproved_lookups(found)


def test_assumptions_are_told() -> None:
    found = program("gate: float[B, H, Nq]", "score score + gate[b, h, q]")
    ((_, axis, _, reason),) = assumed_lookups(found)
    assert axis == 2 and reason == "in range while q_offset is 0"


NEVER = {
    "false": constant(False),
    "two halves": every(node("lt", K, Q), node("lt", Q, K)),
    "a remainder": node("eq", node("floormod", Q, 4), 5),
    "either way": every(
        node("or", node("lt", node("add", Q, 5), K), node("lt", node("add", K, 5), Q)),
        node("le", node("abs", node("sub", Q, K)), 3),
    ),
    "a cycle": every(node("lt", Q, W), node("lt", W, K), node("le", K, Q)),
}


@pytest.mark.parametrize("name", NEVER)
def test_masks_that_are_never_true(name: str) -> None:
    assert is_never_true(NEVER[name])


@pytest.mark.parametrize("mask", [CAUSAL, WINDOW, node("eq", node("floormod", Q, 4), 3)])
def test_masks_that_may_be_true(mask: Node) -> None:
    assert not is_never_true(mask)


def test_never_true_is_claimed_only_where_it_holds() -> None:
    """Over all pairs of small comparisons."""
    terms = [node("sub", Q, K), node("sub", K, Q), node("mul", 2, node("sub", Q, K)), Q]
    for x, y in itertools.product(terms, terms):
        for a, b in itertools.product(range(-3, 4), range(-3, 4)):
            mask = every(node("le", x, a), node("le", b, y))
            if is_never_true(mask):
                values = _values(mask)
                assert not values.any()


def _values(mask: Node):  # type: ignore[no-untyped-def]
    from tests.analysis.evaluate import mask_matrix
    from tests.analysis.masks import world

    return mask_matrix(mask, world(0), range(-9, 10))


def test_warnings_about_mask_and_parameters() -> None:
    found = program("w: int = 3, unused: int = 4, t: float[H]", "mask q < k and k < q and q < w")
    assert [w.code for w in warnings_of(found)] == ["W203", "W203", "W202"]
    assert [w.line for w in warnings_of(found)] == [1, 1, 2]
    assert "`unused`" in warnings_of(found)[0].message


def test_a_parameter_of_a_shape_has_an_effect() -> None:
    found = program("w: int, t: float[w]", "score score + t[clamp(k, 0, w - 1)]")
    assert not warnings_of(found)
