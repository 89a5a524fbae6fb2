"""Which sizes the kernels of a call have on the GPU at hand, and where they come from."""

from __future__ import annotations

from dataclasses import replace

import torch

from attndsl.ir import text as ir_text
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.plan.planner import plan as make_plan
from attndsl.plan.planner import table_sizes
from attndsl.runtime import targets, tuned
from attndsl.runtime.settings import Settings
from attndsl.runtime.tuned import Place

UNMEASURED = "sizes are those of the table"


def with_stored_sizes(
    plan: KernelPlan, settings: Settings, lengths: tuple[int, int]
) -> tuple[KernelPlan, list[str]]:
    """The plan with the sizes that a call with these lengths has, and a line about them."""
    request = plan.request
    if request.backend != "triton":
        return plan, []
    if settings.tune == "off":
        return plan, [f'{UNMEASURED}, for tune="off"']
    if not torch.cuda.is_available():
        return plan, [f"{UNMEASURED}; a GPU has those that `attndsl tune` stores for it"]
    device = torch.device("cuda", torch.cuda.current_device())
    if targets.architecture(device) != request.target:
        return plan, [f"{UNMEASURED}; {request.target} is not the GPU at hand"]
    place = Place(ir_text.dump(plan.program), plan.program, request, device)
    table = table_sizes(plan.program, request)
    backward = tuned.sized(place, lengths).sizes or table
    # A forward asks for no gradients.
    apart = place._replace(request=replace(request, grads=()))
    forward = (tuned.sized(apart, lengths).sizes or table).forward
    sizes = replace(backward, forward=forward)
    name = targets.name_of(device)
    if sizes == table:
        return plan, [f"{UNMEASURED}: `attndsl tune` has stored none that are faster on {name}"]
    changed = [
        kernel for kernel in tuned.KERNELS if getattr(sizes, kernel) != getattr(table, kernel)
    ]
    line = f"sizes of {', '.join(changed)} are as measured on {name}"
    return make_plan(plan.program, replace(request, sizes=sizes)), [line]
