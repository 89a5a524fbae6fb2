"""A source that needs what the sources of programs need of a compiler and of the machine."""

from __future__ import annotations

import ctypes
from pathlib import Path

from attndsl.plan.kernel_plan import Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify

from . import build_library
from .forward import forward_source
from .module import flags_of, sizes_of

# Tiles with and without a test, functions, a table; pairs of bfloat16 and numbers of float16, which
# have instructions of their own.
PROGRAM = """
attention trial(bias: float[H, Nk]):
    mask k <= q
    score tanh(score) + bias[h, k]
"""
REQUEST = Request(
    backend="cpp", dtype="bfloat16", head_dim=16, value_dim=16, tensor_dtypes=("float16",)
)


def failure(folder: Path) -> str:
    """Why the sources of programs cannot be built, in a line or more; "" where they can. What is
    built is kept in the folder; OSError where that cannot be written."""
    program = simplify(analyse(Source("<trial>", PROGRAM), None, {}))
    made = plan(program, REQUEST)
    source, _, _ = forward_source(made, sizes_of(made))
    try:
        library = build_library.attn_build(source, folder, flags_of(made))
    except RuntimeError as error:
        return str(error)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"a library that was built cannot be loaded: {error}"
    return ""
