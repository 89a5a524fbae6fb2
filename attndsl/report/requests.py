"""Requests that stand for no call: what a program would be compiled for on some target."""

from __future__ import annotations

import torch

from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request
from attndsl.runtime.arguments import TRITON_WIDTH
from attndsl.runtime.attention import TABLE_DTYPES, Attention

ALIGNMENT = 16  # bytes that a row of query, key or value is a multiple of, for wide loads


def request_for(
    program: Program, target: str, dtype: str, head_dim: int, value_dim: int
) -> Request:
    """A request with the gradients of all float tensors; target "cpu" is the PyTorch generator.

    Raises ArgumentError where the generator has no such kernels.
    """
    backend = "torch" if target == "cpu" else "triton"
    for name, width in (("head-dim", head_dim), ("value-dim", value_dim)):
        if width < 1 or (backend == "triton" and width > TRITON_WIDTH):
            limit = f" to {TRITON_WIDTH}" if backend == "triton" else ""
            raise ArgumentError(f"{name}: expected a width from 1{limit}, got {width}")
    if backend == "triton" and dtype == "float64":
        raise ArgumentError("float64 runs only in the PyTorch generator, not in Triton's")
    row_bytes = getattr(torch, dtype).itemsize
    return Request(
        backend=backend,
        target=target,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        grads=tuple(t.name for t in program.tensors if t.kind == "float"),
        tensor_dtypes=tuple(TABLE_DTYPES[t.kind] for t in program.tensors),
        aligned=all(width * row_bytes % ALIGNMENT == 0 for width in (head_dim, value_dim)),
    )


def target_here(attention: Attention) -> str:
    """The GPU of this machine, sm_90 where it has none; "cpu" where the backend runs there."""
    if attention.backend in ("torch", "cpp"):
        return "cpu"
    if torch.cuda.is_available() and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"
    return "sm_90"
