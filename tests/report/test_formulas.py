"""Formulas: the language's notation, with its precedences."""

from __future__ import annotations

import pytest

from attndsl.ir.nodes import bound, constant, dot, index, lookup, make, scalar, size
from attndsl.report.tiles.formulas import formula

Q, K, W = index("q"), index("k"), scalar("w", "int")
ONE = constant(1)


def sub(a, b):
    return make("sub", a, b)


CASES = [
    (sub(Q, sub(K, ONE)), "q - (k - 1)"),
    (sub(sub(Q, K), ONE), "q - k - 1"),
    (make("add", Q, constant(-3)), "q - 3"),
    (make("add", Q, make("neg", make("add", K, ONE))), "q - (k + 1)"),
    (make("mul", make("add", Q, ONE), constant(2)), "(q + 1) * 2"),
    (make("floordiv", Q, make("floordiv", K, W)), "q // (k // w)"),
    (make("neg", make("floordiv", Q, W)), "-(q // w)"),
    (make("not", make("lt", Q, K)), "q >= k"),
    (make("not", make("lt", scalar("x", "float"), constant(1.0))), "not x < 1.0"),
    (make("and", make("le", constant(0), sub(Q, K)), make("lt", sub(Q, K), W)), "0 <= q - k < w"),
    (make("or", make("and", make("eq", Q, K), make("lt", K, W)), make("ne", Q, W)), None),
    (make("max", constant(0), make("max", Q, K)), "max(0, q, k)"),
    (make("where", make("lt", Q, K), Q, make("where", make("lt", K, W), K, W)), None),
    (make("mul", make("to_float", Q), constant(0.5)), "q * 0.5"),
    (make("pow", make("neg", constant(2.0)), make("to_float", Q)), "(-2.0) ** q"),
    (lookup("doc", "int", index("b"), Q), "doc[b, q]"),
    (dot("rel", index("h"), sub(Q, K)), "dot(query, rel[h, q - k])"),
    (make("add", bound("lo"), size("Nk")), "q_lo + Nk"),
    (constant(float("inf")), "inf"),
    (constant(True), "true"),
]


@pytest.mark.parametrize(("node", "text"), CASES, ids=lambda value: "" if value is None else "")
def test_formula(node, text):
    written = formula(node, {"lo": "q_lo"})
    if text is not None:
        assert written == text
    else:
        assert written in (
            "q == k and k < w or q != w",
            "q if q < k else k if k < w else w",
        )


def test_a_formula_reads_back_to_the_same_value():
    node = make("floormod", sub(make("mul", Q, constant(3)), make("floordiv", K, constant(2))), W)
    names = {"q": 11, "k": 5, "w": 7}
    assert eval(formula(node), {}, names) == (11 * 3 - 5 // 2) % 7
