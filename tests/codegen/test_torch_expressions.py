"""Expressions as PyTorch text: brackets, plain Python numbers, shared and hoisted values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attndsl.codegen.expressions import Printer, hoist
from attndsl.codegen.library import torch_floordiv, torch_floormod
from attndsl.codegen.lines import Lines
from attndsl.codegen.scope import Plainness

import attndsl
from attndsl.ir.nodes import Node, constant, index, make, scalar, size, topological

Q, K = index("q"), index("k")
N, X, ON = scalar("n", "int"), scalar("x", "float"), scalar("on", "bool")


def leaf(node: Node, args: tuple[str, ...]) -> str:
    return node.name


def printer() -> Printer:
    return Printer("torch", leaf, spell=Plainness().spell)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (make("sub", Q, make("sub", K, N)), "q - (k - n)"),
        (make("sub", make("sub", Q, K), N), "q - k - n"),
        (make("mul", make("add", Q, K), constant(-2)), "(q + k) * -2"),
        (make("neg", make("neg", Q)), "--q"),
        (make("not", make("lt", Q, K)), "~(q < k)"),
        (make("not", ON), "not on"),
        (make("and", make("not", ON), make("lt", Q, K)), "(not on) & (q < k)"),
        (make("floordiv", Q, constant(4)), "q // 4"),
        (make("floordiv", Q, N), "torch_floordiv(q, n)"),
        (make("floormod", make("add", Q, K), constant(4)), "(q + k) % 4"),
        (make("min", Q, N), "q.clamp(max=n)"),
        (make("max", N, make("neg", Q)), "(-q).clamp(min=n)"),
        (make("min", N, size("Nk")), "min(n, Nk)"),
        (make("exp", X), "torch.exp(attn_tensor(x)).item()"),
        (
            make("div", X, make("to_float", N)),
            "(attn_tensor(x) / attn_tensor(float(n))).item()",
        ),
        (make("where", ON, X, constant(0.0)), "x if on else 0.0"),
        (make("where", ON, make("to_float", Q), X), "torch.where(attn_tensor(on), "),
        (make("mul", make("where", ON, X, constant(2.0)), X), "(x if on else 2.0) * x"),
        (constant(float("-inf")), 'float("-inf")'),
    ],
)
def test_text(node: Node, text: str) -> None:
    found = printer().text(node)
    assert found == text or (text.endswith(" ") and found.startswith(text))


def test_what_is_used_twice_gets_a_name() -> None:
    square = make("mul", make("add", Q, K), make("add", Q, K))
    lines = Lines()
    assert printer().write(lines, make("sub", square, Q)) == ["v0 * v0 - q"]
    assert lines.text() == "v0 = q + k\n"


def test_deep_expressions_are_split() -> None:
    node: Node = Q
    for step in range(500):
        node = make("sub", constant(step), node)
    lines = Lines()
    (text,) = printer().write(lines, node)
    names: dict[str, Any] = {"q": 5}
    exec(lines.text(), names)
    assert eval(text, names) == 250 + 5
    assert max(map(len, lines.text().splitlines())) < 100


def test_hoisting_takes_the_largest_value_of_each_level() -> None:
    rows = make("mul", make("add", Q, N), Q)
    pair = make("lt", make("sub", rows, K), make("mul", N, N))

    def level_of(node: Node) -> int:
        return 2 if "k" in node.varies else 1 if node.varies else 0

    assert hoist([pair], level_of, 3) == ((make("mul", N, N),), (rows,), ())


def test_plain_values_are_python_numbers() -> None:
    """Whatever counts as plain evaluates to a Python number, and nothing else does."""
    plainness = Plainness()
    roots = [
        make("where", ON, make("floordiv", N, size("Nk")), make("abs", N)),
        make("sqrt", make("mul", X, make("to_float", N))),
        make("and", ON, make("lt", N, constant(3))),
        make("where", make("not", ON), make("exp", X), X),
    ]
    names = {"n": 3, "x": 0.5, "on": True, "Nk": 0, "torch": torch, "attn_tensor": torch.tensor}
    names |= {"torch_floordiv": torch_floordiv}
    for node in topological(*roots):
        value = eval(Printer("torch", leaf, spell=plainness.spell).text(node), dict(names))
        assert isinstance(value, torch.Tensor) != plainness.is_plain(node), node


@pytest.mark.parametrize("divide", [torch_floordiv, torch_floormod])
def test_floor_division_is_pythons_and_total(divide: Any) -> None:
    for y in range(-4, 5):
        for x in range(-9, 10):
            want = 0 if y == 0 else x // y if divide is torch_floordiv else x % y
            assert divide(x, y) == want
            assert int(divide(torch.tensor(x), y)) == want
            assert int(divide(x, torch.tensor(y))) == want


WRAPPING = {
    "comparison": ("mask k - q <= s * s * s * s * 8", ""),
    "quotient": ("mask k - q <= (s * s * s * 5) // (s * s) and (s * s * s) % 1000 > 0", ""),
    "negative": ("mask k - q <= -(s * s * s) and k + 2 > abs(s * s * s * s * 7)", ""),
    "branch": ("mask k <= (q if s * s * s * s > s * s * s else q + 3)", ""),
    "extremes": ("mask k <= q + min(s * s * s * s, 4) - max(s * s * s * 5, -3) % 7", ""),
    "table": ("mask t[k] * s * s * s * s <= s * s * s * s * 8 + q", "t: int[Nk], "),
    "index": (
        "score score + u[s * s * s * s % 8] + u[(s * s * s * s * 8 + k) % 8]",
        "u: float[8], ",
    ),
    "distance": ("score score + u[((q - k) * s * s * s + s * s * s * s * 5) % 8]", "u: float[8], "),
    "float": ("output out * (float(s * s * s * s * 3) * 1e-19)", ""),
    "sink": ("weights softmax(sink = float(s * s * s * 5) * 1e-19)", ""),
}


@pytest.mark.parametrize("s", [2**30 - 1, 1 - 2**30])
@pytest.mark.parametrize("name", WRAPPING)
def test_numbers_wrap_around_at_64_bits(name: str, s: int) -> None:
    """As entries of tensors do: Python's ints have no end."""
    statement, parameter = WRAPPING[name]
    text = f"attention a({parameter}s: int):\n    {statement}\n"
    attention = attndsl.compile(text=text, backend="torch")
    query = torch.linspace(-1, 1, 2 * 9 * 8).reshape(1, 2, 9, 8).requires_grad_()
    given = {"t": torch.arange(9) * 2**40, "u": torch.linspace(-1, 1, 8)}
    given = {n: x for n, x in given.items() if f"{n}:" in parameter}
    found, wanted = (
        call(query, query, query, s=s, **given) for call in (attention, attention.reference)
    )
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.square().sum(), query) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)
