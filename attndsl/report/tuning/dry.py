"""The candidates of a program's kernels with what they take, compiled for a target; needs no
GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from attndsl.backend import load
from attndsl.ir.program import Program
from attndsl.plan.budget import KERNELS, KernelName, shared_limit
from attndsl.plan.candidates import candidates
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import plan, table_sizes
from attndsl.report.compiled.compile import CompiledKernel, Job, compile_jobs
from attndsl.report.progress import progress
from attndsl.report.requests import request_for
from attndsl.report.table import table
from attndsl.report.tuning.shown import TITLES, cells, kernel_program
from attndsl.runtime.attention import Attention

BATCH = 4  # candidates that are compiled between two steps of the progress line
# The kernels of a module that have the sizes of each.
SHARERS: dict[KernelName, tuple[str, ...]] = {
    "forward": ("forward", "routed_forward"),
    "backward_dq": ("backward_dq", "backward_dots", "backward_tables", "routed_backward_dq"),
    "backward_dkv": ("backward_dkv", "routed_backward_dkv"),
    "backward_fused": ("backward_fused",),
}


@dataclass(frozen=True)
class Static:
    """What a candidate takes: the most of the kernels that have its sizes.

    registers  of a thread; spill_bytes  of a thread, of all of them; loop_spills  instructions that
    move them in the loop over full tiles; shared_bytes  of a block
    """

    kernel: KernelName
    config: Config
    is_table: bool
    registers: int
    spill_bytes: int
    loop_spills: int
    shared_bytes: int

    @property
    def is_dropped(self) -> bool:
        return self.loop_spills > 0


@dataclass(frozen=True)
class DryRun:
    """All candidates of a program for a target."""

    program: str
    target: str
    dtype: str
    found: tuple[Static, ...]

    @property
    def record(self) -> dict[str, object]:
        """For JSON."""
        kept = [{**asdict(static), "dropped": static.is_dropped} for static in self.found]
        return {"program": self.program, "target": self.target, "candidates": kept}

    @property
    def text(self) -> str:
        """For a person."""
        limit = shared_limit(self.target) // 1024
        about = f"{self.program} for {self.target}, {self.dtype}: candidates, compiled and not run"
        lines = [f"{about}; a block may have {limit} KB of shared memory"]
        for kernel in KERNELS:
            rows = [static for static in self.found if static.kernel == kernel]
            if rows:
                lines += ["", kernel, *lines_of(rows)]
        return "\n".join(lines)


def lines_of(rows: Sequence[Static]) -> Iterator[str]:
    """A table of candidates, and how many are dropped."""
    titles = [*TITLES, "registers", "spilled bytes", "shared KB", ""]
    figures = [
        [
            *cells(static.config),
            static.registers,
            static.spill_bytes,
            f"{static.shared_bytes / 1024:.1f}",
            marks(static),
        ]
        for static in rows
    ]
    yield from table(titles, figures, "  ").splitlines()
    dropped = sum(static.is_dropped and not static.is_table for static in rows)
    if dropped:
        yield f"  {dropped} of {len(rows)} spill registers in every tile: not worth measuring"


def marks(static: Static) -> str:
    words = ["of the table"] if static.is_table else []
    return ", ".join([*words, *(["dropped: it spills in its loop"] if static.is_dropped else [])])


def dry_run(
    attention: Attention,
    *,
    target: str = "sm_90",
    dtype: str = "bfloat16",
    head_dim: int = 64,
    value_dim: int = 64,
    kernels: Sequence[KernelName] = KERNELS,
) -> DryRun:
    """Compiles the candidates of `kernels` for a target of `attndsl emit`.

    Raises ArgumentError for another target, KernelError where Triton refuses one.
    """
    program = kernel_program(attention)
    request = request_for(program, target, dtype, head_dim, value_dim)
    request = replace(request, deterministic=attention.settings.deterministic)
    sizes = table_sizes(program, request)
    wanted = [
        (kernel, config)
        for kernel in kernels
        for config in dict.fromkeys((getattr(sizes, kernel), *candidates(program, request, kernel)))
    ]
    found: list[Static] = []
    with progress(-(-len(wanted) // BATCH)) as line:
        while part := wanted[len(found) : len(found) + BATCH]:
            line.step(", ".join(f"{kernel} {c.block_m} x {c.block_n}" for kernel, c in part))
            jobs = [
                job(program, replace(request, sizes=replace(sizes, **{kernel: config})), kernel)
                for kernel, config in part
            ]
            found += [
                static_of(kernel, config, config == getattr(sizes, kernel), compiled)
                for (kernel, config), compiled in zip(part, compile_jobs(jobs), strict=True)
            ]
    return DryRun(attention.name, target, dtype, tuple(found))


def job(program: Program, request: Request, kernel: KernelName) -> Job:
    """The kernels that have the sizes of one, of the module for a request."""
    made, generator = plan(program, request), load("attndsl.codegen", "triton")
    specs = tuple(spec for spec in generator.kernels(made) if spec.name in SHARERS[kernel])
    return Job(generator.emit(made), specs, request.target)


def static_of(
    kernel: KernelName, config: Config, is_table: bool, compiled: Sequence[CompiledKernel]
) -> Static:
    return Static(
        kernel=kernel,
        config=config,
        is_table=is_table,
        registers=max(one.registers for one in compiled),
        spill_bytes=sum(one.spill_bytes for one in compiled),
        loop_spills=sum(one.loop_spills for one in compiled),
        shared_bytes=max(one.shared_bytes for one in compiled),
    )
