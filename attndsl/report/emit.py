"""Any stage of the compilation as text, from the tree to SASS; needs no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attndsl import backend as backends
from attndsl.diagnostics import ArgumentError
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.plan.planner import plan as make_plan
from attndsl.report import files
from attndsl.report.requests import request_for
from attndsl.report.table import table
from attndsl.transform.route import form_of, route

LOOPS = ("full_loop", "partial_loop")  # instructions in them
COLUMNS = {  # of the table of resources: those that a family of targets has
    "sm_80": ("mma", "cp_async"),
    "sm_90": ("wgmma", "mma", "tma", "cp_async"),
    "sm_100": ("tcgen05", "mma", "tma", "cp_async"),
    "gfx942": ("mfma",),
}


@dataclass(frozen=True)
class Wish:
    """What to print; `kernel` of None means all of them."""

    stage: str
    backend: str = "triton"
    target: str = "sm_90"
    dtype: str = "bfloat16"
    head_dim: int = 128
    value_dim: int = 128
    kernel: str | None = None


@dataclass(frozen=True)
class Emitted:
    """The same for a person and for JSON."""

    text: str
    record: object


def emit(
    file: str, name: str | None, consts: Mapping[str, bool | int | float], wish: Wish
) -> Emitted:
    """A stage of a file's attention (of the file itself for the tree). From the plan on, what is
    chosen is in tensors, as in a call with offsets of 0.

    Raises ProgramError for a wrong program, ArgumentError for a wish that cannot be met,
    KernelError where Triton refuses a kernel.
    """
    if wish.stage == "tree":
        from attndsl.syntax.parser import parse
        from attndsl.syntax.text import dump as dump_tree

        return whole(dump_tree(parse(files.read(file))), wish)
    program = files.load(file, name, consts).program
    if wish.stage == "ir":
        from attndsl.ir.text import dump as dump_program

        return whole(dump_program(program), wish)
    if program.selects:  # a module is given what is chosen, as tensors
        program = route(program, form_of(program))
    target = wish.target if wish.backend == "triton" else "cpu"
    plan = make_plan(
        program, request_for(program, target, wish.dtype, wish.head_dim, wish.value_dim)
    )
    if wish.stage == "plan":
        from attndsl.plan.text import dump as dump_plan

        return whole(dump_plan(plan), wish)
    if wish.stage == "kernel":
        return whole(backends.load("attndsl.codegen", wish.backend).emit(plan), wish)
    if wish.backend != "triton":
        raise ArgumentError(f"the {wish.backend} generator has no stage {wish.stage!r}")
    return compiled(plan, wish)


def whole(text: str, wish: Wish) -> Emitted:
    return Emitted(text, {"stage": wish.stage, "text": text})


def compiled(plan: KernelPlan, wish: Wish) -> Emitted:
    """A stage of Triton's own compilation."""
    from attndsl.report.compiled.compile import compile_kernels, without_locations

    kernels = compile_kernels(plan, kernel=wish.kernel)
    if wish.stage == "resources":
        names = ("registers", "spill_bytes", "shared_bytes", *COLUMNS[wish.target], *LOOPS)
        records = [kernel.resources() for kernel in kernels]
        rows = [[r["kernel"], *(r[n] for n in names), r["num_warps"]] for r in records]
        titles = ["kernel", *(n.replace("_", " ") for n in names), "warps"]
        return Emitted(table(titles, rows), records)
    texts = {kernel.name: kernel.text(wish.stage) for kernel in kernels}
    if wish.stage in ("ttir", "ttgir"):
        texts = {kernel: without_locations(text) for kernel, text in texts.items()}
    comment = "; " if wish.stage == "amdgcn" else "// "
    shown = "\n\n".join(f"{comment}kernel {kernel}\n{text}" for kernel, text in texts.items())
    return Emitted(shown, [{"kernel": kernel, "text": text} for kernel, text in texts.items()])
