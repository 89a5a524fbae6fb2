"""The C++ generator: the plan as one C++ source for each direction, the engine on CPU."""

from __future__ import annotations

from attndsl.backend import KernelSpec
from attndsl.plan.kernel_plan import KernelPlan

from .module import emit
from .trial import failure

__all__ = ["emit", "failure", "kernels"]


def kernels(plan: KernelPlan) -> tuple[KernelSpec, ...]:
    """The device kernels of the generated module: none."""
    return ()
