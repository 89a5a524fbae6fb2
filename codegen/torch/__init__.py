"""The PyTorch generator: the plan as blocked PyTorch, the engine on CPU."""

from __future__ import annotations

from attndsl.backend import KernelSpec
from attndsl.plan.kernel_plan import KernelPlan

from .module import emit

__all__ = ["emit", "kernels"]


def kernels(plan: KernelPlan) -> tuple[KernelSpec, ...]:
    """The device kernels of the generated module: none."""
    return ()
