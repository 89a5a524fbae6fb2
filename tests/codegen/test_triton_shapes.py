"""Described kernels, which read by descriptors: their values in Triton's interpreter, and what
sm_90 makes of them.

Also what all shapes share: spans of rows, shifts of tiles, and the order of programs.
"""

from __future__ import annotations

import re
from dataclasses import replace
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
from attndsl.plan.kernel_plan import Config, KernelPlan, Request, Sizes
from attndsl.plan.planner import plan, table_sizes
from attndsl.plan.shapes import may_describe
from attndsl.report.requests import request_for
from attndsl.runtime import cache
from tests.codegen.compilers import EXAMPLES, Compilers, job_of, plan_of
from tests.codegen.test_triton import CASES, Case, check, floats, ints
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function
from tests.oracle.examples import FOLDER, NAMES, example_inputs
from tests.oracle.examples import Sizes as ExampleSizes

# Of a request for sm_90 with a head dimension of 128.
DESCRIBED: dict[KernelName, Config] = {
    "forward": Config(128, 128, 8, 2, "described"),
    "backward_dq": Config(128, 64, 8, 2, "described"),
    "backward_dkv": Config(64, 128, 8, 2, "described"),
}
ALIBI = "attention far(slope: float[H]):\n    mask k <= q\n    score score + slope[h] * (k - q)\n"
KEYS = (
    "attention keys(valid: bool[B, Nk], bias: float[H, Nk]):\n"
    "    mask valid[b, k]\n    score score + bias[h, k]\n"
)


def described(program: Program, request: Request) -> Sizes:
    """The table's sizes; kernels are described where they may be."""
    sizes = table_sizes.__wrapped__(program, request)
    for name in KERNELS:
        config = replace(getattr(sizes, name), shape="described")
        if may_describe(program, request, name, config):
            sizes = replace(sizes, **{name: config})
    return sizes


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Calls run described kernels; the names of those that modules had."""
    used: set[str] = set()
    modules: dict[tuple[str, Request], Any] = {}

    def cached(handle: str, program: Program, request: Request) -> Any:
        if (handle, request) not in modules:
            made = plan(program, request)
            used.update(n for n in KERNELS if getattr(made, n).shape == "described")
            text = cache.generate(program, request)
            path = cache.directory() / f"shapes_{len(modules)}_{abs(hash(text))}.py"
            modules[handle, request] = cache.load_module(path, text.encode())
        return modules[handle, request]

    monkeypatch.setattr(planner, "table_sizes", described)
    monkeypatch.setattr(cache, "module_of", cached)
    return used


# Examples that differ in form and strategy; the others are for the sweep.
FEW = ("alibi", "duo_heads", "packed_documents", "sigmoid")
ODD = ExampleSizes(batch=1, heads=3, key_heads=1, length=50, width=20, value_width=12)
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


# Rows of the walked axis that are there in no multiple of four; some have no key, or their sequence
# none; weights of rows that are not there would overflow.
HUGE = "attention huge(bias: float[Nk]):\n    mask k <= q\n    score score + bias[k]\n"
ROWS = {
    "some without keys": Case(
        "attention causal():\n    mask k <= q\n",
        (2, 4, 2, 37, 53, 24, 16),
        call={"k_offset": 9},
    ),
    "a sequence without keys": Case(
        "attention all():\n    mask true\n",
        (3, 4, 2, 35, 21, 16, 24),
        call={"k_len": torch.tensor([21, 0, 5])},
    ),
    "offsets of each sequence": Case(
        "attention band(w: int):\n    mask 0 <= q - k < w\n    weights normalize(score ** 2)\n",
        (2, 4, 1, 33, 40, 16, 16),
        {"w": 11},
        {"q_offset": torch.tensor([0, 60]), "k_offset": torch.tensor([7, 30])},
    ),
    "large logits": Case(
        HUGE, (2, 3, 1, 19, 33, 16, 16), {"bias": 500 + floats(33)}, {"k_offset": 2}
    ),
}


@pytest.mark.parametrize("name", [*EXTRA, *QUICK])
def test_values(name: str, used: set[str]) -> None:
    check(EXTRA.get(name) or CASES[name])
    assert used == set(KERNELS)


@pytest.mark.parametrize("name", ROWS)
def test_statistics_of_rows(name: str, used: set[str]) -> None:
    """The kernel that walks over rows reads what they have by descriptors: heads begin at a
    multiple of 16 bytes, and beyond the last row of a head lies another, or nothing."""
    check(ROWS[name])
    assert used == set(KERNELS)
    program = attndsl.compile(text=ROWS[name].text).program
    text = cache.generate(program, request_for(program, "interpreter", "float32", 16, 16))
    assert "base_tiles.load" in text and "delta_tiles.load" in text


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_more_values(name: str, used: set[str]) -> None:
    check(CASES[name])


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.sweep) for n in NAMES]
)
def test_examples(name: str, used: set[str]) -> None:
    check_example(name)
    assert used == set(KERNELS) or name not in FEW


def check_example(name: str) -> None:
    """Results and gradients of an example against the oracle."""
    query, key, value, inputs = example_inputs(name, ODD)
    given = {"query": query, "key": key, "value": value, **inputs.arguments}
    text = (FOLDER / f"{name}.attn").read_text(encoding="utf-8")
    wants_lse = is_softmax(text)
    attention = attndsl.compile(text=text, backend="triton", **inputs.consts)
    oracle = oracle_function(text, name, None, inputs.call)

    def function(**given: Any) -> Any:
        result = attention(**given, **inputs.call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    given = {n: cast(cast(x, torch.float32), torch.float64) for n, x in given.items()}
    got = differentiate(function, {n: cast(x, torch.float32) for n, x in given.items()}, wants_lse)
    want = differentiate(lambda **x: oracle(**x, **inputs.consts), given, wants_lse)
    wrong = difference(got, want, 2e-3, 0.1)
    assert not wrong, wrong


@pytest.mark.parametrize("name", ["far apart", "row of keys"])
def test_peeled_values(name: str) -> None:
    """What all shapes share: spans, and shifts."""
    check(EXTRA[name])


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales(scale: float, used: set[str]) -> None:
    """The forward compares scores before they are scaled: the host moves a sign into query."""
    check(Case(CASES["grouped heads"].text, (1, 2, 1, 33, 40, 24, 16), call={"scale": scale}))
    assert used == set(KERNELS)


def test_rows_that_share_memory(used: set[str]) -> None:
    """A descriptor expects that rows lie apart."""
    query, key, value = (floats(1, 1, 40, 16, seed=s).float() for s in (1, 2, 3))
    key = key[:, :, :1].expand(-1, -1, 40, -1)
    attention = attndsl.compile(text="attention causal():\n    mask k <= q\n", backend="triton")
    torch.testing.assert_close(
        attention(query, key, value), attention.reference(query, key, value), atol=1e-5, rtol=1e-5
    )
    assert "forward" in used


def test_a_single_row_has_the_stride_of_a_row(used: set[str]) -> None:
    """A stride that no step is taken by may be anything, and a descriptor is made of it."""
    program = attndsl.compile(text=ALIBI).program
    request = request_for(program, "interpreter", "float32", 16, 16)
    module: Any = cache.module_of("", program, request)
    row = floats(1, 2, 1, 16).as_strided((1, 2, 1, 16), (32, 16, 0, 1))
    apart = module.attn_separate(row)
    assert apart.stride(2) == 16 and torch.equal(apart, row)
    assert module.attn_separate(apart) is apart


def test_allocator_is_put_back(used: set[str]) -> None:
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
    asked = request_for(program, "sm_90", "bfloat16", 128, 128)
    return may_describe(program, replace(asked, **request), kernel, config)


def test_legality() -> None:
    text = CASES["grouped heads"].text
    for name, config in DESCRIBED.items():
        assert may(text, name, config) and may(KEYS, name, config)
        for refused in (
            {"target": "sm_80"},
            {"target": "sm_100"},
            {"target": "gfx942"},
            {"dtype": "float32"},
            {"unit_stride": False},
            {"aligned": False},
            {"head_dim": 60},
            {"order": "boxes"},
            {"head_dim": 256, "value_dim": 256},
        ):
            assert not may(text, name, config, **refused), refused
        assert not may(text, name, replace(config, num_stages=6))
        assert not may(KEYS.replace("bias[h, k]", "bias[h, q - k]"), name, config)


def test_plans_refuse_what_may_not_be() -> None:
    program = attndsl.compile(text=KEYS.replace("bias[h, k]", "bias[h, q - k]")).program
    request = request_for(program, "sm_90", "bfloat16", 128, 128)
    sizes = replace(table_sizes(program, request), forward=DESCRIBED["forward"])
    with pytest.raises(AssertionError, match="may not have the shape"):
        plan(program, replace(request, sizes=sizes))


@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_other_targets_know_nothing_of_it(target: str) -> None:
    for path in EXAMPLES[:4]:
        text = load("attndsl.codegen", "triton").emit(plan_of(path, target, 64))
        assert not re.search(r"descriptor|attn_scratch", text)


def compile_described(made: KernelPlan, names: list[KernelName], compilers: Compilers) -> None:
    """Each compiles, loads what its loop walks by descriptors, and fits."""
    made = replace(made, **{name: DESCRIBED[name] for name in names})
    (kernels,) = compilers.compile_jobs([job_of(made, names)])
    for kernel in kernels:
        assert kernel.tma > 0 and kernel.wgmma > 0 and kernel.mma == 0, kernel
        assert kernel.loop_spills == 0 and kernel.shared_bytes <= 227 * 1024, kernel


@pytest.mark.parametrize(
    ("text", "names"),
    [(CASES["grouped heads"].text, list(KERNELS)), (KEYS, ["forward"])],
    ids=["causal", "lists"],
)
def test_described_on_hopper(text: str, names: list[KernelName], compilers: Compilers) -> None:
    """Descriptors cost no registers: no loop over the largest tiles spills."""
    program = attndsl.compile(text=text).program
    request = request_for(program, "sm_90", "bfloat16", 128, 128)
    compile_described(plan(program, request), names, compilers)


@pytest.mark.sweep
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_on_hopper(path: Any, compilers: Compilers) -> None:
    """A head dimension of two chunks, which has descriptors for each."""
    made = plan_of(path, "sm_90", 96)
    names = [n for n, c in DESCRIBED.items() if may_describe(made.program, made.request, n, c)]
    made = replace(made, **{name: DESCRIBED[name] for name in names})
    for kernel in compilers.compile_jobs([job_of(made, names)])[0] if names else []:
        assert kernel.tma > 0 and kernel.wgmma > 0 and kernel.mma == 0, kernel
        assert kernel.shared_bytes <= 227 * 1024, kernel


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
