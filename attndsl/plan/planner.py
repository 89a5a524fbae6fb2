"""Program and request -> KernelPlan: every decision that a generator would otherwise make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from attndsl.analysis.build import HIGHEST, LOWEST
from attndsl.analysis.counted import counted_tables, limited_mask
from attndsl.analysis.facts import Loss, Segment, TileFacts
from attndsl.analysis.grids import classify_boxes
from attndsl.analysis.implications import implies
from attndsl.analysis.ranges import solve_keys, solve_queries
from attndsl.analysis.summaries import Summarised, Summary, summarise
from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import OUT, SCORE, TRUE, Node, find, substitute, topological
from attndsl.ir.program import Grid, Program, Routed
from attndsl.plan.backward import config_of as fused_config
from attndsl.plan.backward import with_backward
from attndsl.plan.budget import KERNELS, fitted_to_memory
from attndsl.plan.candidates import may_be
from attndsl.plan.configs import chunks, configs, fitted, work_of
from attndsl.plan.decode import decode_of
from attndsl.plan.hopper import measured
from attndsl.plan.kernel_plan import Config, KernelPlan, Leaf, Level, Request, Sizes, Strategy
from attndsl.plan.shapes import may_have_shape
from attndsl.plan.shifts import shift_of
from attndsl.plan.spans import span_of
from attndsl.transform.differentiate import differentiate
from attndsl.transform.simplify import simplified

TORCH_BOX = (128, 128)  # queries and keys of the boxes of the engine on CPU

# The segments of an order in which positions say nothing: every tile, none of them full.
WHOLE = (Segment(LOWEST, HIGHEST, HIGHEST, LOWEST),)


def plan(program: Program, request: Request) -> KernelPlan:
    """The plan of a simplified program for a request."""
    logit = program.score
    value = value_of(program)
    sizes = request.sizes or table_sizes(program, request)
    output = program.output
    sink = program.weights.sink
    tiles = tiles_of(program, request)
    found = KernelPlan(
        program=program,
        request=request,
        value=value,
        logit=logit,
        may_be_masked_by_score=may_be_minus_infinity(logit),
        raw_partial=differentiate(value, SCORE),
        leaves=leaves_of(value, request.grads),
        sink_partials=leaves_of(sink, request.grads) if sink else (),
        output_partials=leaves_of(output, request.grads) if output else (),
        output_by_out=differentiate(output, OUT) if output else None,
        keys=tiles.keys,
        queries=tiles.queries,
        tile=tiles.facts,
        summaries=tiles.summaries,
        strategy=tiles.strategy,
        losses=tiles.losses,
        grid=program.grid if request.order == "boxes" else None,
        query_chunks=chunks(request.head_dim),
        value_chunks=chunks(request.value_dim),
        forward=sizes.forward,
        backward_dq=sizes.backward_dq,
        backward_dkv=sizes.backward_dkv,
        routed=routed_plan(program, request),
        shift=shift_of(value) if may_shift(program, request) else None,
        key_span=span_of(tiles.keys, "q") if tiles.strategy == "ranges" else None,
        query_span=span_of(tiles.queries, "k") if tiles.strategy == "ranges" else None,
    )
    for name in KERNELS:
        config: Config = getattr(found, name)
        is_legal = may_have_shape(program, request, name, config)
        assert is_legal, f"{name} may not have the shape {config.shape}: {config}"
    return with_backward(replace(found, decode=decode_of(found)))


@lru_cache(maxsize=1024)
def table_sizes(program: Program, request: Request) -> Sizes:
    """The configurations of the tables, as the target has room for them: those of a request without
    sizes of its own. A kernel that may not have what was measured is peeled."""
    found = peeled_sizes(program, request)
    if request.target != "sm_90" or program.routed is not None or request.order == "boxes":
        return found
    tiles = tiles_of(program, request)
    row = measured(request, value_of(program), program.mask, tiles.strategy, tiles.keys)
    if row is None:
        return found
    for name, config in zip(KERNELS, row, strict=True):
        if may_be(program, request, name, config):
            found = replace(found, **{name: config})
    return found


def peeled_sizes(program: Program, request: Request) -> Sizes:
    """The configurations of the table of peeled loops that read by pointer."""
    found = configs(request, work_of(value_of(program), program.mask))
    if request.backend != "triton":
        return found
    if request.target != "interpreter":
        for name in KERNELS:
            config = fitted_to_memory(program, request, name, getattr(found, name))
            found = replace(found, **{name: config})
    return replace(found, backward_fused=None if request.deterministic else fused_config(request))


def routed_plan(program: Program, request: Request) -> KernelPlan | None:
    """The plan of the pairs that lists of blocks add; None where there are no lists."""
    if program.routed is None:
        return None
    assert request.order == "linear", "the keys of a block are a run of positions"
    routed = program.routed
    mask = TRUE if implies(routed.where, routed.mask) else routed.mask
    found = plan(replace(program, mask=mask, routed=None), request)
    sizes = request.sizes or peeled_sizes(found.program, request)
    packs_heads = request.backend == "triton" and may_pack_heads(routed, mask, found.value)
    sizes = fitted(request, found.value, routed.columns, packs_heads, sizes)
    gathered = replace(
        found,
        gathered=routed,
        tile=classify(mask),
        summaries=(),
        strategy="ranges",
        forward=sizes.forward,
        backward_dq=sizes.backward_dq,
        backward_dkv=sizes.backward_dkv,
        packs_heads=packs_heads,
        decode=None,
        key_span=None,
        query_span=None,
        shift=None,
    )
    return with_backward(gathered)


def may_pack_heads(routed: Routed, mask: Node, value: Node) -> bool:
    """Whether the heads of a group can share the tiles that lists name: they have the same lists,
    and no tensor is read for each key and head. What that adds up for a key is kept by head, and
    it would have to be read pair by pair."""
    reads = find(mask, "lookup", "dot") + find(value, "lookup", "dot")
    return routed.per_group and not any(
        level_of(node) == "column" and "h" in node.varies for node in reads
    )


def may_shift(program: Program, request: Request) -> bool:
    """Whether kernels subtract something from every logit, and keys of a tile are neighbours."""
    return request.backend == "triton" and not program.weights.value and request.order == "linear"


def value_of(program: Program) -> Node:
    """The value of a pair, by the raw score: see KernelPlan."""
    weight = program.weights.value
    return (
        program.score if weight is None else simplified(substitute(weight, {SCORE: program.score}))
    )


@dataclass(frozen=True)
class Tiles:
    """What a plan says of tiles: see KernelPlan."""

    keys: tuple[Segment, ...]
    queries: tuple[Segment, ...]
    facts: TileFacts
    summaries: tuple[Summary, ...]
    strategy: Strategy
    losses: tuple[Loss, ...]


def tiles_of(program: Program, request: Request) -> Tiles:
    """How the kernels of a program find their tiles."""
    moves = bool({"q_offset", "k_offset"} & set(request.per_batch))
    if request.order == "boxes":
        assert program.grid is not None and not moves
        return boxes_of(program, program.grid)
    summarised = summarise(program.mask, not moves)
    facts = classify(summarised.mask, summarised.extremes, tables=counted_tables(program))
    limited = limited_mask(program)
    keys, queries = solve_keys(limited), solve_queries(limited)
    losses = tuple(dict.fromkeys((*keys.losses, *queries.losses)))
    strategy = strategy_of(summarised, facts, losses)
    return Tiles(keys.segments, queries.segments, facts, summarised.summaries, strategy, losses)


def boxes_of(program: Program, grid: Grid) -> Tiles:
    """How tiles are found that are boxes: by their coordinates, and summaries of one axis. Those of
    a table by query and key would need a copy of it in the order of the boxes."""
    tables = [s.node for s in summarise(program.mask).summaries if len(s.axes) == 2]
    summarised = summarise(program.mask, are_rows_aligned=False)
    tables_of_blocks = counted_tables(program)
    facts = classify_boxes(grid, summarised.mask, summarised.extremes, tables_of_blocks)
    losses = tuple(Loss(node, "boxes do not summarise a table by query and key") for node in tables)
    return Tiles(WHOLE, WHOLE, facts, summarised.summaries, "lists", losses)


@lru_cache(maxsize=256)
def block_of(program: Program, request: Request) -> tuple[int, int]:
    """Queries and keys of a tile of the forward, by which the order of a call is chosen."""
    if request.backend == "torch":
        return TORCH_BOX
    forward = (request.sizes or table_sizes(program, request)).forward
    return forward.block_m, forward.block_n


def strategy_of(summarised: Summarised, facts: TileFacts, losses: tuple[Loss, ...]) -> Strategy:
    """Lists where the facts of a tile say more than the segments do: where they know something of
    what the segments lost."""
    lost = frozenset(loss.node for loss in losses)
    if any(node.kind == "bool" and node.op != "lookup" for node in lost):
        return "lists"
    stand_ins = {*summarised.places, *summarised.meetings}
    blind = classify(summarised.mask, unknown=lost | stand_ins)
    return "ranges" if blind == facts else "lists"


def leaves_of(value: Node, grads: tuple[str, ...]) -> tuple[Leaf, ...]:
    """The dots of an expression and its lookups of tensors in `grads`, with their derivatives."""
    wanted = [n for n in find(value, "dot", "lookup") if n.op == "dot" or n.name in grads]
    return tuple(Leaf(node, differentiate(value, node), level_of(node)) for node in wanted)


def level_of(node: Node) -> Level:
    """Where the index of a lookup or dot lives."""
    varies = frozenset[str]().union(*(arg.varies for arg in node.args))
    if "score" in varies:
        return "pair"
    if "k" not in varies:
        return "row"
    return "column" if "q" not in varies else "pair"


# Ops that give a finite result for finite arguments (rounding aside: a float32 overflow is a
# property of the data, not of the program).
FINITE = frozenset(
    "const index size score to_float bool_to_int add sub mul neg abs min max where "
    "sin cos tanh erf sigmoid relu softplus floor ceil round trunc floordiv floormod".split()
)


def may_be_minus_infinity(logit: Node) -> bool:
    """Whether a finished logit can be -inf though the raw score is finite.

    Unknown counts as yes: a float table or scalar may hold -inf, a logarithm may see 0.
    """
    if logit is SCORE:
        return False
    for node in topological(logit):
        if node.kind != "float":
            continue
        if node.op not in FINITE:
            return True
        if node.op == "const" and node.value in (float("inf"), float("-inf")):
            return True
    return False
