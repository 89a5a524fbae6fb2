"""Compiles a generated Triton module for a target that need not be here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from attndsl import backend
from attndsl.backend import KernelSpec
from attndsl.diagnostics import ArgumentError
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.report.compiled import binary
from attndsl.report.compiled.loops import size_of

# What Triton calls each target: backend, architecture, threads of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
STAGES = ("ttir", "ttgir", "ptx", "amdgcn", "sass")

WORKER = "attndsl.report.compiled.worker"

FIGURES = (
    "registers",
    "spill_bytes",
    "loop_spills",
    "shared_bytes",
    "wgmma",
    "tma",
    "mma",
    "tcgen05",
    "mfma",
    "cp_async",
    "full_loop",
    "partial_loop",
    "num_warps",
    "num_stages",
)


class KernelError(RuntimeError):
    """A generated kernel did not compile: a fault of attndsl or of Triton, never of a program."""


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel, compiled.

    asm           stage -> text, or bytes for "cubin" and "hsaco"
    registers     per thread; spill_bytes  stored to local memory per thread
    loop_spills   instructions in the loop over full tiles that read or write these bytes
    shared_bytes  per block of threads
    wgmma, mma, tcgen05, mfma   matrix instructions: Hopper's, Ampere's, Blackwell's, AMD's
    tma, cp_async copies by descriptor; copies from global to shared memory that bypass registers
    full_loop, partial_loop   instructions of the loop over full tiles, and of that over tiles with
                  tests (`loops.py`); None without one
    """

    name: str
    target: str
    registers: int
    spill_bytes: int
    loop_spills: int
    shared_bytes: int
    wgmma: int
    tma: int
    mma: int
    tcgen05: int
    mfma: int
    cp_async: int
    full_loop: int | None
    partial_loop: int | None
    num_warps: int
    num_stages: int
    asm: dict[str, str | bytes] = field(repr=False, compare=False)

    def text(self, stage: str) -> str:
        """The text of a stage of `STAGES`; SASS is disassembled here.

        Raises ArgumentError where the target has no such stage or its tool is missing.
        """
        if stage == "sass" and "cubin" in self.asm:
            cubin = self.asm["cubin"]
            assert isinstance(cubin, bytes)
            return binary.disassemble(cubin)
        found = self.asm.get(stage)
        if not isinstance(found, str):
            have = [s for s in STAGES if s in self.asm] + ["sass"] * ("cubin" in self.asm)
            raise ArgumentError(f"{self.target} has no stage {stage!r}: it has {', '.join(have)}")
        return found

    def resources(self) -> dict[str, str | int | None]:
        """The figures as one flat record, for JSON."""
        return {"kernel": self.name, **{name: getattr(self, name) for name in FIGURES}}


@dataclass(frozen=True)
class Job:
    """The text of a generated module, its kernels and the target to compile them for."""

    source: str
    kernels: tuple[KernelSpec, ...]
    target: str


def compile_kernels(
    plan: KernelPlan, target: str | None = None, kernel: str | None = None
) -> list[CompiledKernel]:
    """Compiles the Triton kernels of a plan (or the one named `kernel`) without a GPU.

    `target` is one of `TARGETS`; the plan's own where it is None. Raises ArgumentError for an
    unknown target or kernel, KernelError where Triton refuses.
    """
    generator = backend.load("attndsl.codegen", "triton")
    kernels = generator.kernels(plan)
    if kernel is not None:
        names = [spec.name for spec in kernels]
        if kernel not in names:
            raise ArgumentError(f"there is no kernel {kernel!r}: there are {', '.join(names)}")
        kernels = tuple(spec for spec in kernels if spec.name == kernel)
    job = Job(generator.emit(plan), kernels, target or plan.request.target)
    return compile_jobs([job])[0]


def compile_jobs(jobs: Sequence[Job], processes: int = 1) -> list[list[CompiledKernel]]:
    """Compiles several modules, in this process or in `processes` others.

    Triton decides when it is imported whether `triton.jit` compiles or interprets. Where this
    process interprets (`TRITON_INTERPRET`), another one without that variable does the work.
    """
    for job in jobs:
        if job.target not in TARGETS:
            raise ArgumentError(f"unknown target {job.target!r}: one of {', '.join(TARGETS)}")
    if processes == 1 and not _interprets():
        return [_compile_job(job) for job in jobs]
    parts = [list(jobs[i::processes]) for i in range(min(processes, len(jobs)))]
    with tempfile.TemporaryDirectory(prefix="attndsl-") as folder:
        workers = [_Worker(part, Path(folder) / str(i)) for i, part in enumerate(parts)]
        try:
            done = [worker.result() for worker in workers]
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
    results: list[list[CompiledKernel]] = [[] for _ in jobs]
    for i, part_results in enumerate(done):
        results[i::processes] = part_results
    return results


class _Worker:
    """Another interpreter that compiles jobs (`worker.py`); both travel as pickled files."""

    def __init__(self, jobs: list[Job], stem: Path) -> None:
        self.output = stem.with_suffix(".out")
        given = stem.with_suffix(".in")
        given.write_bytes(pickle.dumps(jobs))
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        # The same modules as here, also where this process found them through sys.path.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.log = stem.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "attndsl.report.compiled.worker",
                    str(given),
                    str(self.output),
                ],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def result(self) -> list[list[CompiledKernel]]:
        if self.process.wait() != 0 or not self.output.exists():
            log = self.log.read_text(errors="replace").strip()
            raise KernelError(f"the compiling process failed:\n{log[-2000:]}")
        found = pickle.loads(self.output.read_bytes())
        if isinstance(found, KernelError):
            raise found
        assert isinstance(found, list)
        return found


def _interprets() -> bool:
    """Whether `triton.jit` gives interpreted functions in this process."""
    if "triton" not in sys.modules:
        return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")
    import triton
    import triton.language as language

    return bool(triton.knobs.runtime.interpret) or not isinstance(
        language.cdiv, triton.runtime.JITFunction
    )


def _compile_job(job: Job) -> list[CompiledKernel]:
    with tempfile.TemporaryDirectory(prefix="attndsl-") as folder:
        # Triton reads a kernel's text from the file of its module.
        name = f"attn_{hashlib.sha256(job.source.encode()).hexdigest()[:16]}"
        path = Path(folder) / f"{name}.py"
        path.write_text(job.source, encoding="utf-8")
        module = _load(name, path)
        return [_compile(module, spec, job.target) for spec in job.kernels]


def _load(name: str, path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _compile(module: ModuleType, spec: KernelSpec, target: str) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(module, spec.name)
    attributes = {
        (function.arg_names.index(name),): [["tt.divisibility", divisor]]
        for name, divisor in spec.attributes.items()
    }
    source = ASTSource(function, dict(spec.signature), dict(spec.constants), attributes)
    # Fused multiply-adds are named because their default differs between releases of Triton.
    options: dict[str, object] = {
        "num_warps": spec.num_warps,
        "num_stages": spec.num_stages,
        "enable_fp_fusion": spec.may_fuse,
    }
    try:
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    except Exception as error:  # whatever Triton raises, its own kinds differ between releases
        raise KernelError(
            f"Triton {triton.__version__} does not compile `{spec.name}` for {target}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return _describe(spec, target, compiled)


def _describe(spec: KernelSpec, target: str, compiled: Any) -> CompiledKernel:
    asm: dict[str, str | bytes] = dict(compiled.asm)
    if "cubin" in asm:
        ptx, cubin = asm["ptx"], asm["cubin"]
        assert isinstance(ptx, str) and isinstance(cubin, bytes)
        figures, loops = binary.read_cubin(cubin, ptx)
    else:
        text = asm["amdgcn"]
        assert isinstance(text, str)
        figures, loops = binary.read_assembly(text)
    return CompiledKernel(
        name=spec.name,
        target=target,
        shared_bytes=int(compiled.metadata.shared),
        loop_spills=loops.full.spilled if loops.full else 0,
        full_loop=size_of(loops.full),
        partial_loop=size_of(loops.partial),
        num_warps=spec.num_warps,
        num_stages=spec.num_stages,
        asm=asm,
        **figures,
    )


def without_locations(text: str) -> str:
    """TTIR or TTGIR without its locations, which name temporary files.

    >>> without_locations('#loc1 = loc("f.py":1:2)\\na loc(#loc1) {x: 1 loc("x"(#loc))}')
    'a {x: 1}'
    """
    kept = (row for row in text.splitlines() if not re.match(r"#loc\d* = ", row))
    return "\n".join(re.sub(r" loc\((?:[^()]|\([^()]*\))*\)", "", row) for row in kept)


def run_jobs(given: Path, output: Path) -> None:
    """The work of another process: pickled jobs to pickled results, or to the KernelError."""
    jobs: list[Job] = pickle.loads(given.read_bytes())
    result: object
    try:
        result = [_compile_job(job) for job in jobs]
    except KernelError as error:
        result = error
    output.write_bytes(pickle.dumps(result))
