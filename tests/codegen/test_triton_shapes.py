"""Kernels that read by descriptors: values in Triton's interpreter, and what sm_90 makes of them.

Also what all shapes share: spans of rows, shifts of tiles, and the order of programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.runtime import _allocation

import attndsl
from attndsl.backend import load
from attndsl.ir.nodes import index
from attndsl.ir.program import Program
from attndsl.plan import planner
from attndsl.plan.budget import KERNELS, KernelName
from attndsl.plan.kernel_plan import Config, KernelPlan, Request, Shape, Sizes
from attndsl.plan.planner import plan, table_sizes
from attndsl.plan.shapes import may_describe, may_have_shape, may_specialise
from attndsl.report.requests import request_for
from attndsl.runtime import cache
from tests.codegen.compilers import EXAMPLES, Compilers, job_of, plan_of
from tests.codegen.test_triton import CASES, Case, check, floats, ints

SIZES: dict[KernelName, tuple[Config, ...]] = {
    "forward": (Config(128, 128, 4, 2), Config(128, 64, 4, 2)),
    "backward_dq": (Config(128, 128, 4, 2), Config(128, 64, 4, 2), Config(128, 32, 4, 2)),
    "backward_dkv": (Config(64, 128, 4, 2), Config(32, 128, 4, 2)),
}
ALIBI = "attention far(slope: float[H]):\n    mask k <= q\n    score score + slope[h] * (k - q)\n"
KEYS = (
    "attention keys(valid: bool[B, Nk], bias: float[H, Nk]):\n"
    "    mask valid[b, k]\n    score score + bias[h, k]\n"
)


def in_shape(shape: Shape, program: Program, request: Request) -> Sizes:
    """The table's sizes, in another shape where a kernel may have it."""
    sizes = table_sizes.__wrapped__(program, request)
    for name in KERNELS:
        config = replace(getattr(sizes, name), shape=shape)
        if may_have_shape(program, request, name, config):
            sizes = replace(sizes, **{name: config})
    return sizes


@pytest.fixture
def shape() -> Shape:
    return "specialised"


@pytest.fixture
def shapes(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Calls run kernels of a shape; those that ran modules with such."""
    used: set[str] = set()

    modules: dict[tuple[str, Request], Any] = {}

    def cached(handle: str, program: Program, request: Request) -> Any:
        if (handle, request) not in modules:
            made = plan(program, request)
            used.update(n for n in KERNELS if getattr(made, n).shape == shape)
            text = cache.generate(program, request)
            path = cache.directory() / f"shapes_{len(modules)}_{abs(hash(text))}.py"
            modules[handle, request] = cache.load_module(path, text.encode())
        return modules[handle, request]

    monkeypatch.setattr(planner, "table_sizes", partial(in_shape, shape))
    monkeypatch.setattr(cache, "module_of", cached)
    yield used


QUICK = [
    "grouped heads",
    "negative offset",
    "no key for any row",
    "offsets of each sequence",
]
EXTRA = {
    "row of keys": Case(
        KEYS,
        (2, 4, 2, 35, 53, 16, 16),
        {"valid": ints(2, 2, 53).bool(), "bias": floats(4, 53)},
        {"k_len": torch.tensor([53, 20])},
    ),
    "far apart": Case(
        ALIBI,
        (1, 4, 2, 45, 45, 16, 24),
        {"slope": torch.tensor([0.0, 1.0, -0.25, 30.0], dtype=torch.float64)},
        {"q_offset": 1_000_000, "k_offset": 999_980},
        tolerance=1e-4,
    ),
    "window, chunks, half": Case(
        "attention band(w: int, sink: float[H]):\n    mask 0 <= q - k < w\n"
        "    weights softmax(sink = sink[h])\n",
        (1, 2, 2, 45, 70, 96, 72),
        {"w": 19, "sink": floats(2)},
        {"q_offset": 30, "k_len": torch.tensor([61])},
        torch.float16,
        2e-2,
    ),
    "normalize": Case(
        "attention positive():\n    mask k <= q\n    weights normalize(1 + score ** 2)\n",
        (1, 2, 1, 45, 50, 16, 16),
    ),
}


SHAPED: list[tuple[str, Shape]] = [(name, "specialised") for name in [*EXTRA, *QUICK]]
SHAPED += [(name, "described") for name in ("far apart", "window, chunks, half", "normalize")]


@pytest.mark.parametrize(("name", "shape"), SHAPED)
def test_values(name: str, shapes: set[str]) -> None:
    check(EXTRA.get(name) or CASES[name])
    assert shapes == set(KERNELS)


@pytest.mark.sweep
@pytest.mark.parametrize("shape", ["described", "specialised"])
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_more_values(name: str, shapes: set[str]) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", ["far apart", "row of keys"])
def test_peeled_values(name: str) -> None:
    """What all shapes share: spans, and shifts."""
    check(EXTRA[name])


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales(scale: float, shapes: set[str]) -> None:
    """The forward compares scores before they are scaled: the host moves a sign into query."""
    check(Case(CASES["grouped heads"].text, (1, 2, 1, 33, 40, 24, 16), call={"scale": scale}))
    assert shapes == set(KERNELS)


def test_rows_that_share_memory(shapes: set[str]) -> None:
    """A descriptor expects that rows lie apart."""
    query, key, value = (floats(1, 1, 40, 16, seed=s).float() for s in (1, 2, 3))
    key = key[:, :, :1].expand(-1, -1, 40, -1)
    attention = attndsl.compile(text="attention causal():\n    mask k <= q\n", backend="triton")
    torch.testing.assert_close(
        attention(query, key, value), attention.reference(query, key, value), atol=1e-5, rtol=1e-5
    )
    assert "forward" in shapes


def test_a_single_row_has_the_stride_of_a_row(shapes: set[str]) -> None:
    """A stride that no step is taken by may be anything, and a descriptor is made of it."""
    program = attndsl.compile(text=ALIBI).program
    request = request_for(program, "interpreter", "float32", 16, 16)
    module: Any = cache.module_of("", program, request)
    row = floats(1, 2, 1, 16).as_strided((1, 2, 1, 16), (32, 16, 0, 1))
    apart = module.attn_separate(row)
    assert apart.stride(2) == 16 and torch.equal(apart, row)
    assert module.attn_separate(apart) is apart


def test_allocator_is_put_back(shapes: set[str]) -> None:
    """Triton's allocator is that of the user again, after a launch and after one that failed."""

    def mine(size: int, alignment: int, stream: int | None) -> Any:
        raise AssertionError

    program = attndsl.compile(text=ALIBI).program
    request = request_for(program, "interpreter", "float32", 16, 16)
    module: Any = cache.module_of("", program, request)
    before = _allocation._allocator.get()
    try:
        triton.set_allocator(mine)
        with module.attn_scratch(torch.zeros(1)):
            buffer = _allocation._allocator.get()(96, 16, None)
            assert (buffer.numel(), buffer.dtype) == (96, torch.uint8)
        assert _allocation._allocator.get() is mine
        with pytest.raises(ZeroDivisionError), module.attn_scratch(torch.zeros(1)):
            raise ZeroDivisionError
        assert _allocation._allocator.get() is mine
    finally:
        triton.set_allocator(before)


# -- which kernels may have it ---------------------------------------------------------------------


def may(text: str, kernel: KernelName, config: Config, **request: Any) -> bool:
    program = attndsl.compile(text=text).program
    asked = request_for(program, "sm_90", "bfloat16", 64, 64)
    return may_specialise(program, replace(asked, **request), kernel, config)


def test_legality() -> None:
    wide, narrow = SIZES["forward"]
    text = CASES["grouped heads"].text
    assert may(text, "forward", wide)
    for refused in (
        {"target": "sm_80"},
        {"target": "sm_100"},
        {"target": "gfx942"},
        {"dtype": "float32"},
        {"unit_stride": False},
        {"aligned": False},
        {"head_dim": 60},
        {"order": "boxes"},
    ):
        assert not may(text, "forward", wide, **refused), refused
    for change in ({"num_warps": 8}, {"num_stages": 1}, {"block_m": 64}, {"block_n": 8}):
        assert not may(text, "forward", replace(wide, **change)), change
    longer = replace(wide, num_stages=3)
    assert may(text, "forward", longer)
    assert not may(text, "forward", longer, head_dim=128, value_dim=128)
    by_column, by_row = KEYS, KEYS.replace("[B, Nk]", "[B, Nq]").replace("[b, k]", "[b, q]")
    assert may(by_column, "forward", narrow) and not may(by_column, "forward", wide)
    assert not may(by_column, "backward_dkv", Config(64, 128, 4, 2))
    assert not may(by_row, "forward", narrow)
    assert not may(KEYS.replace("bias[h, k]", "bias[h, q - k]"), "forward", narrow)


@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_other_targets_know_nothing_of_it(target: str) -> None:
    for path in EXAMPLES[:4]:
        text = load("attndsl.codegen", "triton").emit(plan_of(path, target, 64))
        assert not re.search(r"warp_specialize|descriptor|attn_scratch", text)


DESCRIBED: dict[KernelName, Config] = {
    "forward": Config(128, 128, 8, 3, "described"),
    "backward_dq": Config(128, 64, 8, 2, "described"),
    "backward_dkv": Config(64, 128, 8, 2, "described"),
}


@pytest.mark.parametrize("text", [CASES["grouped heads"].text], ids=["causal"])
def test_described_on_hopper(text: str, compilers: Compilers) -> None:
    """Descriptors cost no registers: none of the largest tiles spills."""
    program = attndsl.compile(text=text).program
    request = request_for(program, "sm_90", "bfloat16", 128, 128)
    assert all(may_describe(program, request, name, c) for name, c in DESCRIBED.items())
    made = replace(plan(program, request), **DESCRIBED)
    (kernels,) = compilers.compile_jobs([job_of(made, list(KERNELS))])
    for kernel in kernels:
        assert kernel.tma > 0 and kernel.wgmma > 0, kernel
        # Statistics of the rows of the loop come by pointer.
        assert kernel.cp_async == 0 or kernel.name == "backward_dkv", kernel
        assert kernel.spill_bytes == 0 and kernel.shared_bytes <= 227 * 1024, kernel


def specialised_plans(made: KernelPlan) -> Iterator[tuple[KernelName, KernelPlan]]:
    """The plan with each of its kernels in the other shape, where it may be so."""
    for name, configs in SIZES.items():
        for config in configs:
            shaped = replace(config, shape="specialised")
            if may_specialise(made.program, made.request, name, shaped):
                yield name, replace(made, **{name: shaped})


def compile_shapes(made: KernelPlan, compilers: Compilers, most: int = 99) -> None:
    """Each compiles, in groups of warps, with products of warpgroups, and fits."""
    for name, changed in list(specialised_plans(made))[:most]:
        ((kernel,),) = compilers.compile_jobs([job_of(changed, [name])])
        text = kernel.text("ttgir")
        assert "warp_specialize" in text, kernel
        assert kernel.wgmma > 0 and kernel.mma == 0 and kernel.tma > 0, kernel
        assert kernel.shared_bytes <= 227 * 1024, kernel


def test_lists_on_hopper(compilers: Compilers) -> None:
    program = attndsl.compile(text=KEYS).program
    made = plan(program, request_for(program, "sm_90", "bfloat16", 128, 128))
    assert made.strategy == "lists"
    compile_shapes(made, compilers, most=1)


def test_plans_refuse_what_does_not_compile() -> None:
    program = attndsl.compile(text=KEYS).program
    request = request_for(program, "sm_90", "bfloat16", 128, 128)
    shaped = replace(SIZES["forward"][0], shape="specialised")
    sizes = replace(table_sizes(program, request), forward=shaped)
    with pytest.raises(AssertionError, match="may not have the shape"):
        plan(program, replace(request, sizes=sizes))


@pytest.mark.sweep
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_on_hopper(path: Any, head_dim: int, compilers: Compilers) -> None:
    compile_shapes(plan_of(path, "sm_90", head_dim), compilers)


# -- spans and shifts ------------------------------------------------------------------------------


def test_spans() -> None:
    """Where each row has a run of keys, and where not."""

    def spans(text: str) -> tuple[bool, bool]:
        program = attndsl.compile(text=text).program
        made = plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))
        return made.key_span is not None, made.query_span is not None

    assert spans("attention a():\n    mask k <= q\n") == (True, True)
    assert spans("attention a(w: int):\n    mask 0 <= q - k < w\n") == (True, True)
    assert spans("attention a(n: int):\n    mask k <= q or k < n\n") == (True, False)
    assert spans("attention a(n: int):\n    mask abs(q - k) > n\n") == (False, False)
    assert spans("attention a(x: int[B, N]):\n    mask x[b, q] == x[b, k]\n") == (False, False)
    assert spans("attention a(x: float):\n    mask k <= q * x\n") == (False, False)


def test_shifts() -> None:
    """Only a term that is affine in k, with a factor of the head, is split."""

    def shifts(score: str) -> bool:
        text = f"attention a(s: float[H], r: float[N], i: int[N]):\n    score {score}\n"
        program = attndsl.compile(text=text).program
        made = plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))
        if made.shift is None:
            return False
        assert index("k") not in (made.shift.value, made.shift.rows)
        return True

    assert shifts("score + s[h] * (k - q)") and shifts("score - 0.5 * (q - k)")
    assert shifts("s[h] * (i[q] - k) - score")
    assert not shifts("score + r[q] * (k - q)") and not shifts("score + s[h] * abs(k - q)")
    assert not shifts("score * (k - q)") and not shifts("score + s[h] * (k - i[k])")
    assert not shifts("tanh(score + s[h] * (k - q))") and not shifts("score + s[h] * (2 * k - q)")


def test_programs_of_some_heads() -> None:
    """However many heads run at a time, each tile has one program."""
    module: Any = {}
    from attndsl.codegen.triton.host import FUNCTIONS

    exec("import math, torch, contextlib\n" + FUNCTIONS, module)
    together = module["attn_together"]
    assert together(64, 8, 2**22) == 64 and together(64, 8, 2**30) == 8
    assert together(64, 1, 2**24) == 2 and together(4, 4, 0) == 4
    for count in (1, 2, 3, 7):
        heads, tiles = 7, 3
        found = set()
        for program in range(heads * tiles):
            first = program // (tiles * count) * count
            within = program - first * tiles
            here = min(count, heads - first)
            found.add((first + within % here, within // here))
        assert found == {(h, t) for h in range(heads) for t in range(tiles)}
