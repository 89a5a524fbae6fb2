"""Shared memory: what a block of threads may have, and the most that a kernel needs of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from attndsl.ir.nodes import Node, topological
from attndsl.ir.program import Program
from attndsl.plan.chunks import NARROWEST, chunks
from attndsl.plan.kernel_plan import Config, Request

KernelName = Literal["forward", "backward_dq", "backward_dkv", "backward_fused"]
Axis = Literal["block_m", "block_n"]
KERNELS: tuple[KernelName, ...] = ("forward", "backward_dq", "backward_dkv")  # of every module

KB = 1024
# Bytes that a block may have: CUDA C Programming Guide, technical specifications by compute
# capability; AMD's instruction set guides. A card that is not listed gets the least of its maker.
NVIDIA = {
    **dict.fromkeys(("sm_80", "sm_87"), 163 * KB),
    **dict.fromkeys(("sm_90", "sm_100", "sm_103", "sm_110"), 227 * KB),
    **dict.fromkeys(("sm_86", "sm_89", "sm_120", "sm_121"), 99 * KB),
}
AMD = {"gfx950": 160 * KB}
LEAST_NVIDIA, LEAST_AMD = 99 * KB, 64 * KB

SUM_BYTES = 4
STATISTICS_BYTES = 8  # of a row: its base and delta
# Targets whose sums are in tensor memory; those whose matrix products read shared memory.
TENSOR_MEMORY = ("sm_100", "sm_103", "sm_110")
READ_SHARED = ("sm_90", *TENSOR_MEMORY)
ROWS_OF_A_WARP = 16  # of a product by wgmma
RESERVED = KB  # of a block: partial maxima and sums of rows, barriers

ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4}
ITEM_BYTES |= {"float16": 2, "bfloat16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}


def shared_limit(target: str) -> int:
    """Bytes of shared memory that a block of threads may have.

    >>> shared_limit("sm_90"), shared_limit("sm_89"), shared_limit("gfx942")
    (232448, 101376, 65536)
    """
    if target.startswith("gfx"):
        return AMD.get(target, LEAST_AMD)
    return NVIDIA.get(target, LEAST_NVIDIA)


@dataclass(frozen=True)
class Loads:
    """Bytes that the loop of a kernel loads besides the rows of its operands.

    per_pair   of tables that are looked up for every pair
    per_entry  of those that are looked up for every key, or every query where the loop is over
               queries; there also of the statistics of rows
    """

    per_pair: int
    per_entry: int


def owns_keys(kernel: KernelName) -> bool:
    """Whether a tile of the kernel owns its columns, and its loop walks rows."""
    return kernel in ("backward_dkv", "backward_fused")


def loads_of(program: Program, request: Request, kernel: KernelName) -> Loads:
    weights = program.weights.value
    roots: list[Node] = [program.mask, program.score, *([weights] if weights else [])]
    if program.routed is not None:
        roots.append(program.routed.mask)
    dtypes = dict(zip((t.name for t in program.tensors), request.tensor_dtypes, strict=True))
    walked = "q" if owns_keys(kernel) else "k"
    per_pair, per_entry = 0, STATISTICS_BYTES if walked == "q" else 0
    for node in topological(*roots):
        if node.op in ("lookup", "dot") and walked in node.varies:
            bytes_each = ITEM_BYTES[dtypes[node.name]]
            if node.varies >= {"q", "k"}:
                per_pair += bytes_each
            else:
                per_entry += bytes_each
    return Loads(per_pair, per_entry)


@dataclass(frozen=True)
class Tile:
    """Bytes of what a kernel handles at once.

    held     the rows that a tile owns, of every operand that has such; held_most: of the widest
    staged   the rows that the loop loads for a tile, and what it looks up for them; staged_most: of
             the widest operand
    tables   what it looks up for every pair of a tile
    sums     a sum for every pair
    added    what the pairs of a tile add to the rows that the loop walks
    results  sums for every element of the widest result
    """

    held: int
    held_most: int
    staged: int
    staged_most: int
    tables: int
    sums: int
    added: int
    results: int


def tile_of(program: Program, request: Request, kernel: KernelName, config: Config) -> Tile:
    width, value_width = (
        sum(chunk.width for chunk in chunks(dim)) for dim in (request.head_dim, request.value_dim)
    )
    item, loads = ITEM_BYTES[request.dtype], loads_of(program, request, kernel)
    own, walked = config.block_m, config.block_n
    if owns_keys(kernel):
        own, walked = walked, own
    pairs, widest = own * walked, max(width, value_width)
    return Tile(
        held=own * item * (width if kernel == "forward" else width + value_width),
        held_most=own * item * widest,
        staged=walked * ((width + value_width) * item + loads.per_entry),
        staged_most=walked * widest * item,
        tables=pairs * loads.per_pair,
        sums=pairs * SUM_BYTES,
        added=walked * width * SUM_BYTES if kernel == "backward_fused" else 0,
        results=own * widest * SUM_BYTES,
    )


def shared_bytes(program: Program, request: Request, kernel: KernelName, config: Config) -> int:
    """At most so many bytes of shared memory does a kernel of the shape "peeled" need, whatever
    Triton keeps there; `shapes.py` knows the other shapes.

    When the loop is over, all that it took is free for results. `tests/plan/test_budget.py`
    compares with what Triton's compiler reports.
    """
    assert config.shape == "peeled"
    tile = tile_of(program, request, kernel, config)
    if request.target.startswith("gfx"):
        return max(tile.held_most, amd_loop(tile, config), tile.results)
    passed = passed_bytes(request, kernel, config, tile)
    if request.target in TENSOR_MEMORY:  # both factors of a product are in shared memory
        passed = 2 * passed + tile.staged_most
    loop = nvidia_loop(request, tile, config) + passed + tile.added
    return max(loop, tile.results) + RESERVED


def fitted_to_memory(
    program: Program, request: Request, kernel: KernelName, config: Config
) -> Config:
    """The configuration, or one with fewer stages or smaller tiles that the target has room for."""
    limit = shared_limit(request.target)
    while shared_bytes(program, request, kernel, config) > limit:
        config = smaller(kernel, config)
    return config


def smaller(kernel: KernelName, config: Config) -> Config:
    """One step less: a stage, else half of what the loop walks, else half of what a tile owns.

    >>> smaller("forward", Config(64, 32, 8, 1))
    Config(block_m=64, block_n=16, num_warps=8, num_stages=1, shape='peeled')
    >>> smaller("backward_dkv", Config(16, 64, 8, 1))
    Config(block_m=16, block_n=32, num_warps=8, num_stages=1, shape='peeled')
    """
    if config.num_stages > 1:
        return replace(config, num_stages=config.num_stages - 1)
    own: Axis = "block_n" if owns_keys(kernel) else "block_m"
    walked: Axis = "block_m" if owns_keys(kernel) else "block_n"
    axis = walked if getattr(config, walked) > NARROWEST else own
    extent = getattr(config, axis)
    assert extent > NARROWEST, f"the smallest tile of {kernel} needs too much shared memory"
    return replace(config, **{axis: extent // 2})


def nvidia_loop(request: Request, tile: Tile, config: Config) -> int:
    """What a tile owns stays; what the loop loads is there once for every stage, but for the one
    that is computed where products read registers. So are tables. Without further stages the rows
    of one operand may be there twice, in the layouts of two products."""
    tables = max(config.num_stages - 1, 1) * tile.tables
    reads_shared = request.target in READ_SHARED and request.dtype != "float32"
    if reads_shared:
        return tile.held + config.num_stages * tile.staged + tables
    if config.num_stages > 1:
        return tile.held + (config.num_stages - 1) * tile.staged + tables
    return tile.held + tile.staged + tile.staged_most + tables


def amd_loop(tile: Tile, config: Config) -> int:
    """Everything reaches its product by shared memory and leaves it at once; what further stages
    load stays."""
    further = (config.num_stages - 1) * (tile.staged + tile.tables)
    return further + max(tile.staged_most, tile.sums) + tile.added


def passed_bytes(request: Request, kernel: KernelName, config: Config, tile: Tile) -> int:
    """Probabilities, where they go from one product to the next by shared memory."""
    if tile.tables:
        return tile.sums  # in the layout of the table
    own = config.block_n if owns_keys(kernel) else config.block_m
    is_in_registers = request.target == "sm_90" and request.dtype != "float32"
    is_in_registers &= kernel != "backward_fused"
    if is_in_registers and own >= ROWS_OF_A_WARP * config.num_warps:
        return 0
    return tile.sums * ITEM_BYTES[request.dtype] // SUM_BYTES
