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
from tests.codegen.test_torch import Run, module_of, with_small_blocks
from tests.oracle.compare import difference, differentiate, oracle_function

TORCH = load("attndsl.codegen", "torch")
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
        f"attention f(listed: bool[B, H, Rows, Keys], q0: int[B], k0: int[B]{parameters}):\n"
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
    few: bool = False,
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
    source = with_small_blocks(source) if small else source
    if few:
        source = source.replace("\nFEW_ROWS = 8", "\nFEW_ROWS = 1000")
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
    "by head": (
        "wide[h] and k == q",
        "k < q and (wide[h] or q - k < 30)",
        "",
        ", wide: bool[X]",
        {"wide": torch.tensor([True, False] * 4)},
    ),
    "soft cap": (OWN, EARLIER, "    score 5.0 * tanh(score / 5.0)\n", "", {}),
    "sink": (
        OWN,
        EARLIER,
        "    weights softmax(sink = sink[h])\n",
        ", sink: float[S]",
        {"sink": table(8)},
    ),
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


BATCH = torch.tensor([3, 40])
CALLS: list[dict[str, Any]] = [
    {"q_offset": 20},
    {"q_offset": 5, "k_offset": 7},
    {"q_offset": -9, "k_offset": -5},
    {"q_offset": BATCH, "k_offset": BATCH - 9},
    {"k_len": BATCH},
    {"k_len": torch.tensor([0, 1000]), "q_offset": BATCH, "k_offset": BATCH},
]


@pytest.mark.parametrize("per_group", [False, True], ids=["per head", "per group"])
@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("name", ["moba", "false base", "rows and columns", "normalize", "by head"])
def test_positions(name: str, call: dict[str, Any], per_group: bool) -> None:
    check(*PROGRAMS[name], per_group=per_group, **call)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1, 1, 1),
        (2, 2, 1, 0, 5, 3, 3),
        (2, 2, 1, 5, 0, 3, 3),
        (1, 6, 2, 1, 40, 3, 8),
        (3, 3, 3, 17, 16, 4, 2),
        (0, 2, 1, 5, 5, 3, 3),
        (1, 8, 1, 33, 47, 2, 1),
        (2, 3, 1, 50, 100, 4, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("per_group", [False, True], ids=["per head", "per group"])
@pytest.mark.parametrize("name", ["moba", "false base", "sink", "normalize", "elementwise"])
def test_odd_sizes(name: str, sizes: tuple[int, ...], per_group: bool) -> None:
    check(*PROGRAMS[name], sizes=sizes, per_group=per_group)


@pytest.mark.parametrize("held", [1, 2, 9])
@pytest.mark.parametrize("columns", [1, 7, 64, 1000])
def test_lengths_of_blocks_and_lists(columns: int, held: int) -> None:
    check("k == q", "k != q", columns=columns, held=held, k_offset=3)


@pytest.mark.parametrize("name", ["moba", "false base", "normalize", "elementwise", "gate"])
def test_empty_lists(name: str) -> None:
    """Rows without a pair have no NaN, in values and gradients."""
    check(*PROGRAMS[name], lists=torch.full((2, 4, 70, 3), -1, dtype=torch.int32))


def test_numbers_that_are_no_block() -> None:
    """Nothing is read outside of the keys, and no other list changes."""
    random = torch.Generator().manual_seed(6)
    ends = ((0, 6), (6, 60), (-60, 0), (-(2**31), 2**31 - 1))
    lists = torch.stack([torch.randint(*e, (2, 4, 70), generator=random) for e in ends], -1).int()
    check(*PROGRAMS["moba"], lists=lists, k_offset=5)
    check(*PROGRAMS["moba"], lists=lists, k_offset=5, few=True)


def test_long_blocks_are_cut() -> None:
    """A tile never holds more scores than there is room for."""
    check(*PROGRAMS["false base"], columns=64, sizes=(1, 8, 1, 40, 300, 4, 4), per_group=True)


def test_weights_that_cancel() -> None:
    """`normalize` divides once: a part of a row whose weights add up to 0 still counts."""
    rest = "    weights normalize(k - 3.0)\n"
    lists = torch.zeros(1, 1, 7, 1, dtype=torch.int32) + 1
    check("k < 7", "k >= 7", rest, columns=7, sizes=(1, 1, 1, 7, 14, 3, 3), lists=lists)


def example() -> tuple[KernelPlan, dict[str, Any]]:
    program = program_of(OWN, EARLIER, "", "", constant(16), False)
    made = plan(program, Request(tensor_dtypes=("int32",)))
    return made, module_of(TORCH.emit(made))


def test_same_plan_gives_same_bytes() -> None:
    made, _ = example()
    assert TORCH.emit(made) == TORCH.emit(made)


def test_gradients_have_the_same_bits_each_time() -> None:
    _, module = example()
    random = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, 2, 300, 8, generator=random)
    rest = (0.3, 0, 0, None, (lists_of((2, 2, 300), 19, 4, random),), ())

    def results() -> list[Tensor]:
        out, _, stat = module["run_forward"](query, key, value, *rest)
        inputs = (torch.ones_like(out), None, query, key, value, out, stat)
        return [out, stat, *module["run_backward"](*inputs, *rest)]

    assert all(torch.equal(x, y) for x, y in zip(results(), results(), strict=True))


def tiles_of(base: str, extra: str, lists: Tensor, columns: int, size: int) -> list[Any]:
    program = program_of(base, extra, "", "", constant(columns), False)
    module = module_of(TORCH.emit(plan(program, Request(tensor_dtypes=("int32",)))))
    query, key, value = torch.zeros(3, *lists.shape[:2], size, 8)
    return list(module["run_routes"](query, key, value, 0.3, 0, 0, None, (lists,), ()))


def test_tiles_name_every_pair_once() -> None:
    """Rows of a tile are in order, and no pair of a list that may take part is left out."""
    random = torch.Generator().manual_seed(2)
    lists = lists_of((2, 3, 700), 44, 5, random)
    want = pairs_of(lists, 16, torch.zeros(2, dtype=torch.int64), 700, 3)
    found = torch.zeros_like(want, dtype=torch.int64)
    for (b0, b1, j0, j1, g0, g1), tiles in tiles_of("false", "true", lists, 16, 700):
        assert (b1, j1, g0, g1) == (b0 + 1, j0 + 1, 0, 1)
        for rows, chunks in tiles:
            assert (rows.diff() > 0).all()
            for first, end, masked in chunks:
                assert not masked
                found[b0, j0, rows, first:end] += 1
    assert torch.equal(found, want.long())


def test_masks_are_tested_where_they_decide() -> None:
    """Own blocks are left out where the rest of the mask has them, and whole blocks of the past are
    not masked."""
    size, columns = 2048, 128
    own = torch.arange(size) // columns
    lists = torch.stack([own, own - 1, own - 2], -1).clamp(min=-1).int()[None, None]
    mask = "k <= q and k // 128 {} q // 128"
    pairs = {True: 0, False: 0}
    for _, tiles in tiles_of(mask.format("=="), mask.format("!="), lists, columns, size):
        for rows, chunks in tiles:
            for first, end, masked in chunks:
                pairs[bool(masked)] += len(rows) * (end - first)
    assert pairs == {True: 0, False: (15 + 14) * columns**2}
    pairs = {True: 0, False: 0}
    for _, tiles in tiles_of("false", "k <= q", lists, columns, size):
        for rows, chunks in tiles:
            for first, end, masked in chunks:
                pairs[bool(masked)] += len(rows) * (end - first)
    assert pairs == {True: 16 * columns**2, False: (15 + 14) * columns**2}


def test_memory_is_linear_in_length() -> None:
    """40,000 tokens with one block of 64 each: scores of all pairs would be 6 GB."""
    size, columns = 40_000, 64
    random = torch.Generator().manual_seed(1)
    program = program_of("false", "k <= q", "", "", constant(columns), False)
    module = module_of(TORCH.emit(plan(program, Request(tensor_dtypes=("int32",)))))
    query, key, value = torch.randn(3, 1, 1, size, 8, generator=random)
    lists = torch.randint(-1, size // columns, (1, 1, size, 1), generator=random).int()
    rest = (0.3, 0, 0, None, (lists,), ())
    out, _, stat = module["run_forward"](query, key, value, *rest)
    for row in range(0, size, 1999):
        at = int(lists[0, 0, row, 0])
        keys = slice(at * columns, min((at + 1) * columns, row + 1))
        if at < 0 or keys.start >= keys.stop:
            assert stat[0, 0, row] == float("-inf") and not out[0, 0, row].any()
            continue
        logits = 0.3 * query[0, 0, row] @ key[0, 0, keys].T
        assert torch.allclose(out[0, 0, row], logits.softmax(-1) @ value[0, 0, keys], atol=1e-5)


@pytest.mark.parametrize("per_group", [False, True], ids=["per head", "per group"])
@pytest.mark.parametrize("columns", [64, 128, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float32_of_common_sizes(dtype: torch.dtype, columns: int, per_group: bool) -> None:
    """Tiles of sizes that oneDNN multiplies, and the short ones behind them."""
    random = torch.Generator().manual_seed(4)
    size, heads, key_heads = 1300, 4, 2
    shapes = ((1, n, size, 64) for n in (heads, key_heads, key_heads))
    inputs = [torch.randn(shape, generator=random).to(dtype).double() for shape in shapes]
    shape = (1, key_heads if per_group else heads, size)
    lists = lists_of(shape, -(-size // columns), 5, random)
    program = program_of("k == q", "k < q", "", "", constant(columns), per_group)
    name = str(dtype).removeprefix("torch.")
    module = module_of(TORCH.emit(plan(program, Request(dtype=name, tensor_dtypes=("int32",)))))
    rest = (0.125, 0, 0, None, (lists,), ())
    query, key, value = (x.to(dtype) for x in inputs)
    out, _, stat = module["run_forward"](query, key, value, *rest)
    grad = torch.randn(out.shape, generator=random).to(dtype)
    got = module["run_backward"](grad, None, query, key, value, out, stat, *rest)
    q, k, v = (x.requires_grad_() for x in inputs)
    pairs = pairs_of(lists, columns, torch.zeros(1, dtype=torch.int64), size, heads)
    kept = (pairs & torch.ones(size, size).tril(-1).bool()) | torch.eye(size).bool()
    scores = 0.125 * q @ k.repeat_interleave(2, 1).transpose(-1, -2)
    dense = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    want = (dense, *torch.autograd.grad(dense, (q, k, v), grad.double()))
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for found, expected in zip((out, *got), want, strict=True):
        assert found.dtype == dtype
        assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("per_group", [False, True], ids=["per head", "per group"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_few_rows(name: str, per_group: bool) -> None:
    """Rows that gather the columns which they list."""
    check(*PROGRAMS[name], sizes=(2, 4, 2, 40, 90, 6, 5), per_group=per_group, few=True)


@pytest.mark.parametrize("per_group", [False, True], ids=["per head", "per group"])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("name", ["moba", "rows and columns", "normalize", "by head"])
def test_positions_of_few_rows(
    name: str, call: dict[str, Any], small: bool, per_group: bool
) -> None:
    sizes = (2, 6, 2, 9, 90, 6, 5)
    check(*PROGRAMS[name], sizes=sizes, small=small, few=True, per_group=per_group, **call)


@pytest.mark.parametrize("columns", [1, 7, 64, 1000])
def test_lengths_of_blocks_of_few_rows(columns: int) -> None:
    check("k == q", "k != q", columns=columns, held=9, k_offset=3, few=True)
