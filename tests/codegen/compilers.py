"""Kernels of the examples, compiled for a GPU without one, in processes that stay."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import attndsl
from attndsl.backend import load
from attndsl.plan.kernel_plan import KernelPlan, Order
from attndsl.plan.planner import plan
from attndsl.report.compiled.compile import CompiledKernel, Job, compile_jobs
from attndsl.report.requests import request_for
from attndsl.transform.route import form_of, route

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
HEAD_DIMS = (64, 128)
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


def plan_of(
    path: Path, target: str, head_dim: int, dtype: str = "bfloat16", order: Order = "linear"
) -> KernelPlan:
    """The plan of an example; what it chooses comes in tensors."""
    program = attndsl.compile(path).program
    if program.selects:
        program = route(program, form_of(program))
    request = request_for(program, target, dtype, head_dim, head_dim)
    return plan(program, replace(request, order=order))


def job_of(made: KernelPlan, names: Collection[str] | None = None) -> Job:
    """The kernels of a plan, or those of these names; those for few queries are compiled by
    `test_triton_decode.py`."""
    made = replace(made, decode=None)
    generator = load("attndsl.codegen", "triton")
    kernels = generator.kernels(made)
    if names is not None:
        kernels = tuple(kernel for kernel in kernels if kernel.name in names)
    return Job(generator.emit(made), kernels, made.request.target)


def matrix_kernels(kernels: Sequence[CompiledKernel]) -> set[str]:
    """Those that multiply matrices. Where all pairs are in lists of blocks, no others do."""
    names = {kernel.name for kernel in kernels}
    if "forward" not in names:
        return ROUTED_KERNELS
    return MATRIX_KERNELS | ROUTED_KERNELS if ROUTED_KERNELS & names else MATRIX_KERNELS


class Compilers:
    """Processes that compile, whether or not Triton interprets in this one."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn"))

    def submit(self, jobs: list[Job]) -> Future[list[list[CompiledKernel]]]:
        with without_interpreter():
            return self.pool.submit(compile_jobs, jobs)

    def compile(self, *plans: KernelPlan) -> list[list[CompiledKernel]]:
        return self.compile_jobs([job_of(made) for made in plans])

    def compile_jobs(self, jobs: list[Job]) -> list[list[CompiledKernel]]:
        try:
            return self.submit(jobs).result()
        except BrokenProcessPool:  # the compiler crashed: that fails this test, and not the rest
            self.pool = self._start()
            raise

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


@contextmanager
def without_interpreter() -> Iterator[None]:
    """Processes that start meanwhile compile kernels."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
