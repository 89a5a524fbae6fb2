"""Lists of blocks in generated PyTorch modules, against dense float64: results, all gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attndsl.backend import load
from attndsl.ir.nodes import Node, constant
from attndsl.ir.program import Program, Routed
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify
from tests.codegen.test_torch import SMALL, Run, module_of
from tests.oracle.compare import difference, differentiate, oracle_function

TORCH = load("attndsl.codegen", "torch")
LISTED = "listed[b, h, q - q0, k]"  # in the oracle's programs: what the lists add, pair by pair
HEAD = "attention f(near: int[B, {heads}, Nq, T]{parameters}):\n    mask {mask}\n{rest}"


def compiled(text: str) -> Program:
    return simplify(analyse(Source("<text>", text), None, {}))


def program_of(
    base: str, extra: str, rest: str, parameters: str, columns: Node, per_group: bool
) -> Program:
    """The program whose mask is `base`, with lists of blocks that add the pairs of `extra`."""
    heads = "Hk" if per_group else "H"
    parts = {"heads": heads, "parameters": parameters, "rest": rest}
    masks = [compiled(HEAD.format(mask=mask, **parts)) for mask in (base, extra)]
    return replace(masks[0], routed=Routed("near", columns, masks[1].mask, per_group))


def dense(base: str, extra: str, rest: str, parameters: str) -> str:
    """The same for the oracle: `listed` says of a pair whether a list names it."""
    return (
        f"attention f(listed: bool[B, H, N, M], q0: int[B], k0: int[B]{parameters}):\n"
        f"    mask ({base}) or (({extra}) and listed[b, h, q - q0[b], k - k0[b]])\n{rest}"
    )


def lists_of(
    shape: tuple[int, int, int], blocks: int, held: int, random: torch.Generator
) -> Tensor:
    """Lists without repetition in any order, with -1 anywhere, some empty."""
    order = torch.rand(*shape, max(blocks, held), generator=random).argsort(-1)[..., :held]
    drop = torch.rand(order.shape, generator=random) < 0.25
    drop |= torch.rand(*shape, 1, generator=random) < 0.1
    return torch.where(drop | (order >= blocks), -1, order).int()


def pairs_of(lists: Tensor, columns: int, k_offset: Tensor, size: int, heads: int) -> Tensor:
    """bool [B, H, Nq, Nk]: is the block of the key in the list of the query."""
    position = torch.arange(size) + (k_offset % columns)[:, None]
    found = (lists[..., None] == (position // columns)[:, None, None, None, :]).any(-2)
    return found.repeat_interleave(heads // lists.shape[1], 1)


def request_of(program: Program, query: Tensor, value: Tensor, call: Mapping[str, Any]) -> Request:
    dtypes = {"float": "float64", "int": "int32", "bool": "bool"}
    return Request(
        dtype="float64",
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        grads=tuple(t.name for t in program.tensors if t.kind == "float"),
        per_batch=tuple(n for n, x in call.items() if isinstance(x, Tensor)),
        tensor_dtypes=tuple(dtypes[t.kind] for t in program.tensors),
    )


def check(
    base: str,
    extra: str,
    rest: str = "",
    parameters: str = "",
    given: Mapping[str, Any] | None = None,
    *,
    sizes: tuple[int, ...] = (2, 4, 2, 70, 90, 6, 5),
    columns: int = 16,
    held: int = 3,
    per_group: bool = False,
    small: bool = True,
    lists: Tensor | None = None,
    **call: Any,
) -> None:
    """Compare with the oracle. sizes: B, H, Hk, Nq, Nk, D, Dv."""
    random = torch.Generator().manual_seed(5)
    batch, heads, key_heads, rows, keys, width, value_width = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    query = normal(batch, rows, heads, width).transpose(1, 2)
    key = normal(batch, keys, key_heads, width).transpose(1, 2)
    value = normal(batch, keys, key_heads, value_width).transpose(1, 2)
    offsets = {name: call.get(name, 0) for name in ("q_offset", "k_offset")}
    q0, k0 = (torch.as_tensor(x).expand(batch) for x in offsets.values())
    blocks = int((keys - 1 + k0 % columns).max() // columns + 1) if batch and keys else 0
    if lists is None:
        lists = lists_of((batch, key_heads if per_group else heads, rows), blocks, held, random)
    program = program_of(base, extra, rest, parameters, constant(columns), per_group)
    made = plan(program, request_of(program, query, value, call))
    source = TORCH.emit(made)
    for old, new in SMALL.items() if small else ():
        source = source.replace(old, new)
    module = module_of(source)
    more = dict(given or {})
    scalars = tuple(more.get(s.name, s.default) for s in program.scalars)
    places = (width**-0.5, *offsets.values(), call.get("k_len"))

    def engine(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Any:
        tensors = [lists if t.name == "near" else others[t.name] for t in program.tensors]
        return Run.apply(module, made, (places, scalars), query, key, value, *tensors)

    inputs = {"query": query, "key": key, "value": value, **more}
    wants_lse = made.form == "softmax"
    listed = {"listed": pairs_of(lists, columns, k0, keys, heads), "q0": q0, "k0": k0}
    text = dense(base, extra, rest, parameters)
    want = differentiate(
        oracle_function(text, "<text>", None, call), {**inputs, **listed}, wants_lse
    )
    wrong = difference(differentiate(engine, inputs, wants_lse), want, 1e-9, 1e-3)
    assert not wrong, wrong + "\n" + source


def table(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OWN = "k <= q and k // 16 == q // 16"
EARLIER = "k <= q and k // 16 != q // 16"
PROGRAMS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "moba": (OWN, EARLIER, "", "", {}),
    "lists alone": ("k < q - 1000", "k <= q", "", "", {}),
    "false base": ("false", "k <= q", "", "", {}),
    "all listed pairs": ("false", "true", "", "", {}),
    "or a window": ("abs(q - k) < 9", "abs(q - k) >= 9", "", "", {}),
    "documents": (
        "doc[b, q] == doc[b, k] and q == k",
        "doc[b, q] == doc[b, k] and k < q",
        "",
        ", doc: int[B, N]",
        {"doc": (torch.arange(120) // 41).expand(2, 120).int()},
    ),
    "by head": ("wide[h] and k == q", "k < q", "", ", wide: bool[H]", {"wide": torch.tensor([True, False] * 4)}),
    "soft cap": (OWN, EARLIER, "    score 5.0 * tanh(score / 5.0)\n", "", {}),
    "sink": (OWN, EARLIER, "    weights softmax(sink = sink[h])\n", ", sink: float[S]", {"sink": table(8)}),
    "normalize": (OWN, EARLIER, "    weights normalize(1 + score + score ** 2 / 2)\n", "", {}),
    "elementwise": (
        OWN,
        EARLIER,
        "    weights score * sigmoid(decay[h]) ** (q - k)\n",
        ", decay: float[R]",
        {"decay": table(8)},
    ),
    "gate": (
        OWN,
        EARLIER,
        "    output out * sigmoid(gate[b, h, q]) + w[h, d] * tanh(out)\n",
        ", gate: float[X, Y, Z], w: float[Y, V]",
        {"gate": table(2, 8, 120), "w": table(8, 9)},
    ),
    "rows and columns": (
        OWN,
        EARLIER,
        "    score score * x[h, q] + sin(y[b, k]) * z[h]\n",
        ", x: float[X, Y], y: float[W, Y], z: float[X]",
        {"x": table(8, 120), "y": table(2, 120), "z": table(8)},
    ),
    "distance": (
        OWN,
        EARLIER,
        "    score score + bias[h, q - k + R // 2]\n",
        ", bias: float[X, R]",
        {"bias": table(8, 51)},
    ),
    "dense bias": (
        OWN,
        EARLIER,
        "    score score + bias[b, h, q, k]\n",
        ", bias: float[W, X, Y, Y]",
        {"bias": table(2, 8, 100, 100)},
    ),
    "through a table": (
        OWN,
        EARLIER,
        "    score score + bias[ids[b, q], ids[b, k]]\n",
        ", ids: int[W, Y], bias: float[M, M]",
        {"ids": (torch.arange(240).view(2, 120) * 7 % 11).int(), "bias": table(10, 10)},
    ),
    "dot by distance": (
        OWN,
        EARLIER,
        "    score score + dot(query, rel[h, min(q - k, R - 1)])\n",
        ", rel: float[X, R, D]",
        {"rel": table(8, 9, 6)},
    ),
    "dot by key": (
        OWN,
        EARLIER,
        "    score score + dot(query, rel[k // 2 + b]) * tanh(dot(query, u[h]))\n",
        ", rel: float[X, D], u: float[Y, D]",
        {"rel": table(20, 6), "u": table(8, 6)},
    ),
    "masked by score": (
        OWN,
        EARLIER,
        "    score -inf if bias[k] < -0.5 else score + log(bias[k] + 0.5)\n",
        ", bias: float[X]",
        {"bias": table(120)},
    ),
}


@pytest.mark.parametrize("per_group", [False, True], ids=["per head", "per group"])
@pytest.mark.parametrize("small", [True, False], ids=["small tiles", "tiles as generated"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_with_oracle(name: str, small: bool, per_group: bool) -> None:
    base, extra, rest, parameters, given = PROGRAMS[name]
    check(base, extra, rest, parameters, given, small=small, per_group=per_group)
