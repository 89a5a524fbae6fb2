"""Whether one kernel makes all gradients, by sums in any order, or separate kernels do."""

from __future__ import annotations

from dataclasses import replace

from attndsl.ir.nodes import is_const
from attndsl.plan.chunks import NARROWEST
from attndsl.plan.kernel_plan import Chunk, Config, KernelPlan, Request

WGMMA_ROWS = 64  # of a product: the fewest that become wgmma
# Where one kernel is compiled and tested, and may be measured beside the separate ones.
FUSED_TARGETS = ("sm_90",)


def with_backward(plan: KernelPlan) -> KernelPlan:
    """The plan, with how the gradients of query, key and value are computed.

    Five products for a tile of pairs are enough where a program owns keys and adds to the gradients
    of all queries that it meets. It adds in the order in which programs happen to run, so only
    where results may differ from run to run. Separate kernels need seven products.
    """
    config, because = None, why_separate(plan)
    if not because:
        request = plan.request
        config = request.sizes.backward_fused if request.sizes else config_of(request)
        because = SLOWER if request.target in FUSED_TARGETS else UNKNOWN
    return replace(plan, backward_fused=config, separate_because="" if config else because)


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


def config_of(request: Request) -> Config | None:
    """The configuration where none was measured; None where separate kernels run then."""
    return INTERPRETER if request.target == "interpreter" else None


def is_turned(chunk: Chunk) -> bool:
    """Whether what is added to a chunk of queries is computed with the chunk's elements as rows.

    Tiles have few queries and a chunk has more: these rows fill a matrix instruction, and the
    adjoints of pairs are read as they are.
    """
    return chunk.width >= WGMMA_ROWS


# As small as those of the other kernels, so that a test of 33 tokens meets several tiles.
INTERPRETER = Config(NARROWEST, 2 * NARROWEST, 1, 1)

# On an H200 every size of the one kernel took longer than both others together, with sums by
# atomics of addresses or of tiles (docs/performance.md).
SLOWER = "they are faster where both were measured; `attndsl tune --nondeterministic` compares them"
UNKNOWN = "the one kernel has not been tried on this target"
