"""Which engine runs a call: "auto" is Triton for CUDA tensors; C++ on a CPU where that is possible,
else PyTorch."""

from __future__ import annotations

import functools
import os

from torch import Tensor

from attndsl.backend import load_native
from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import Program
from attndsl.runtime import cache
from attndsl.runtime.settings import Settings

WIDEST = 1024  # heads of the C++ engine: tiles of wider ones would leave every cache
VARIABLES = ("ATTNDSL_CXX", "CXX", "PATH")  # that name the compiler


def engine_of(settings: Settings, program: Program, query: Tensor, value: Tensor) -> str:
    """The backend that runs a call; ArgumentError where the one that was asked for cannot."""
    if settings.backend == "cpp":
        require(program, query, value)
    if settings.backend != "auto":
        return settings.backend
    if query.device.type == "cuda":
        return "triton"
    if query.device.type != "cpu" or refusal_of(program, widest_of(query, value)):
        return "torch"
    return "cpp" if has_compiler() else "torch"


def widest_of(query: Tensor, value: Tensor) -> int:
    return max(query.shape[3], value.shape[3])


def refusal_of(program: Program, widest: int) -> str:
    """What the C++ engine does not take of a program with heads so wide; "" where it takes all."""
    if program.routed is not None:
        return "it has no kernels for lists of blocks, which a select of this program gives"
    if widest > WIDEST:
        return f"it takes heads up to {WIDEST} wide, got {widest}"
    return ""


def require(program: Program, query: Tensor, value: Tensor) -> None:
    """ArgumentError where the C++ engine cannot run a call."""
    reason = refusal_of(program, widest_of(query, value))
    if query.device.type != "cpu":
        reason = f"it cannot run on {query.device.type} tensors"
    if not reason and not has_compiler():
        reason = (
            "it needs a C++ compiler with OpenMP: install g++ or clang++, or name one in "
            "ATTNDSL_CXX (which is not to be empty)"
        )
    if reason:
        raise ArgumentError(f'backend="cpp": {reason}; use backend="torch"')


def has_compiler() -> bool:
    """Whether this machine can build the C++ engine's sources. The first answer takes a trial
    build, which is kept on disk."""
    return _has_compiler(tuple(os.environ.get(name) for name in VARIABLES))


@functools.lru_cache(maxsize=8)
def _has_compiler(variables: tuple[str | None, ...]) -> bool:
    if os.environ.get("ATTNDSL_CXX") == "":
        return False
    return load_native(cache.GENERATORS, "cpp").is_ready(cache.directory())
