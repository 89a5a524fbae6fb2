"""The C++ generator: the plan as one C++ source for each direction, the engine on CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

from attndsl.backend import KernelSpec
from attndsl.plan.kernel_plan import KernelPlan

from . import build_library
from .module import emit

__all__ = ["emit", "is_ready", "kernels"]

TRIAL = """\
#include <omp.h>
extern "C" int attn_trial() { return omp_get_max_threads(); }
"""


def kernels(plan: KernelPlan) -> tuple[KernelSpec, ...]:
    """The device kernels of the generated module: none."""
    return ()


def is_ready(folder: Path) -> bool:
    """Whether a small source can be built and loaded; what is built is kept in the folder."""
    try:
        ctypes.CDLL(str(build_library.attn_build(TRIAL, folder)))
    except (RuntimeError, OSError):
        return False
    return True
