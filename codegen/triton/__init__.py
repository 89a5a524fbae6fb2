"""The Triton generator: a plan as one file of kernels and of functions that launch them."""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.backend import KernelSpec
from attndsl.plan import boxes as box_library
from attndsl.plan import splits as split_library
from attndsl.plan.kernel_plan import KernelPlan

from .. import library as host_library
from ..lines import Lines
from ..scope import library_text as torch_library_text
from ..summaries import used_summaries
from .backward import (
    BackwardDots,
    BackwardQuery,
    BackwardTables,
    Delta,
    dot_leaves,
    table_leaves,
)
from .classify import Classify
from .columns import BackwardKeyValue
from .decode import Decode, DecodeMerge
from .decode_host import FUNCTIONS as DECODE_FUNCTIONS
from .forward import Forward
from .fused import BackwardFused
from .header import write_header
from .host import (
    DESCRIPTOR_FUNCTIONS,
    FUNCTIONS,
    LIST_FUNCTIONS,
    SIGN_FUNCTIONS,
    TABLE_FUNCTIONS,
    takes_sign,
    uses_descriptors,
    write_backward,
    write_forward,
)
from .kernel import Kernel
from .library import library_text
from .lists import uses_lists, visits_nothing
from .routed import routed_plan
from .routed_host import FUNCTIONS as ROUTED_FUNCTIONS
from .routed_merge import AddQuery, Merge
from .summarise import Summarise
from .windows import Windows

LOOPS = ("forward", "backward_dq", "backward_dkv")

Written = (
    Summarise
    | Classify
    | Forward
    | Decode
    | Delta
    | BackwardQuery
    | BackwardDots
    | BackwardKeyValue
    | BackwardFused
    | BackwardTables
    | Merge
    | AddQuery
)


def write_kernels(plan: KernelPlan) -> tuple[dict[str, Kernel], list[str]]:
    """The kernels by name, in the order in which they run, and their texts."""
    routed = routed_plan(plan)
    # Without a pair of its own the base has no results to merge.
    kernels: list[Written] = [] if routed and visits_nothing(plan) else [Forward(plan)]
    if plan.decode is not None:
        kernels += [Decode(plan), Decode(plan, is_part=True), DecodeMerge(plan)]
        kernels += [Windows(plan)] if plan.decode.windows is not None else []
    if uses_lists(plan):
        columns = Classify(plan, plan.backward_fused or plan.backward_dkv, columns_first=True)
        summaries = [Summarise(plan, summary) for summary in used_summaries(plan)]
        kernels = [*summaries, Classify(plan, plan.forward), columns, *kernels]
    if plan.form != "elementwise":
        kernels.append(Delta(plan))
    kernels += adjoint_kernels(plan)
    if routed is not None:
        kernels += [Forward(routed), Merge(plan), Merge(plan, is_spread=True)]
        kernels += [*adjoint_kernels(routed), AddQuery(plan), AddQuery(plan, is_spread=True)]
    texts = [kernel.write() for kernel in kernels]
    return {kernel.arguments.name: kernel for kernel in kernels}, texts


def adjoint_kernels(plan: KernelPlan) -> list[Written]:
    """The kernels of the backward, after its statistics of rows."""
    if plan.backward_fused is not None:
        return [BackwardFused(plan)]
    kernels: list[Written] = [BackwardQuery(plan)]
    if dot_leaves(plan):
        kernels.append(BackwardDots(plan))
    if table_leaves(plan):
        kernels.append(BackwardTables(plan))
    return [*kernels, BackwardKeyValue(plan)]


def emit(plan: KernelPlan) -> str:
    """The text of the module. Needs a float16, bfloat16 or float32 request."""
    kernels, texts = write_kernels(plan)
    host = Lines()
    write_forward(host, plan, kernels)
    host.blank(2)
    write_backward(host, plan, kernels)
    body = "\n\n".join(texts)
    functions = FUNCTIONS
    if plan.decode is not None:
        functions += "\n\n" + DECODE_FUNCTIONS
    if uses_lists(plan):
        functions += "\n\n" + LIST_FUNCTIONS
    if routed_plan(plan) is not None:
        functions += "\n\n" + ROUTED_FUNCTIONS
    if table_leaves(plan):
        functions += "\n\n" + TABLE_FUNCTIONS
    if takes_sign(plan):
        functions += "\n\n" + SIGN_FUNCTIONS
    if uses_descriptors(plan, *LOOPS):
        functions += "\n\n" + DESCRIPTOR_FUNCTIONS
    lines = Lines()
    write_header(lines, plan)
    sections: Iterable[str] = (
        library_text(body),
        *texts,
        functions,
        torch_library_text(host.text(), host_library, box_library, split_library),
        host.text(),
    )
    for section in sections:
        if section:
            lines.blank(2)
            lines.add(section.rstrip("\n"))
    return lines.text()


def kernels(plan: KernelPlan) -> tuple[KernelSpec, ...]:
    """The module's device kernels, in the order in which they run."""
    return tuple(kernel.arguments.spec() for kernel in write_kernels(plan)[0].values())
