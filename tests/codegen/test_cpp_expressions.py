"""Every operation in C++ against its meaning in torch, on the values that are hard."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attndsl.codegen import library
from attndsl.codegen.cpp import build_library
from attndsl.codegen.cpp.functions import functions_text
from attndsl.codegen.cpp.prelude import prelude_text
from attndsl.codegen.cpp.values import Leaves, Values
from attndsl.codegen.expressions import Printer
from attndsl.codegen.scope import Plainness
from torch import Tensor

from attndsl.ir.nodes import OUT, SCORE, Node, constant, index, make
from attndsl.ir.ops import OPS
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify
from tests.codegen.cpp import compiler  # noqa: F401

INF, NAN = math.inf, math.nan
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 0.1, 1e-3, -1e-6, 20.0, -20.0]
FLOATS += [88.0, -88.0, 100.0, -100.0, 1e4, -1e4, 3e9, -3e9, 1e-30, 1e30, INF, -INF, NAN, 0.6, 0.7]
INTS = [0, 1, -1, 2, -2, 3, -3, 7, -7, 64, -64, 1000, -1000, 2**29 - 1, -(2**29) + 1]
LOOSE = {"exp": 4e-7, "exp2": 4e-7, "tanh": 4e-7, "sigmoid": 6e-7, "softplus": 6e-7, "erf": 1e-6}
Q, K = index("q"), index("k")


def nodes() -> dict[str, Node]:
    """One node for every operation and kind of argument, over two floats or two ints."""
    floats, ints = [SCORE, OUT], [Q, K]
    bools = {"b": [make("lt", Q, K), make("eq", Q, constant(0))]}
    found = {}
    for entry in OPS.values():
        for signature in entry.signatures:
            taken = {"f": iter(floats), "i": iter(ints), "b": iter(bools["b"] * 2)}
            args = [next(taken[letter]) for letter in signature.split("->")[0]]
            found[f"{entry.name} {signature}"] = make(entry.name, *args)
    by_seven = constant(7)
    found["floordiv by 7"] = make("floordiv", Q, by_seven)
    found["floormod by 7"] = make("floormod", Q, by_seven)
    found["neg neg"] = make("neg", make("neg", Q))
    found["sub of a negative"] = make("sub", Q, constant(-3))
    found["product beyond 32 bits"] = make("mul", Q, K)
    found["square"] = make("pow", SCORE, constant(2.0))
    return found


def some_plan(dtype: str) -> KernelPlan:
    program = simplify(analyse(Source("<text>", "attention a():\n    mask k <= q\n"), None, {}))
    return plan(program, Request(backend="cpp", dtype=dtype))


def source_of(made: KernelPlan) -> str:
    """C++ with one loop for each node: a vector of them, as the engine has."""
    leaves = {("index", "q"): "q[n]", ("index", "k"): "k[n]", ("score", ""): "x[n]"}
    values = Values(made, Leaves({**leaves, ("out", ""): "y[n]"}), is_wide=False)
    kinds = {"float": "double", "int": "int64_t", "bool": "int64_t"}
    bodies = [
        f'extern "C" void attn_run_{at}(const A *x, const A *y, const int32_t *q, '
        f"const int32_t *k, {kinds[node.kind]} *out, int64_t count) {{\n"
        f"    for (int64_t n = 0; n < count; ++n) out[n] = {values.text(node)};\n}}"
        for at, node in enumerate(nodes().values())
    ]
    body = "\n".join(bodies)
    return "\n".join((prelude_text(made), functions_text(body, made.accumulator), body))


def expected(node: Node, names: dict[str, Any]) -> Tensor:
    def leaf(node: Node, args: tuple[str, ...]) -> str:
        return node.name if node.op == "index" else node.op

    text = Printer("torch", leaf, spell=Plainness().spell).text(node)
    found = eval(text, {**vars(library), **names})
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operations(
    dtype: str,
    compiler: tuple[str, ...],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accumulator = getattr(torch, dtype)
    monkeypatch.setattr(library, "ACCUMULATOR", accumulator)
    flags = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
    source = source_of(some_plan(dtype))
    built = ctypes.CDLL(str(build_library.attn_build(source, tmp_path, flags)))
    x, y = torch.cartesian_prod(*(torch.tensor(FLOATS, dtype=accumulator),) * 2).unbind(1)
    q, k = torch.cartesian_prod(*(torch.tensor(INTS, dtype=torch.int32),) * 2).unbind(1)
    count = min(len(x), len(q))
    first = slice(0, count)
    wide = {"q": q[first].long(), "k": k[first].long(), "torch": torch}
    for place in range(0, len(x) - count + 1, count):  # all pairs of floats, the same pairs of ints
        part = slice(place, place + count)
        given = [t.contiguous() for t in (x[part], y[part], q[first], k[first])]
        for at, (name, node) in enumerate(nodes().items()):
            kind = torch.float64 if node.kind == "float" else torch.int64
            out = torch.empty(count, dtype=kind)
            pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*given, out)]
            getattr(built, f"attn_run_{at}")(*pointers, ctypes.c_int64(count))
            want = expected(node, {**wide, "score": given[0], "out": given[1]})
            same(name, out, want.to(kind), accumulator)


def same(name: str, got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Equal; floats of functions as near as their libraries are to each other."""
    if want.dtype == torch.int64:
        assert torch.equal(got, want), name
        return
    op = name.split()[0]
    tolerance = LOOSE.get(op, 2.5e-7) if dtype == torch.float32 else 1e-12
    if op in ("sin", "cos") and dtype == torch.float32:
        tolerance = 1e-6
    # What is below the smallest normal number may be 0.
    tiny = torch.finfo(dtype).tiny
    near = torch.isclose(got, want, rtol=tolerance, atol=4 * tiny, equal_nan=True)
    assert near.all(), (name, got[~near][:4], want[~near][:4])
