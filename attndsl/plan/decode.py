"""How calls of few queries run: which of them, in what tiles, and whether heads share these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attndsl.analysis.facts import Segment
from attndsl.ir.nodes import Node, find, topological
from attndsl.plan.configs import NARROWEST, Work, work_of
from attndsl.plan.kernel_plan import Config, Decode, KernelPlan, Request

Table = tuple[tuple[int, Config], ...]  # (widest head dimension, tile)

# Bytes that a multiprocessor should wait for at once: three times its share of what the memory of
# an H200 moves in a microsecond (4.3 TB/s, 132 of them), as programs wait for more than memory.
IN_FLIGHT = 96 * 1024
PLAIN = frozenset(
    "const scalar size bound add sub mul neg abs min max lt le eq ne and or not where "
    "floordiv floormod bool_to_int".split()
)
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
MOST_RESIDENT = 4


def decode_of(plan: KernelPlan) -> Decode | None:
    """How calls of few queries run. None where tiles are boxes or gathered, whose results may be
    only a part of what is attended, and for other generators than Triton's."""
    is_whole = plan.program.routed is None and plan.gathered is None
    if plan.request.backend != "triton" or plan.grid is not None or not is_whole:
        return None
    work = work_of(plan.value, plan.program.mask)
    tiles = tiles_of(config_of(plan.request, work), work)
    resident = resident_of(plan.request, tiles[0])
    packs_heads, knows_reach = may_pack_heads(plan), are_plain(plan.keys)
    return Decode(tiles, resident, packs_heads, knows_reach, windows_of(plan))


def tiles_of(widest: Config, work: Work) -> tuple[Config, ...]:
    """Tiles by how many rows they have. Four warps have registers enough for few rows, unless each
    pair looks something up.

    >>> [(tile.block_m, tile.num_warps) for tile in tiles_of(Config(64, 64, 8, 3), "plain")]
    [(16, 4), (32, 4), (64, 8)]
    """
    is_light = work not in ("tables", "dots")
    narrow = [rows for rows in (16, 32) if rows < widest.block_m and (is_light or rows == 16)]
    warps = min(widest.num_warps, 4) if is_light else widest.num_warps
    few = (replace(widest, block_m=rows, num_warps=warps) for rows in narrow)
    return (*few, widest)


def resident_of(request: Request, config: Config) -> int:
    """Programs of a multiprocessor, by how many bytes each of them waits for.

    >>> [resident_of(Request(dtype="bfloat16", head_dim=d), Config(64, 64, 4, 3)) for d in (32, 64)]
    [4, 3]
    """
    bytes_per_key = (request.head_dim + request.value_dim) * BYTES[request.dtype]
    waiting = max(config.num_stages - 1, 1) * config.block_n * bytes_per_key
    return min(max(-(-IN_FLIGHT // waiting), 2), MOST_RESIDENT)


def windows_of(plan: KernelPlan) -> Config | None:
    """The tile of programs that go over sequences: only where positions are the same in all of
    them, so that there is something to share, and registers hold what is shared."""
    request, program = plan.request, plan.program
    offsets = {"q_offset", "k_offset"} & set(request.per_batch)
    roots = (plan.value, program.mask, program.weights.sink, program.output)
    has_dot = any(find(root, "dot") for root in roots if root is not None)
    widest = max(request.head_dim, request.value_dim)
    if offsets or has_dot or request.dtype == "float32" and request.target != "interpreter":
        return None
    if request.target == "interpreter":
        return INTERPRETER
    table = WINDOWS_HOPPER if request.target == "sm_90" else WINDOWS
    found = next((config for limit, config in table if widest <= limit), None)
    reads = [n for root in (plan.value, program.mask) for n in find(root, "lookup")]
    if found and any(node.varies >= {"b", "q", "k"} for node in reads):  # read in the loop
        return replace(found, num_warps=8)
    return found


def windows_plan(plan: KernelPlan) -> KernelPlan:
    """The plan as the kernel for windows sees it."""
    decode = plan.decode
    assert decode is not None and decode.windows is not None
    return replace(plan, forward=decode.windows, decode=None)


def decode_plan(plan: KernelPlan) -> KernelPlan:
    """The plan as the kernels for few queries see it."""
    decode = plan.decode
    assert decode is not None
    return replace(plan, forward=decode.widest, packs_heads=decode.packs_heads, decode=None)


def may_pack_heads(plan: KernelPlan) -> bool:
    """Whether the heads of a group need the same keys: the tiles of all of them are found once."""
    nodes: list[Node] = [end for segment in plan.keys for end in (segment.lo, segment.hi)]
    if plan.strategy == "lists":  # heads that differ in anything have lists of their own
        segments = plan.keys + plan.queries
        nodes += [end for s in segments for end in (s.lo, s.hi, s.full_lo, s.full_hi)]
        nodes += [plan.tile.possible, plan.tile.certain, *(s.node for s in plan.summaries)]
    return not any("h" in node.varies for node in nodes)


def are_plain(segments: Sequence[Segment]) -> bool:
    """Whether their outer ends are ints that follow from shapes and scalars, by ops that Python
    computes as they are."""
    nodes = topological(*(end for segment in segments for end in (segment.lo, segment.hi)))
    return all(node.kind != "float" and node.op in PLAIN for node in nodes)


def config_of(request: Request, work: Work) -> Config:
    """The tile with the most rows."""
    widest = max(request.head_dim, request.value_dim)
    if request.target == "interpreter":
        return INTERPRETER
    if request.dtype == "float32":
        table = FLOAT32
    elif request.target == "sm_90":
        table = HOPPER
    elif request.target.startswith("gfx"):
        table = AMD
    else:
        table = DEFAULT
    found = next(config for limit, config in table if widest <= limit)
    narrower = {"tables": 2, "dots": 4}.get(work, 1)
    return replace(found, block_n=max(found.block_n // narrower, NARROWEST))


# Few queries, so that tests of 33 tokens meet the other kernels too.
INTERPRETER = Config(16, 16, 1, 1)
# Tiles of 64 keys and three stages read 128k keys at 88 % of an H200's copy bandwidth; 32 or 128
# keys, and two or four stages, at 83 to 88 % (bf16, D 128, Triton 3.6.0, 2026-11-20). Fewer keys
# leave the launches in sight. Other tables are unmeasured.
HOPPER: Table = (
    (64, Config(64, 64, 4, 3)),
    (128, Config(64, 64, 8, 3)),
    (256, Config(64, 32, 8, 2)),
)
DEFAULT: Table = (
    (64, Config(64, 64, 4, 3)),
    (128, Config(64, 32, 4, 3)),
    (256, Config(64, 16, 8, 2)),
)
AMD: Table = (
    (64, Config(64, 64, 4, 2)),
    (128, Config(64, 64, 4, 1)),
    (256, Config(64, 32, 4, 1)),
)
FLOAT32: Table = (
    (64, Config(32, 32, 8, 2)),
    (128, Config(32, 16, 8, 2)),
    (256, Config(16, 16, 4, 1)),
)
# The tile of a window. A wider head has no registers left for what windows share.
WINDOWS_HOPPER: Table = ((64, Config(64, 64, 4, 2)), (128, Config(64, 64, 8, 2)))
WINDOWS: Table = ((64, Config(64, 64, 4, 2)),)
