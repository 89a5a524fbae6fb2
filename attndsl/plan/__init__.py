"""facts -> KernelPlan."""
