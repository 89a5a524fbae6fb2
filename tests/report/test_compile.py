"""Compiling a Triton module without a GPU: a hand-written one with a matrix product in a loop."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from attndsl.backend import KernelSpec
from attndsl.diagnostics import ArgumentError
from attndsl.report.compiled import binary
from attndsl.report.compiled.compile import TARGETS, Job, KernelError, compile_jobs

SOURCE = """
import triton
import triton.language as tl


@triton.jit
def forward(query, key, out, n, scale, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.arange(0, D)
    tile = tl.load(query + rows[:, None] * D + columns[None, :], mask=rows[:, None] < n, other=0.0)
    total = tl.zeros([M, D], tl.float32)
    for start in range(0, n, N):
        keys = start + tl.arange(0, N)
        other = tl.load(key + keys[:, None] * D + columns[None, :], mask=keys[:, None] < n, other=0)
        weight = tl.exp(tl.dot(tile, other.trans()) * scale).to(other.dtype)
        total = tl.dot(weight, other, total)
    where = out + rows[:, None] * D + columns[None, :]
    tl.store(where, total.to(out.dtype.element_ty), mask=rows[:, None] < n)
"""

SPEC = KernelSpec(
    name="forward",
    signature={
        "query": "*bf16",
        "key": "*bf16",
        "out": "*bf16",
        "n": "i32",
        "scale": "fp32",
        "D": "constexpr",
        "M": "constexpr",
        "N": "constexpr",
    },
    constants={"D": 64, "M": 64, "N": 64},
    attributes={"query": 16, "key": 16, "out": 16},
    num_warps=4,
    num_stages=2,
    may_fuse=True,
)


@pytest.fixture(scope="module")
def compiled():
    jobs = [Job(SOURCE, (SPEC,), target) for target in TARGETS]
    return {job.target: found[0] for job, found in zip(jobs, compile_jobs(jobs), strict=True)}


@pytest.mark.parametrize(
    ("target", "family"), [("sm_80", "mma"), ("sm_90", "wgmma"), ("sm_100", "tcgen05")]
)
def test_nvidia_targets_use_their_matrix_instructions(compiled, target, family):
    kernel = compiled[target]
    figures = kernel.resources()
    assert figures["kernel"] == "forward"
    assert {name for name in ("wgmma", "mma", "tcgen05", "mfma") if figures[name]} == {family}
    assert kernel.spill_bytes == 0
    assert 16 < kernel.registers <= 255
    assert kernel.shared_bytes >= 64 * 64 * 2
    assert kernel.cp_async > 0
    assert ".target" in kernel.text("ptx")
    assert "EXIT" in kernel.text("sass")


def test_amd_target(compiled):
    kernel = compiled["gfx942"]
    assert kernel.mfma > 0
    assert kernel.spill_bytes == 0
    assert kernel.registers > 16
    assert "s_endpgm" in kernel.text("amdgcn")
    with pytest.raises(ArgumentError, match="it has ttir, ttgir, amdgcn"):
        kernel.text("sass")


def test_spills_are_counted():
    starved = dataclasses.replace(SPEC, constants={"D": 256, "M": 128, "N": 64})
    kernel = compile_jobs([Job(SOURCE, (starved,), "sm_90")])[0][0]
    assert kernel.spill_bytes > 0


def test_other_processes_compile_the_same(compiled):
    jobs = [Job(SOURCE, (SPEC,), target) for target in ("sm_90", "sm_80", "gfx942")]
    found = compile_jobs(jobs, processes=2)
    assert [kernels[0] for kernels in found] == [compiled[job.target] for job in jobs]


def test_a_process_that_interprets_compiles_too(compiled, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("attndsl.report.compiled.compile._interprets", lambda: True)
    assert compile_jobs([Job(SOURCE, (SPEC,), "sm_90")])[0][0] == compiled["sm_90"]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_triton_refuses_is_a_kernel_error(processes):
    wrong = Job(SOURCE.replace("tl.exp(", "tl.no_such("), (SPEC,), "sm_90")
    with pytest.raises(KernelError, match="`forward` for sm_90"):
        compile_jobs([wrong], processes)


def test_unknown_target():
    with pytest.raises(ArgumentError, match="unknown target 'sm_7'"):
        compile_jobs([Job(SOURCE, (SPEC,), "sm_7")])


def test_missing_tool_says_what_to_set(monkeypatch):
    monkeypatch.setattr(binary, "_path", lambda tool: None)
    with pytest.raises(ArgumentError, match="TRITON_NVDISASM_PATH"):
        binary.disassemble(b"")
