"""Calls of few queries in Triton's interpreter: against the reference, however keys are split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import attndsl
from attndsl.backend import load
from attndsl.plan.planner import plan
from attndsl.plan.splits import attn_keys_reached, attn_splits
from attndsl.report.compiled.compile import CompiledKernel, Job, compile_jobs
from attndsl.report.requests import request_for
from attndsl.runtime import cache
from tests.codegen.visits import counting
from tests.oracle.compare import cast, difference, differentiate, is_softmax
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs

SELECTS = {name for name in NAMES if "select" in (FOLDER / f"{name}.attn").read_text("utf-8")}
PLAIN_NAMES = [name for name in NAMES if name not in SELECTS]
GENERATOR = load("attndsl.codegen", "triton")

RICH = (
    "attention rich(slope: float[H], sink: float[H], gate: float[H, M], w: int = 40):\n"
    "    mask 0 <= q - k < w or k < 3\n    score score - slope[h] * (q - k)\n"
    "    weights softmax(sink = sink[h])\n    output out * sigmoid(gate[h, q % M])\n"
)
CAUSAL = "attention causal():\n    mask k <= q\n"
NORMALIZE = (
    "attention normal(decay: float[H]):\n    mask k <= q\n"
    "    weights normalize(1 + score + decay[h] * score ** 2 / 2)\n"
)
ELEMENTWISE = (
    "attention elementwise(gain: float[H, N]):\n    mask (q + k) % 3 != 0\n"
    "    weights sigmoid(score - gain[h, k]) / (1 + q)\n"
)
DOCUMENTS = (
    "attention documents(doc: int[B, N], kind: int[H]):\n"
    "    mask doc[b, q] == doc[b, k] and (k <= q or kind[h] == 1)\n"
)
HEADS = "attention heads(near: int[H]):\n    mask 0 <= q - k < near[h]\n"

TEXTS = {
    "rich": RICH,
    "normalize": NORMALIZE,
    "elementwise": ELEMENTWISE,
    "lists": DOCUMENTS,
    "heads": HEADS,
}
KERNELS = ("decode", "decode_part", "decode_merge", "windows")
SHARED_LIMITS = {"sm_90": 227 * 1024, "sm_80": 99 * 1024, "gfx942": 64 * 1024}


@contextmanager
def split(parts: int) -> Iterator[list[ModuleType]]:
    """Calls split their keys into so many parts; the modules that they run."""
    module_of, seen = cache.module_of, []

    def patched(*request: Any) -> ModuleType:
        module = module_of(*request)
        seen.append(module)
        if hasattr(module, "attn_splits"):
            module.__dict__["attn_splits"] = lambda *_: parts
        return module

    with patch.object(cache, "module_of", patched):
        yield seen
    for module in seen:
        module.__dict__["attn_splits"] = attn_splits


@contextmanager
def launches(name: str) -> Iterator[list[int]]:
    """How often calls launch the kernel of a name: the one element of a list."""
    module_of, count = cache.module_of, [0]

    class Counted:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            count[0] += 1
            return self.kernel[grid]

    def patched(*request: Any) -> ModuleType:
        module = module_of(*request)
        kernel = module.__dict__.get(name)
        if kernel is not None and not isinstance(kernel, Counted):
            module.__dict__[name] = Counted(kernel)
        return module

    with patch.object(cache, "module_of", patched):
        yield count


def floats(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters_of(text: str, heads: int, batch: int, length: int) -> dict[str, Any]:
    if text is RICH:
        return {"slope": floats(heads).abs(), "sink": floats(heads), "gate": floats(heads, 5)}
    if text is NORMALIZE:
        return {"decay": floats(heads).abs()}
    if text is ELEMENTWISE:
        return {"gain": floats(heads, length + 1)}
    if text is DOCUMENTS:
        doc = torch.arange(length + 1).div(9, rounding_mode="floor").expand(batch, -1)
        return {"doc": doc.clone(), "kind": torch.arange(heads) % 2}
    return {"near": 1 + 7 * torch.arange(heads)} if text is HEADS else {}


def check(
    attention: attndsl.Attention,
    given: dict[str, Any],
    call: dict[str, Any],
    parts: int,
    wants_lse: bool,
    backward: bool = True,
) -> None:
    """Results, and gradients that are computed from them."""

    def run(function: Any, inputs: dict[str, Any]) -> Any:
        result = function(**inputs, **call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    narrow = {name: cast(x, torch.float32) for name, x in given.items()}
    wide = {name: cast(x, torch.float64) for name, x in narrow.items()}
    if not backward:
        with split(parts):
            out, lse = run(attention, narrow)
        want_out, want_lse = run(attention.reference, wide)
        names = ("out", "lse") if wants_lse else ("out",)
        pairs = ((out, lse), (want_out, want_lse))
        got, want = (dict(zip(names, pair, strict=False)) for pair in pairs)
    else:
        with split(parts):
            got = differentiate(lambda **inputs: run(attention, inputs), narrow, wants_lse)
        want = differentiate(lambda **inputs: run(attention.reference, inputs), wide, wants_lse)
    wrong = difference(got, want, 2e-3, 0.1)
    assert not wrong, wrong


def check_text(
    text: str,
    rows: int,
    columns: int,
    group: int,
    parts: int,
    ragged: bool = True,
    backward: bool = True,
) -> None:
    """Two sequences over two key heads; the queries are the last positions, of each sequence where
    lengths are ragged."""
    batch, heads = 2, 2 * group
    length = max(columns, rows)
    given = {
        "query": floats(batch, heads, rows, 16, seed=3),
        "key": floats(batch, 2, columns, 16, seed=4),
        "value": floats(batch, 2, columns, 16, seed=5),
        **parameters_of(text, heads, batch, length),
    }
    call: dict[str, Any] = {"q_offset": length - rows}
    if ragged:
        k_len = torch.tensor([columns, columns // 2])
        call = {"q_offset": (k_len - rows).clamp(min=0).int(), "k_len": k_len}
    attention = attndsl.compile(text=text, backend="triton")
    check(attention, given, call, parts, is_softmax(text), backward)


def example_case(name: str) -> tuple[attndsl.Attention, dict[str, Any], dict[str, Any], bool]:
    """The last queries of an example, or as many as a tensor of it has rows for."""
    query, key, value, inputs = example_inputs(name, Sizes(2, 6, 2, 36, 16, 16))
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend="triton", **inputs.consts)
    arguments, rows = dict(inputs.arguments), min(5, query.shape[2])
    offset = query.shape[2] - rows
    for tensor in attention.program.tensors:
        for axis, dim in enumerate(tensor.dims):
            if dim.op == "size" and dim.name == "Nq":
                arguments[tensor.name] = arguments[tensor.name].narrow(axis, 0, rows)
                offset = 0
    given = {"query": query[:, :, -rows:], "key": key, "value": value, **arguments}
    wants_lse = is_softmax((FOLDER / f"{name}.attn").read_text("utf-8"))
    return attention, given, {**inputs.call, "q_offset": offset}, wants_lse


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_examples(name: str) -> None:
    attention, given, call, wants_lse = example_case(name)
    check(attention, given, call, 3, wants_lse, backward=False)


@pytest.mark.sweep
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_examples_with_gradients(name: str, parts: int) -> None:
    attention, given, call, wants_lse = example_case(name)
    check(attention, given, call, parts, wants_lse)


SHAPES = {
    "rich": (1, 33, 8, 2),
    "normalize": (7, 33, 3, 3),
    "elementwise": (16, 33, 1, 2),
    "lists": (3, 60, 3, 2),
    "heads": (5, 33, 2, 4),
}


@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_strategies(name: str) -> None:
    rows, columns, group, parts = SHAPES[name]
    check_text(TEXTS[name], rows, columns, group, parts)


@pytest.mark.parametrize("columns", [0, 1])
def test_few_keys(columns: int) -> None:
    check_text(RICH, 2, columns, 3, 4)


def test_no_queries() -> None:
    out, lse = attndsl.compile(text=CAUSAL, backend="triton")(
        torch.ones(2, 2, 0, 16), *[torch.ones(2, 2, 5, 16)] * 2, return_lse=True
    )
    assert out.shape == (2, 2, 0, 16) and lse.shape == (2, 2, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("columns", [0, 1, 33, 200])
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, rows: int, columns: int) -> None:
    for group, parts in zip((1, 3, 8), (5, 2, 1), strict=True):
        ragged = (rows + columns + group) % 2 == 1
        check_text(TEXTS[name], rows, columns, group, parts, ragged, backward=False)


@pytest.mark.parametrize("parts", [1, 3])
def test_memory_beyond_a_length_is_not_read(parts: int) -> None:
    query, key, value = (floats(2, h, n, 16).float() for h, n in ((6, 2), (2, 40), (2, 40)))
    k_len = torch.tensor([17, 0])
    call: dict[str, Any] = {"k_len": k_len, "q_offset": torch.tensor([15, 0])}
    attention = attndsl.compile(text=CAUSAL, backend="triton")
    with split(parts):
        want = attention(query, key, value, **call)
        for at, length in enumerate(k_len.tolist()):
            key[at, :, length:] = torch.nan
            value[at, :, length:] = torch.nan
        got = attention(query, key, value, **call)
    assert torch.equal(got, want) and not got[1].any()


def test_splits_follow_from_shapes_alone() -> None:
    """The module's own choice: several parts here, the same bits for all contents of a shape."""
    query, key, value = (floats(1, h, n, 16).float() for h, n in ((2, 1), (1, 200), (1, 200)))
    attention = attndsl.compile(text=CAUSAL, backend="triton")
    seen: list[int] = []

    def recorded(*sizes: int) -> int:
        seen.append(attn_splits(*sizes))
        return seen[-1]

    call = {"q_offset": torch.tensor([199])}
    with split(1) as modules:
        one = attention(query, key, value, **call)
    modules[0].__dict__["attn_splits"] = recorded
    first, again = (attention(query, key, value, **call) for _ in range(2))
    attention(query, key, 2 * value, q_offset=torch.tensor([30]))
    modules[0].__dict__["attn_splits"] = attn_splits
    assert len(set(seen)) == 1 and seen[0] > 2
    assert torch.equal(first, again)
    assert torch.allclose(first, one, atol=1e-5)


WINDOWED = {
    "rich": RICH,
    "normalize": NORMALIZE,
    "batch": "attention t(x: float[B, H, Nq, Nk], g: float[B, Dv]):\n    mask k <= q + 3\n"
    "    score score + x[b, h, q, k]\n    output out * g[b, d]\n",
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows(name: str) -> None:
    """Many sequences of one tile: programs go over several of them, the last over fewer."""
    text, batch, heads, length = WINDOWED[name], 13, 4, 11
    given = {n: floats(batch, heads, length, 16, seed=s) for s, n in enumerate(("query", "value"))}
    given |= {"key": floats(batch, heads, length, 16, seed=9)}
    given |= parameters_of(text, heads, batch, length)
    if name == "batch":
        given |= {"x": floats(batch, heads, length, length), "g": floats(batch, 16)}
    attention = attndsl.compile(text=text, backend="triton")
    call = {"k_len": torch.arange(batch)} if name == "rich" else {}
    with launches("windows") as count:
        check(attention, given, call, 1, is_softmax(text), backward=False)
    assert count == [1]


def test_heads_that_share_a_tile_are_no_windows() -> None:
    """Where one head has too few queries, tiles of all heads of a group are better filled."""
    attention = attndsl.compile(text=CAUSAL, backend="triton")
    query, key = floats(13, 8, 2, 16).float(), floats(13, 1, 11, 16).float()
    with launches("windows") as windows, launches("decode") as count:
        out = attention(query, key, key, q_offset=9)
    assert (windows, count) == ([0], [1])
    torch.testing.assert_close(out, attention.reference(query, key, key, q_offset=9))
    with launches("windows") as windows:
        attention(floats(13, 8, 11, 16).float(), key, key)
    assert windows == [1]


VISITED = {
    "causal": CAUSAL,
    "rich": RICH,
    "lists": DOCUMENTS,
    "heads": HEADS,
}


@pytest.mark.parametrize("name", VISITED)
def test_no_tile_is_visited_in_vain(name: str) -> None:
    """Heads of a group visit a tile of keys once, if they share it, and only if it is needed."""
    text, group, rows, columns = VISITED[name], 3, 5, 150
    given = parameters_of(text, 2 * group, 1, columns)
    query, key = floats(1, 2 * group, rows, 16).float(), floats(1, 2, columns, 16).float()
    attention = attndsl.compile(text=text, backend="triton")
    offset = columns - rows
    narrow = {parameter: cast(x, torch.float32) for parameter, x in given.items()}
    with counting(query.device, runs_decode=True) as counter, torch.no_grad():
        attention(query, key, key, **narrow, q_offset=offset)
    sizes = {"B": 1, "H": 2 * group, "Hk": 2, "Nq": rows, "Nk": columns}
    mask = attention.mask(**sizes, **narrow, q_offset=offset).expand(1, 2 * group, -1, -1)
    if name in ("causal", "rich"):
        mask = mask.view(2, group, rows, columns).any(1)  # rows of all heads are one tile
    tiles = pad(mask.flatten(0, -3), (0, -columns % 16)).unflatten(-1, (-1, 16))
    visited = sum(counter.counts[kernel][0] for kernel in ("decode", "decode_part"))
    assert visited == int(tiles.any(-1).any(-2).sum())
    assert counter.counts["forward"] == (0, 0)


def test_reach() -> None:
    for lo, hi, first, length in product(range(-2, 6), range(-2, 6), range(-1, 3), range(5)):
        within = set(range(lo, hi)) & set(range(first, first + length))
        assert attn_keys_reached([(lo, hi)], first, length) == len(within)


def test_splits() -> None:
    """Never without need, never more than there are tiles for, and within four waves."""
    for programs, keys, places in product(range(1, 600, 7), (0, 100, 5000, 10**6), (8, 264, 528)):
        splits = attn_splits(programs, keys, 64, places)
        assert 1 <= splits <= max(1, keys // 128)
        assert splits == 1 or splits * programs <= 4 * places
        if keys == 10**6 and programs <= places < 64 * programs:
            waves = -(-splits * programs // places)
            assert splits * programs >= 0.7 * waves * places, (programs, splits)


def plan_for(text: str, target: str, head_dim: int, **changes: Any) -> Any:
    program = attndsl.compile(text=text).program
    request = request_for(program, target, "bfloat16", head_dim, head_dim)
    return plan(program, replace(request, **changes))


def test_heads_share_tiles_where_they_need_the_same_keys() -> None:
    texts = {HEADS: False, RICH: True, DOCUMENTS: False, NORMALIZE: True}
    for text, packs in texts.items():
        assert plan_for(text, "sm_90", 64).decode.packs_heads is packs


def test_windows_need_positions_that_do_not_differ() -> None:
    assert plan_for(CAUSAL, "sm_90", 64).decode.windows is not None
    assert plan_for(CAUSAL, "sm_90", 64, per_batch=("k_len",)).decode.windows is not None
    assert plan_for(CAUSAL, "sm_90", 64, per_batch=("q_offset",)).decode.windows is None
    assert plan_for(CAUSAL, "sm_90", 192).decode.windows is None


def compiled_for(made: Any, target: str, names: tuple[str, ...]) -> list[CompiledKernel]:
    """The kernels of few queries, with each number of rows that their tiles may have."""
    specs = []
    for spec in GENERATOR.kernels(made):
        if spec.name not in names:
            continue
        if spec.name in ("decode_merge", "windows"):
            specs.append(spec)
        else:
            for tile in made.decode.tiles:
                sizes = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
                constants = {**spec.constants, "BLOCK_M": tile.block_m}
                specs.append(replace(spec, constants=constants, **sizes))
    (kernels,) = compile_jobs([Job(GENERATOR.emit(made), tuple(specs), target)])
    return kernels


def check_compiled(made: Any, target: str, names: tuple[str, ...] = KERNELS) -> None:
    for kernel in compiled_for(made, target, names):
        assert kernel.spill_bytes == 0, kernel
        assert kernel.shared_bytes <= SHARED_LIMITS[target], kernel
        # Tensor cores in all of them: wgmma where a tile has 64 rows.
        products = kernel.wgmma + kernel.mma + kernel.mfma + kernel.tcgen05
        is_product = kernel.name != "decode_merge" and made.request.dtype != "float32"
        assert products > 0 or not is_product, kernel


def test_hopper() -> None:
    check_compiled(plan_for(RICH, "sm_90", 128), "sm_90", ("decode_part", "decode_merge"))
    check_compiled(plan_for(RICH, "sm_90", 64), "sm_90", ("windows",))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("target", "head_dim"), [("sm_90", 64), ("sm_90", 128), ("sm_80", 64), ("gfx942", 64)]
)
@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_compiles(name: str, target: str, head_dim: int) -> None:
    program = attndsl.compile(FOLDER / f"{name}.attn").program
    request = request_for(program, target, "bfloat16", head_dim, head_dim)
    check_compiled(plan(program, request), target, ("decode", "decode_merge", "windows"))


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [32, 96, 128, 256])
@pytest.mark.parametrize("target", ["sm_90", "sm_80", "gfx942"])
def test_compiles_at_other_widths(target: str, head_dim: int, dtype: str) -> None:
    program = attndsl.compile(FOLDER / "gpt_oss.attn").program
    request = request_for(program, target, dtype, head_dim, head_dim)
    check_compiled(plan(program, request), target)
