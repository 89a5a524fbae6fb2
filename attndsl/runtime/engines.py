"""Which engine runs a call: "auto" is Triton for CUDA tensors; C++ on a CPU where that is possible,
else PyTorch."""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType

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
    if not reason and (failure := failure_of_trial()):
        reason = (
            "it needs a C++ compiler with OpenMP: install g++ or clang++, or name one in "
            f"ATTNDSL_CXX; {failure.splitlines()[0]}"
        )
    if reason:
        raise ArgumentError(f'backend="cpp": {reason}; use backend="torch"')


def has_compiler() -> bool:
    """Whether this machine can build the C++ engine's sources."""
    return not failure_of_trial()


def failure_of_trial() -> str:
    """Why this machine cannot build the C++ engine's sources; "" where it can. The first answer
    takes a trial build, which is kept on disk."""
    return _failure_of_trial(tuple(os.environ.get(name) for name in VARIABLES))


@functools.lru_cache(maxsize=8)
def _failure_of_trial(variables: tuple[str | None, ...]) -> str:
    if os.environ.get("ATTNDSL_CXX") == "":
        return "ATTNDSL_CXX is empty"
    generator, place = load_native(cache.GENERATORS, "cpp"), cache.directory()
    try:
        return generator.failure(place)
    except OSError as error:
        reason = f"{place} cannot be written ({error.strerror})"
        return generator.failure(cache.private_directory(reason))


FAILED: set[str] = set()  # files of modules that could not be built


def is_built(module: ModuleType, function: str) -> bool:
    """Whether the C++ that a function of a module calls could be built, which it is by now. Where
    it cannot, a RuntimeWarning says why, once; nothing of the module is tried again."""
    file = str(module.__file__)
    if file in FAILED:
        return False
    try:
        module.build(function)
    except (RuntimeError, OSError) as error:
        FAILED.add(file)
        warn_once(str(error).splitlines()[0])
        return False
    return True


@functools.cache
def warn_once(reason: str) -> None:
    warnings.warn(
        f"attndsl: PyTorch runs what the C++ engine was to run: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


cache.ON_FORGET.append(FAILED.clear)
