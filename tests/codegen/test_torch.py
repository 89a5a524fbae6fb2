"""Generated PyTorch modules against the oracle, in float64: results and all gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attndsl.backend import load
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan, Order, Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify
from tests.oracle.compare import difference, differentiate, oracle_function

TORCH = load("attndsl.codegen", "torch")
# Small blocks, so that a few hundred tokens meet many of them, and several chunks in each.
SMALL = {"ROWS": 16, "WIDTH": 8, "ROOM": 1024, "LEAST_COLUMNS": 24}


def with_small_blocks(source: str) -> str:
    """A module with other numbers at its top."""
    for name, number in SMALL.items():
        source = re.sub(rf"^{name} = \d+", f"{name} = {number}", source, flags=re.MULTILINE)
    return source


def compiled(text: str) -> Program:
    return simplify(analyse(Source("<text>", text), None, {}))


def request(program: Program, query: Tensor, value: Tensor, call: Mapping[str, Any]) -> Request:
    floats = tuple(t.name for t in program.tensors if t.kind == "float")
    dtypes = {"float": "float64", "int": "int64", "bool": "bool"}
    return Request(
        dtype="float64",
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        grads=floats,
        per_batch=tuple(
            n for n in ("q_offset", "k_offset", "k_len") if isinstance(call.get(n), Tensor)
        ),
        tensor_dtypes=tuple(dtypes[t.kind] for t in program.tensors),
    )


def module_of(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(text, "<generated>", "exec"), names)
    return names


class Run(torch.autograd.Function):
    """The generated functions as a differentiable one."""

    @staticmethod
    def forward(ctx: Any, module: Any, made: KernelPlan, rest: Any, *inputs: Tensor) -> Any:
        query, key, value, *tensors = inputs
        out, raw, stat = module["run_forward"](query, key, value, *rest[0], tuple(tensors), rest[1])
        ctx.saved = (module, made, rest, inputs, out if made.program.output is None else raw, stat)
        return out, stat

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_stat: Tensor) -> Any:
        module, made, rest, (query, key, value, *tensors), raw, stat = ctx.saved
        grads = module["run_backward"](
            grad_out,
            grad_stat if made.form == "softmax" else None,
            *(query, key, value, raw, stat),
            *(*rest[0], tuple(tensors), rest[1]),
        )
        named = dict(zip(made.request.grads, grads[3:], strict=True))
        return None, None, None, *grads[:3], *(named.get(t.name) for t in made.program.tensors)


def check(
    text: str,
    arguments: Mapping[str, Any] | None = None,
    small: bool = True,
    sizes: tuple[int, ...] = (2, 4, 2, 70, 90, 6, 5),
    order: Order = "linear",
    **call: Any,
) -> None:
    """Compare with the oracle. sizes: B, H, Hk, Nq, Nk, D, Dv."""
    random = torch.Generator().manual_seed(3)
    batch, heads, key_heads, rows, columns, width, value_width = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    # Stored as [batch, row, head, element], as a projection leaves them.
    query = normal(batch, rows, heads, width).transpose(1, 2)
    key = normal(batch, columns, key_heads, width).transpose(1, 2)
    value = normal(batch, columns, key_heads, value_width).transpose(1, 2)
    program = compiled(text)
    made = plan(program, replace(request(program, query, value, call), order=order))
    source = TORCH.emit(made)
    module = module_of(with_small_blocks(source) if small else source)
    given = dict(arguments or {})
    defaults = {s.name: s.default for s in program.scalars}
    scalars = tuple(given.get(s.name, defaults[s.name]) for s in program.scalars)
    places = (
        width**-0.5,
        call.get("q_offset", 0),
        call.get("k_offset", 0),
        call.get("k_len"),
    )

    def engine(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Any:
        tensors = [more[t.name] for t in program.tensors]
        return Run.apply(module, made, (places, scalars), query, key, value, *tensors)

    inputs = {"query": query, "key": key, "value": value, **given}
    wants_lse = made.form == "softmax"
    want = differentiate(oracle_function(text, "<text>", None, call), inputs, wants_lse)
    wrong = difference(differentiate(engine, inputs, wants_lse), want, 1e-9, 1e-3)
    assert not wrong, wrong + "\n" + source


def table(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CAUSAL = "attention f():\n    mask k <= q\n"
WINDOW = "attention f(window: int = 20):\n    mask 0 <= q - k < window\n"
DOCUMENT = "attention f(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k]\n"
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("attention f():\n    score score * 2\n", {}),
    "causal": (CAUSAL, {}),
    "window": (WINDOW, {}),
    "soft cap": (WINDOW + "    score 5.0 * tanh(score / 5.0)\n", {}),
    "nothing": ("attention f():\n    mask k < q - 1000\n", {}),
    "dilated": ("attention f():\n    mask (q - k) % 3 == 0 and k // 30 == q // 30\n", {}),
    "documents": (DOCUMENT, {"doc": (torch.arange(90) // 13).expand(2, 90)}),
    "by head": (
        "attention f(wide: bool[H]):\n    mask k <= q and (wide[h] or q - k < 9)\n",
        {"wide": torch.tensor([True, False, False, True])},
    ),
    "prefix": (
        "attention f(length: int[B]):\n    mask k <= q or k < length[b]\n",
        {"length": torch.tensor([20, 3])},
    ),
    "dense mask": (
        "attention f(allowed: bool[Nq, Nk]):\n    mask allowed[q, k]\n",
        {"allowed": torch.rand(70, 90, generator=torch.Generator().manual_seed(2)) < 0.3},
    ),
    "dense bias": (
        "attention f(bias: float[B, H, Nq, Nk]):\n    score score + bias[b, h, q, k]\n",
        {"bias": table(2, 4, 70, 90)},
    ),
    "transposed bias, too small": (
        "attention f(bias: float[K, H, Q]):\n    mask k <= q\n    score score * bias[k, h, q]\n",
        {"bias": table(60, 4, 50)},
    ),
    "distance": (
        "attention f(bias: float[H, R]):\n    score score + bias[h, q - k + R // 2]\n",
        {"bias": table(4, 51)},
    ),
    "distance, twice": (
        "attention f(bias: float[R]):\n    mask k <= q\n"
        "    score score * exp(bias[q - k] / 9) + bias[min(k - q + 7, 3)]\n",
        {"bias": table(30)},
    ),
    "rows and columns": (
        "attention f(x: float[H, Nq], y: float[B, Nk], z: float[H]):\n    mask k <= q\n"
        "    score score * x[h, q] + sin(y[b, k]) * z[h]\n",
        {"x": table(4, 70), "y": table(2, 90), "z": table(4)},
    ),
    "through a table": (
        "attention f(ids: int[B, N], bias: float[M, M]):\n"
        "    score score + bias[ids[b, q], ids[b, k]]\n",
        {"ids": torch.arange(180).view(2, 90) * 7 % 11, "bias": table(10, 10)},
    ),
    "dot by distance": (
        "attention f(rel: float[H, R, D]):\n    mask k <= q\n"
        "    score score + dot(query, rel[h, min(q - k, R - 1)])\n",
        {"rel": table(4, 9, 6)},
    ),
    "dot by key": (
        "attention f(rel: float[N, D], u: float[H, D]):\n"
        "    score score + dot(query, rel[k // 2 + b]) * tanh(dot(query, u[h]))\n",
        {"rel": table(20, 6), "u": table(4, 6)},
    ),
    "sink": (
        "attention f(sink: float[H]):\n    mask k < q - 3\n    weights softmax(sink = sink[h])\n",
        {"sink": table(4)},
    ),
    "normalize": (
        "attention f():\n    mask k <= q - 2\n    weights normalize(1 + score + score ** 2 / 2)\n",
        {},
    ),
    "elementwise": (
        "attention f(decay: float[H]):\n    mask k <= q\n"
        "    weights score * sigmoid(decay[h]) ** (q - k)\n",
        {"decay": table(4)},
    ),
    "gate": (
        "attention f(gate: float[B, H, Nq], w: float[H, V]):\n    mask k < q\n"
        "    output out * sigmoid(gate[b, h, q]) + w[h, d] * tanh(out)\n",
        {"gate": table(2, 4, 70), "w": table(4, 5)},
    ),
    "masked by score": (
        "attention f(bias: float[Nk]):\n    mask k <= q\n"
        "    score -inf if bias[k] < -0.5 else score + log(bias[k] + 0.5)\n",
        {"bias": table(90)},
    ),
    "elementwise, masked by score": (
        "attention f():\n    score score if score > 0 else -inf\n    weights score ** 2 + 1\n",
        {},
    ),
    "scalars": (
        "attention f(on: bool = true, n: int = 4, x: float = 0.5):\n"
        "    mask k // n <= q // n or not on\n"
        "    score (score if on else 2 * score) + min(x, sqrt(n)) * (1 if n > 3 else x)\n",
        {},
    ),
    "no query in the score": ("attention f():\n    mask k <= q\n    score sin(k / 3)\n", {}),
}


@pytest.mark.parametrize("small", [True, False], ids=["small blocks", "blocks as generated"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_with_oracle(name: str, small: bool) -> None:
    text, arguments = PROGRAMS[name]
    check(text, arguments, small)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1, 1, 1),
        (2, 2, 1, 0, 5, 3, 3),
        (2, 2, 1, 5, 0, 3, 3),
        (1, 6, 2, 1, 40, 3, 8),
        (3, 3, 3, 17, 16, 4, 2),
        (0, 2, 1, 5, 5, 3, 3),
        (1, 5, 1, 33, 7, 2, 1),
    ],
)
@pytest.mark.parametrize("name", ["causal", "sink", "normalize", "elementwise", "distance"])
def test_odd_sizes(name: str, sizes: tuple[int, ...]) -> None:
    text, arguments = PROGRAMS[name]
    cut = {n: t[: sizes[1]] if t.shape[0] == 4 else t for n, t in arguments.items()}
    if any(t.shape[0] != sizes[1] for t in cut.values()):
        cut = {n: torch.cat([t, t])[: sizes[1]] for n, t in cut.items()}
    check(text, cut, sizes=sizes)


BATCH = torch.tensor([3, 40])


@pytest.mark.parametrize(
    "call",
    [
        {"q_offset": 20},
        {"q_offset": -5, "k_offset": 7},
        {"q_offset": BATCH, "k_offset": BATCH - 9},
        {"k_len": BATCH},
        {"k_len": torch.tensor([0, 1000]), "q_offset": BATCH},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["causal", "window", "distance", "dense bias", "rows and columns"])
def test_positions(name: str, call: dict[str, Any]) -> None:
    text, arguments = PROGRAMS[name]
    check(text, arguments, **call)


def example_plan(text: str = WINDOW) -> KernelPlan:
    program = compiled(text)
    return plan(program, Request(grads=tuple(t.name for t in program.tensors if t.kind == "float")))


def test_same_plan_gives_same_bytes() -> None:
    assert TORCH.emit(example_plan()) == TORCH.emit(example_plan())


def test_module_imports_torch_only() -> None:
    text = TORCH.emit(example_plan())
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["from __future__ import annotations", "import math", "import torch"]
    assert TORCH.kernels(example_plan()) == ()


def test_program_text_stays_in_comments() -> None:
    """No line end that Python or an editor knows leaves a comment."""
    made = example_plan()
    odd = (
        "# coding: latin-1\x0c raise SystemExit\x0b raise SystemExit\x1c\u2028\r raise SystemExit\n"
    )
    program = replace(made.program, text=odd + WINDOW)
    text = TORCH.emit(replace(made, program=program))
    assert text.count("raise SystemExit") == 3
    for line in text.splitlines():
        if "SystemExit" in line or "latin-1" in line:
            assert line.startswith("#")
    module_of(text)


def test_memory_is_linear_in_length() -> None:
    """100,000 tokens: a dense mask would take 10 GB."""
    module = module_of(TORCH.emit(example_plan()))
    query, key, value = torch.randn(3, 1, 1, 100_000, 8)
    out, _, stat = module["run_forward"](query, key, value, 0.3, 0, 0, None, (), (64,))
    rows = slice(70_000, 70_001)
    window = slice(70_001 - 64, 70_001)
    logits = 0.3 * query[:, :, rows] @ key[:, :, window].transpose(-1, -2)
    assert torch.allclose(out[:, :, rows], logits.softmax(-1) @ value[:, :, window], atol=1e-5)
    assert torch.allclose(stat[:, :, rows], logits.logsumexp(-1), atol=1e-5)


def test_gradients_have_the_same_bits_each_time() -> None:
    text, arguments = PROGRAMS["through a table"]
    module = module_of(TORCH.emit(example_plan(text)))
    tensors = (arguments["ids"].repeat(1, 4), arguments["bias"].float())
    query, key, value = torch.randn(3, 2, 2, 300, 8)
    rest = (0.3, 0, 0, None, tensors, ())
    out, _, stat = module["run_forward"](query, key, value, *rest)

    def gradients() -> list[Tensor]:
        return list(
            module["run_backward"](torch.ones_like(out), None, query, key, value, out, stat, *rest)
        )

    assert all(torch.equal(x, y) for x, y in zip(gradients(), gradients(), strict=True))
