"""The Protocol that a code generator meets, and the loader that finds one by name.

A generator turns a KernelPlan into the text of a Python module that runs by itself (it imports
torch, and triton where that is the target, and nothing of attndsl). Every generated module has:

    run_forward(query, key, value, scale, q_offset, k_offset, k_len, tensors, scalars)
        -> (out, raw, stat)
    run_backward(grad_out, grad_lse, query, key, value, raw, stat,
                 scale, q_offset, k_offset, k_len, tensors, scalars)
        -> (grad_query, grad_key, grad_value, *grads of plan.request.grads)

query [B, H, Nq, D], key [B, Hk, Nk, D], value [B, Hk, Nk, Dv]: any strides, one dtype, one device.
scale: float. q_offset, k_offset: int, or an int tensor [B] where plan.request.per_batch names it.
k_len: None or an int tensor [B] (likewise); it is clipped to 0 .. Nk. tensors, scalars: tuples in
the program's order; shapes and dtype kinds are already checked.

out   [B, H, Nq, Dv] in query's dtype.
raw   `out` before the epilogue, in query's dtype, where the program has an `output`; else an empty
      tensor [0] (the caller then passes `out` itself to run_backward).
stat  [B, H, Nq] in the accumulator's dtype: the natural logarithm of the softmax denominator
      (-inf for an empty row), or the sum of `normalize` (0 for one); [0] for elementwise weights.
grad_lse is None or [B, H, Nq]. Gradients come in the dtype and shape of what they belong to.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from attndsl.plan.kernel_plan import KernelPlan


@dataclass(frozen=True)
class KernelSpec:
    """How to compile one kernel of a generated module without launching it.

    signature   argument -> Triton type ("*bf16", "i32", "fp32", "constexpr")
    constants   constexpr argument -> value
    attributes  argument -> divisibility (16) that a launch promises
    may_fuse    whether float products and sums may become fused multiply-adds
    """

    name: str
    signature: dict[str, str]
    constants: dict[str, int | float | bool]
    attributes: dict[str, int]
    num_warps: int
    num_stages: int
    may_fuse: bool


class Generator(Protocol):
    """A code generator. It decides nothing: the same plan gives the same bytes."""

    def emit(self, plan: KernelPlan) -> str:
        """The text of the module."""
        ...

    def kernels(self, plan: KernelPlan) -> tuple[KernelSpec, ...]:
        """The module's device kernels, in the order in which they run; none on a CPU."""
        ...


class Native(Generator, Protocol):
    """A generator whose modules are built by a compiler of the machine. They have besides

        build(function)

    which builds what "run_forward" or "run_backward" calls, and raises RuntimeError where that
    fails; else the first call builds it.
    """

    def failure(self, folder: Path) -> str:
        """Why a small source cannot be built; "" where it can. What is built is kept in the folder;
        OSError where that cannot be written."""
        ...


def load_native(package: str, name: str) -> Native:
    """The generator `name` ("cpp") of a package."""
    return cast(Native, importlib.import_module(f"{package}.{name}"))


def load(package: str, name: str) -> Generator:
    """The generator `name` ("triton", "torch", "cpp") of a package such as "attndsl.codegen"."""
    return cast(Generator, importlib.import_module(f"{package}.{name}"))


class FixedText(Protocol):
    """A module of a package that is the same for all programs, as text."""

    TEXT: str


def load_text(package: str, name: str) -> str:
    """The text of the fixed module `name` ("triton.choosing") of a package."""
    return cast(FixedText, importlib.import_module(f"{package}.{name}")).TEXT
