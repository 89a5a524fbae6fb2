"""What docs/hopper.md says of Triton on sm_90: each rule as a kernel that keeps or breaks it."""

from __future__ import annotations

import re
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import pytest

pytest.importorskip("triton")

from attndsl.backend import KernelSpec
from attndsl.report.compiled.compile import CompiledKernel, Job, KernelError
from tests.codegen.compilers import Compilers

pytestmark = pytest.mark.sweep

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def forward(query, key, value, slopes, blocks, out, n, scale,
            D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    start = tl.program_id(0) * M
    rows = start + tl.arange(0, M)
    key_tiles = tl.make_tensor_descriptor(key, shape=[n, D], strides=[D, 1], block_shape=[N, D])
    value_tiles = tl.make_tensor_descriptor(value, shape=[n, D], strides=[D, 1], block_shape=[N, D])
    query_tiles = tl.make_tensor_descriptor(query, shape=[n, D], strides=[D, 1], block_shape=[M, D])
    {load_query}
    most = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, D], tl.float32)
    full = start // N
    for tile in tl.range({first}, tl.cdiv(start + M, N){flag}):
        {tile}
        columns = tile * N + tl.arange(0, N)
        {load_key}
        score = tl.dot(q, tl.trans(k)) * scale
        {lookup}
        {mask}
        greatest = tl.maximum(most, tl.max(score, 1))
        weight = tl.exp2(score - greatest[:, None])
        rescale = tl.exp2(most - greatest)
        total = total * rescale + tl.sum(weight, 1)
        most = greatest
        v = value_tiles.load([tile * N, 0])
        result = tl.dot(weight.to(v.dtype), v, result * rescale[:, None])
{more}
    result = result / total[:, None]
    where = out + rows[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(where, result.to(out.dtype.element_ty), mask=rows[:, None] < n)
"""
SELECT = (
    "keep = columns[None, :] <= rows[:, None]\n"
    '        score = tl.where((tile < full) | keep, score, float("-inf"))'
)
BRANCH = (
    "if tile >= full:\n"
    '            score = tl.where(columns[None, :] <= rows[:, None], score, float("-inf"))'
)
BY_POINTER = "tl.load({name} + {rows}[:, None] * D + tl.arange(0, D)[None, :])"
SECOND_LOOP = """
    for tile in tl.range(full, tl.cdiv(start + M, N), warp_specialize=True):
        k = key_tiles.load([tile * N, 0])
        score = tl.dot(q, tl.trans(k)) * scale
        v = value_tiles.load([tile * N, 0])
        result = tl.dot(tl.exp2(score).to(v.dtype), v, result)
"""


@dataclass(frozen=True)
class Kernel:
    """The kernel, with one of its parts written otherwise."""

    warps: int = 4
    columns: int = 64
    load_query: str = "q = query_tiles.load([start, 0])"
    first: str = "0"
    flag: str = ", warp_specialize=True"
    tile: str = "tile = tile"
    load_key: str = "k = key_tiles.load([tile * N, 0])"
    lookup: str = "score = score"
    mask: str = SELECT
    more: str = ""

    def job(self, head_dim: int = 128) -> Job:
        parts = {k: v for k, v in vars(self).items() if isinstance(v, str)}
        tensors = dict.fromkeys(("query", "key", "value", "out"), "*bf16")
        signature = {**tensors, "slopes": "*fp32", "blocks": "*i32", "n": "i32", "scale": "fp32"}
        order = ("query", "key", "value", "slopes", "blocks", "out", "n", "scale")
        spec = KernelSpec(
            name="forward",
            signature={k: signature[k] for k in order} | dict.fromkeys("DMN", "constexpr"),
            constants={"D": head_dim, "M": 128, "N": self.columns},
            attributes=dict.fromkeys((*tensors, "slopes", "blocks"), 16),
            num_warps=self.warps,
            num_stages=2,
            may_fuse=True,
        )
        return Job(KERNEL.format(**parts), (spec,), "sm_90")


def compile_one(compilers: Compilers, kernel: Kernel) -> CompiledKernel:
    ((found,),) = compilers.compile_jobs([kernel.job()])
    return found


def threads(kernel: CompiledKernel) -> int:
    found = re.search(r"\.reqntid (\d+)", kernel.text("ptx"))
    assert found
    return int(found[1])


def test_four_warps_become_twelve(compilers: Compilers) -> None:
    found = compile_one(compilers, Kernel())
    assert (threads(found), found.registers, found.spill_bytes) == (384, 168, 0)
    assert found.cp_async == 0


def test_with_eight_warps_the_flag_is_ignored(compilers: Compilers) -> None:
    found = compile_one(compilers, Kernel(warps=8))
    plain = compile_one(compilers, Kernel(warps=8, flag=""))
    assert threads(found) == 256
    assert found == plain


@pytest.mark.parametrize(
    "broken",
    [
        Kernel(load_key="k = " + BY_POINTER.format(name="key", rows="columns")),
        Kernel(load_query="q = " + BY_POINTER.format(name="query", rows="rows")),
        Kernel(
            load_query="q = query_tiles.load([start, 0])\n    slope = tl.load(slopes + rows)",
            lookup="score = score + slope[:, None]",
        ),
        Kernel(columns=128, lookup="score = score + tl.load(slopes + columns)[None, :]"),
        Kernel(more=SECOND_LOOP),
    ],
    ids=["keys by pointer", "queries by pointer", "128 rows", "128 columns", "two loops"],
)
def test_what_crashes_the_compiler(broken: Kernel, compilers: Compilers) -> None:
    with pytest.raises((KernelError, BrokenProcessPool)):
        compile_one(compilers, broken)


def test_a_branch_that_gives_a_tensor_switches_it_off(compilers: Compilers) -> None:
    found = compile_one(compilers, Kernel(mask=BRANCH))
    assert threads(found) == 128
    assert found.spill_bytes > 0


@pytest.mark.parametrize(
    "fine",
    [
        Kernel(lookup="score = score + tl.load(slopes + columns)[None, :]"),
        Kernel(tile="tile = tl.load(blocks + tile)"),
        Kernel(lookup="score = 1 - 2 / (tl.exp2(score) + 1)"),
        Kernel(lookup="score = score + tl.load(slopes) * (rows[:, None] - columns[None, :])"),
    ],
    ids=["64 columns", "a list of tiles", "a soft cap", "an affine score"],
)
def test_what_may_stand_in_the_loop(fine: Kernel, compilers: Compilers) -> None:
    found = compile_one(compilers, fine)
    assert (threads(found), found.spill_bytes) == (384, 0)


def test_descriptors_shorten_plain_loops(compilers: Compilers) -> None:
    """No address is computed in the loop."""
    tiled = compile_one(compilers, Kernel(warps=8, flag="", columns=128))
    by_pointer = "k = " + BY_POINTER.format(name="key", rows="columns")
    loaded = compile_one(compilers, Kernel(warps=8, flag="", columns=128, load_key=by_pointer))
    assert tiled.tma > 0 and loaded.cp_async > 0
    assert tiled.full_loop is not None and loaded.full_loop is not None
    assert tiled.full_loop < loaded.full_loop
