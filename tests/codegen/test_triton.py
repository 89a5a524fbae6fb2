"""The Triton generator in Triton's interpreter against the oracle, beyond the examples."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function

CAUSAL = "attention causal():\n    mask k <= q\n"
WINDOW = "attention window(w: int = 5):\n    mask 0 <= q - k < w\n"
PLAIN = "attention plain():\n    score score\n"
ALIBI = "attention alibi(slope: float[H]):\n    mask k <= q\n    score score - slope[h] * (q - k)\n"
RELATIVE = (
    "attention relative(bias: float[H, 2 * R + 1], R: int):\n"
    "    mask abs(q - k) <= R\n    score score + bias[h, q - k + R]\n"
)
DENSE = "attention dense(bias: float[H, Nq, Nk]):\n    score score + bias[h, q, k]\n"
TWICE = (
    "attention twice(bias: float[N], place: int[N]):\n"
    "    score score * bias[place[q]] + bias[place[k]] + bias[q - k]\n"
)
SINK = (
    "attention sinks(sink: float[H]):\n    mask k <= q and k != 0\n"
    "    weights softmax(sink = sink[h] + 0.1 * q)\n"
)
NORMALIZE = (
    "attention normal(decay: float[H]):\n    mask k < q\n"
    "    weights normalize(1 + score + decay[h] * score ** 2 / 2)\n"
)
ELEMENTWISE = (
    "attention elementwise(gain: float[N]):\n    mask (q + k) % 3 != 0\n"
    "    weights sigmoid(score - gain[k]) * gain[q]\n"
)
GATE = (
    "attention gated(gate: float[B, H, Nq], shift: float[Dv]):\n    mask k <= q\n"
    "    output out * sigmoid(gate[b, h, q]) + shift[d]\n"
)
DOT = (
    "attention dots(rel: float[H, M, D], own: float[M, D]):\n    mask k <= q\n"
    "    score score + dot(query, rel[h, min(q - k, M - 1)]) + dot(query, own[q % 3])\n"
)
MASKED_BY_SCORE = (
    "attention holes(bias: float[Nk]):\n    score score + (log(0.0) if k % 4 == 1 else bias[k])\n"
)
FUNCTIONS = (
    "attention functions(x: float[Nk], flag: bool = true):\n"
    "    let y = softplus(x[k]) + relu(score) + tanh(0.01 * score)\n"
    "    score erf(y) + abs(x[k]) ** 1.5 - y // 2 + y % 0.7 + (sin(y) if flag else cos(y))\n"
)
INTEGERS = (
    "attention integers(m: int = 3, zero: int = 0, big: int = 1000000000):\n"
    "    mask (k - q) // m % 4 != 1 and (q * k + big) // zero == 0 and q * big % 7 != 3\n"
)
BUCKETS = (
    "attention buckets(bias: float[H, 8]):\n"
    "    score score + bias[h, min(int(2 * log(1 + abs(q - k))), 7)]\n"
)
NESTED = (
    "attention nested(doc: int[B, Nk], kind: int[M], near: bool[Nq, Nk]):\n"
    "    mask kind[doc[b, k]] == 1 or near[q, k]\n"
)
NEVER = "attention never():\n    score -inf\n"
HEADS = (
    "attention heads(on: bool[H], bias: float[N], x: float[H]):\n    mask on[h]\n"
    "    score (score if x[h] < 0 else -inf) + bias[q - k + 3]\n"
)


@dataclass
class Case:
    """A call: sizes (batch, heads, key heads, Nq, Nk, D, Dv), parameters and arguments."""

    text: str
    sizes: tuple[int, ...] = (1, 2, 1, 33, 33, 16, 16)
    parameters: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    tolerance: float = 2e-3


def floats(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, key_heads, rows, columns, width, value_width = case.sizes
    return (
        floats(batch, heads, rows, width, seed=3),
        floats(batch, key_heads, columns, width, seed=4),
        floats(batch, key_heads, columns, value_width, seed=5),
    )


def check(case: Case, inputs: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
    query, key, value = inputs or inputs_of(case)
    wants_lse = is_softmax(case.text)
    attention = attndsl.compile(text=case.text, backend="triton")

    def compiled(**given: Any) -> Any:
        result = attention(**given, **case.call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    # Every dtype starts from numbers that it can hold.
    given = {"query": query, "key": key, "value": value, **case.parameters}
    given = {n: cast(cast(x, case.dtype), torch.float64) for n, x in given.items()}
    got = differentiate(compiled, {n: cast(x, case.dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_function(case.text, "<text>", None, case.call)
    wrong = difference(got, differentiate(oracle, given, wants_lse), case.tolerance, 0.1)
    assert not wrong, wrong


N33 = {"bias": floats(33), "place": ints(33, 33)}
CASES = {
    "grouped heads": Case(CAUSAL, (2, 6, 2, 33, 33, 16, 16)),
    "width 20": Case(CAUSAL, (1, 2, 1, 33, 33, 20, 12)),
    "width 72, values 40": Case(CAUSAL, (1, 2, 2, 17, 33, 72, 40)),
    "width 8": Case(CAUSAL, (1, 1, 1, 17, 33, 8, 80)),
    "bottom right": Case(CAUSAL, (1, 2, 1, 17, 49, 16, 16), call={"q_offset": 32}),
    "negative offset": Case(WINDOW, call={"q_offset": -7, "k_offset": 3}),
    "empty rows": Case(CAUSAL, (1, 2, 1, 33, 17, 16, 16), call={"k_offset": 5}),
    "no key for any row": Case(CAUSAL, call={"k_offset": 50}),
    "window": Case(WINDOW, parameters={"w": 40}),
    "window of none": Case(WINDOW, parameters={"w": 0}),
    "largest window": Case(WINDOW, parameters={"w": 2**30 - 1}),
    "offsets of each sequence": Case(
        CAUSAL,
        (3, 2, 1, 17, 33, 16, 16),
        call={"q_offset": torch.tensor([16, -2, 40]), "k_offset": torch.tensor([0, 5, 0])},
    ),
    "lengths of each sequence": Case(
        CAUSAL, (3, 2, 1, 33, 33, 16, 16), call={"k_len": torch.tensor([33, 0, 18])}
    ),
    "lengths, no mask": Case(
        PLAIN, (3, 2, 1, 17, 49, 16, 16), call={"k_len": torch.tensor([99, 1, 31])}
    ),
    "negative scale": Case(CAUSAL, call={"scale": -0.4}),
    "scale 0": Case(CAUSAL, call={"scale": 0.0}),
    "alibi": Case(ALIBI, parameters={"slope": floats(2)}),
    "relative": Case(RELATIVE, parameters={"bias": floats(2, 13), "R": 6}),
    "dense": Case(DENSE, (2, 2, 1, 17, 33, 16, 16), {"bias": floats(2, 17, 33)}),
    "one tensor in three places": Case(TWICE, parameters=N33),
    "sink": Case(SINK, parameters={"sink": floats(2)}),
    "great sink": Case(SINK, parameters={"sink": 200 * floats(2)}),
    "normalize": Case(NORMALIZE, parameters={"decay": floats(2).abs()}),
    "elementwise": Case(ELEMENTWISE, parameters={"gain": floats(33)}),
    "gate": Case(GATE, (2, 2, 1, 33, 17, 16, 20), {"gate": floats(2, 2, 33), "shift": floats(20)}),
    "gate without keys": Case(
        GATE, (1, 2, 1, 17, 0, 16, 16), {"gate": floats(1, 2, 17), "shift": floats(16)}
    ),
    "dot": Case(DOT, (2, 2, 1, 17, 17, 16, 16), {"rel": floats(2, 5, 16), "own": floats(5, 16)}),
    "scores of -inf": Case(MASKED_BY_SCORE, parameters={"bias": floats(33)}),
    "only scores of -inf": Case(NEVER),
    "conditions of heads": Case(
        HEADS,
        (1, 4, 2, 17, 17, 16, 16),
        {
            "on": torch.tensor([True, False, True, True]),
            "bias": floats(7),
            "x": torch.tensor([-1.0, -1.0, 1.0, -2.0], dtype=torch.float64),
        },
    ),
    "functions": Case(FUNCTIONS, parameters={"x": floats(33)}),
    "integers": Case(INTEGERS),
    "integers, negative positions": Case(INTEGERS, call={"q_offset": -20, "k_offset": -9}),
    "negative divisor": Case(INTEGERS, parameters={"m": -3, "big": -999999999}),
    "buckets": Case(BUCKETS, parameters={"bias": floats(2, 8)}),
    "tables of tables": Case(
        NESTED,
        (2, 2, 1, 17, 33, 16, 16),
        {
            "doc": ints(5, 2, 33).to(torch.int16),
            "kind": ints(2, 4).to(torch.uint8),
            "near": ints(5, 17, 33) == 0,
        },
    ),
    "float16": Case(ALIBI, parameters={"slope": floats(2)}, dtype=torch.float16, tolerance=1e-2),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("columns", [0, 1, 17, 32])
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_lengths(rows: int, columns: int) -> None:
    check(Case(CAUSAL, (1, 2, 1, rows, columns, 16, 16), call={"q_offset": columns - rows}))


def test_strided_inputs() -> None:
    query = floats(2, 33, 2, 16).transpose(1, 2)
    key = floats(1, 16, 33, 2).permute(3, 0, 2, 1)
    value = floats(2, 1, 66, 20)[:, :, ::2, 3:19]
    check(Case(CAUSAL, (2, 2, 1, 33, 33, 16, 16)), (query, key, value))


def test_expanded_and_transposed_tensors() -> None:
    text = "attention t(bias: float[H, Nq, Nk]):\n    score score + bias[h, q, k]\n"
    check(Case(text, parameters={"bias": floats(1, 33, 33).transpose(1, 2).expand(2, 33, 33)}))


def test_results_are_the_same_bits_each_time() -> None:
    case = CASES["relative"]
    query, key, value = (x.float() for x in inputs_of(case))
    attention = attndsl.compile(text=case.text, backend="triton")
    results = []
    for _ in range(2):
        bias = case.parameters["bias"].float().requires_grad_()
        attention(query, key, value, bias=bias, R=6).square().sum().backward()
        results.append(bias.grad)
    assert torch.equal(results[0], results[1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_gradients_are_not_hidden() -> None:
    """A gradient that no number stands for comes out as NaN, not as some finite number."""
    query, key, value = (x.float() for x in inputs_of(CASES["relative"]))
    bias = floats(2, 13).float().requires_grad_()
    out = attndsl.compile(text=RELATIVE, backend="triton")(query, key, value, bias=bias, R=6)
    (grad,) = torch.autograd.grad(out, bias, torch.full_like(out, torch.inf))
    assert torch.isnan(grad).any()


def test_text_is_python_that_stands_alone_and_does_not_change() -> None:
    for case in (CASES["relative"], CASES["dot"], CASES["gate"]):
        text = attndsl.compile(text=case.text, backend="triton").source("forward")
        assert text == attndsl.compile(text=case.text, backend="triton").source("forward")
        imports = [
            n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))
        ]
        names = {alias.name.split(".")[0] for n in imports for alias in n.names}
        assert names <= {"torch", "triton", "contextlib", "math"}
