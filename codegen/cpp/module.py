"""KernelPlan -> the text of a Python module that holds C++, builds it, and runs by itself."""

from __future__ import annotations

from attndsl.ir.nodes import find
from attndsl.plan.kernel_plan import KernelPlan

from .. import library as shared
from ..blocked import tile_of, write_header
from ..lines import Lines
from ..scope import library_text
from . import build_library
from .backward import backward_source
from .forward import forward_source
from .host import write_backward, write_forward

IMPORTS = (
    "atexit ctypes functools hashlib os pathlib platform shlex shutil subprocess tempfile "
    "threading warnings".split()
)

BUILD = """\
def build(function):
    \"""Builds what "run_forward" or "run_backward" calls; RuntimeError where that fails.\"""
    if function == "run_forward":
        attn_function(FORWARD, "attn_forward")
    else:
        attn_function(BACKWARD, "attn_backward")
"""


def emit(plan: KernelPlan) -> str:
    """The module's text; the same plan gives the same text."""
    sizes = sizes_of(plan)
    forward, fields, tile = forward_source(plan, sizes)
    body = Lines()
    write_forward(body, plan, fields, tile)
    backward, fields, made = backward_source(plan, sizes)
    body.blank(2)
    write_backward(body, plan, fields, made)
    text = body.text()
    lines = Lines()
    write_header(lines, plan, "in C++, for CPUs", "torch and a C++ compiler")
    lines.add("from __future__ import annotations", "")
    lines.add(*(f"import {name}" for name in IMPORTS))
    lines.add("from collections.abc import Callable", "", "import torch", "")
    lines.add(f"ACCUMULATOR = torch.{plan.accumulator}")
    lines.add(f"ROWS = {sizes[0]}  # queries of a tile")
    lines.add(f"WIDTH = {sizes[1]}  # keys of a tile")
    lines.add("PANEL = 64  # keys that are packed together, at the most")
    lines.add("LANES = 16  # numbers of a vector, at the most")
    lines.add(f"FLAGS = {flags_of(plan)!r}")
    lines.add("BUILDING = threading.Lock()")
    lines.blank()
    for name, source in (("FORWARD", forward), ("BACKWARD", backward)):
        lines.add(f'{name} = r"""', source.rstrip("\n"), '"""')
    lines.blank(2)
    lines.add(library_text(text + BUILD, shared, build_library))
    lines.blank(2)
    lines.add(text.rstrip("\n"))
    lines.blank(2)
    lines.add(BUILD.rstrip("\n"))
    return lines.text()


def flags_of(plan: KernelPlan) -> tuple[str, ...]:
    """How the compiler may treat numbers: NaN, infinities and the order of sums are kept, and ints
    wrap around."""
    contraction = "fast" if plan.may_fuse else "off"
    return ("-fwrapv", "-fno-math-errno", "-fno-trapping-math", f"-ffp-contract={contraction}")


def sizes_of(plan: KernelPlan) -> tuple[int, int]:
    """ROWS and WIDTH: where tables of blocks decide, tiles that lie within their blocks."""
    rows, width = plan.forward.block_m, plan.forward.block_n
    tables = {counted.table for counted in plan.program.counted}
    if any(node.name in tables for node in find(plan.program.mask, "lookup")):
        rows, width = tile_of(plan)
        rows = rows // 2 if rows > 64 else rows
    return rows, width
