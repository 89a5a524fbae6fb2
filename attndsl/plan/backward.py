"""Whether one kernel makes all gradients, by sums in any order, or separate kernels do."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from attndsl.ir.nodes import is_const
from attndsl.plan.chunks import NARROWEST
from attndsl.plan.configs import Work, work_of
from attndsl.plan.kernel_plan import Chunk, Config, KernelPlan, Request

WGMMA_ROWS = 64  # of a product: the fewest that become wgmma

Kind = Work | Literal["boxes"]  # the work of a pair; "boxes" where tiles are boxes
Widths = tuple[tuple[int, Config], ...]
Table = dict[Kind, Widths]


def with_backward(plan: KernelPlan) -> KernelPlan:
    """The plan, with how the gradients of query, key and value are computed.

    Five products for a tile of pairs are enough where a program owns keys and adds to the gradients
    of all queries that it meets. It adds in the order in which programs happen to run, so only
    where results may differ from run to run. Separate kernels need seven products.
    """
    config, because = None, why_separate(plan)
    if not because:
        request = plan.request
        if request.sizes is not None:
            config, because = request.sizes.backward_fused, "they were measured to be faster"
        else:
            work = work_of(plan.value, plan.program.mask)
            config = config_of(request, kind_of(request, work))
            widest = max(request.head_dim, request.value_dim)
            because = (
                f"no tile of the fused kernel is known to fit the registers of {request.target} "
                f"for {widest} columns of {request.dtype}"
            )
    return replace(plan, backward_fused=config, separate_because="" if config else because)


def kind_of(request: Request, work: Work) -> Kind:
    """What the table of configurations goes by, besides the head dimension."""
    return "boxes" if request.order == "boxes" else work


def why_separate(plan: KernelPlan) -> str:
    """Why kernels must be separate, "" where nothing says so."""
    if plan.request.deterministic:
        return "sums in any order would differ from run to run"
    if plan.request.backend != "triton":
        return "only Triton's kernels add in any order"
    if plan.program.routed is not None or plan.gathered is not None:
        return "what lists of blocks add is merged with the rest by kernels that own queries"
    if is_const(plan.raw_partial, 0.0):
        return "no gradient reaches queries through the score"
    # What a row or a column looks up is summed beside them; a pair's is left to kernels of its own.
    for leaf in plan.leaves:
        is_pair = leaf.level == "pair" or (leaf.node.op == "dot" and leaf.level == "column")
        if is_pair and not is_const(leaf.partial, 0.0):
            return f"`{leaf.node.name}` is looked up pair by pair"
    return ""


def config_of(request: Request, kind: Kind) -> Config | None:
    """The configuration of the table; None where none is known that does not spill."""
    if request.target == "interpreter":
        return INTERPRETER
    if request.dtype == "float32":
        return None
    table = TABLES.get(request.target, {})
    widest = max(request.head_dim, request.value_dim)
    return next((config for limit, config in table.get(kind, ()) if widest <= limit), None)


def is_turned(chunk: Chunk) -> bool:
    """Whether what is added to a chunk of queries is computed with the chunk's elements as rows.

    Tiles have few queries and a chunk has more: these rows fill a matrix instruction, and the
    adjoints of pairs are read as they are.
    """
    return chunk.width >= WGMMA_ROWS


# As small as those of the other kernels, so that a test of 33 tokens meets several tiles.
INTERPRETER = Config(NARROWEST, 2 * NARROWEST, 1, 1)

# By kind: (widest head dimension, configuration). No kernel of the examples spills with these in
# bf16, with Triton 3.6 and 3.9, and products become wgmma but for those of 32 columns that are left
# of 96; how fast they are has not been measured. The sums of 128 keys leave registers for few
# queries, and none where head dimensions are wider.
FEW: Widths = ((96, Config(32, 128, 8, 2)), (128, Config(16, 128, 8, 2)))
NARROW: Widths = ((64, Config(32, 128, 8, 2)),)
HOPPER: Table = {"plain": FEW, "masked": FEW, "tables": NARROW, "boxes": NARROW}
TABLES: dict[str, Table] = {"sm_90": HOPPER}
