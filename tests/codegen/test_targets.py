"""Every example compiles for every target without a GPU; on sm_90 without a spill, with wgmma."""

from dataclasses import replace
from pathlib import Path

import pytest

import attndsl
from attndsl.backend import load
from attndsl.plan.kernel_plan import Order
from attndsl.plan.planner import plan
from attndsl.report.compiled.compile import CompiledKernel, Job, compile_jobs
from attndsl.report.requests import request_for
from attndsl.transform.route import form_of, route

EXAMPLES = sorted(Path("examples").glob("*.attn"))
HEAD_DIMS = (64, 128)
OTHER_TARGETS = ("sm_80", "sm_100", "gfx942")
# Bytes of shared memory that a block may have: CUDA C Programming Guide, technical specifications
# by compute capability; CDNA3 ISA. Cards of 8.6, 8.9 and 12.0 have the least, and run what sm_80
# does.
SHARED_LIMITS = {
    "sm_80": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
MATRIX_KERNELS = {"forward", "backward_dq", "backward_dkv"}
ROUTED_KERNELS = {f"routed_{name}" for name in MATRIX_KERNELS}


def job(
    path: Path, target: str, head_dim: int, dtype: str = "bfloat16", order: Order = "linear"
) -> Job:
    program = attndsl.compile(path).program
    if program.selects:
        program = route(program, form_of(program))
    request = request_for(program, target, dtype, head_dim, head_dim)
    made = plan(program, replace(request, order=order))
    generator = load("attndsl.codegen", "triton")
    return Job(generator.emit(made), generator.kernels(made), target)


def matrix_kernels(kernels: list[CompiledKernel]) -> set[str]:
    """Those that multiply matrices. Where all pairs are in lists of blocks, no others do."""
    names = {kernel.name for kernel in kernels}
    if "forward" not in names:
        return ROUTED_KERNELS
    return MATRIX_KERNELS | ROUTED_KERNELS if ROUTED_KERNELS & names else MATRIX_KERNELS


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_hopper(path: Path) -> None:
    for kernels in compile_jobs([job(path, "sm_90", head_dim) for head_dim in HEAD_DIMS]):
        products = matrix_kernels(kernels)
        assert {kernel.name for kernel in kernels} >= products
        for kernel in kernels:
            assert kernel.spill_bytes == 0, kernel
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel
            assert kernel.mma == 0, kernel
            assert (kernel.wgmma > 0) or kernel.name not in products, kernel


@pytest.mark.parametrize("name", ["gna", "neighborhood_3d", "swin"])
def test_boxes_on_hopper(name: str) -> None:
    path = Path("examples") / f"{name}.attn"
    for kernels in compile_jobs([job(path, "sm_90", 64, order="boxes")]):
        for kernel in kernels:
            assert kernel.spill_bytes == 0, kernel
            assert (kernel.wgmma > 0) or kernel.name not in MATRIX_KERNELS, kernel


@pytest.mark.parametrize(
    "head_dim", [64, pytest.param(128, marks=pytest.mark.sweep)], ids=lambda d: f"d{d}"
)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_other_targets(path: Path, head_dim: int) -> None:
    jobs = [job(path, target, head_dim) for target in OTHER_TARGETS]
    for kernels in compile_jobs(jobs):
        assert {kernel.name for kernel in kernels} >= matrix_kernels(kernels)
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_widest_heads_fit(target: str, dtype: str) -> None:
    for kernels in compile_jobs([job(Path("examples/gemma2_local.attn"), target, 256, dtype)]):
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_hopper_in_other_dtypes(path: Path, dtype: str) -> None:
    for kernels in compile_jobs([job(path, "sm_90", head_dim, dtype) for head_dim in HEAD_DIMS]):
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel
            if dtype == "float16":
                assert kernel.spill_bytes == 0, kernel
