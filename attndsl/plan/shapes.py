"""Which kernels may have the shapes that read by descriptors: what Triton compiles for sm_90 and
has room for.

What the rules for "specialised" leave out crashes Triton's compiler (3.6 to 3.9), or runs as if it
had one group of warps: loads by pointer of as many elements as the kernel has threads, or more,
wherever they stand before the loop or in it, if a product depends on them; more than one loop;
other numbers of warps.
"""

from __future__ import annotations

from math import prod

from attndsl.ir.nodes import Node, find
from attndsl.ir.program import Program
from attndsl.plan.budget import ITEM_BYTES, SUM_BYTES, KernelName, shared_limit
from attndsl.plan.chunks import NARROWEST, chunks
from attndsl.plan.kernel_plan import Config, Request

ALIGNMENT = 16  # bytes: of addresses and strides of a descriptor
WARPS = 4  # of each group; there are two that compute and one that loads
GROUP_ROWS = 64  # of a product, of each group that computes
GROUPS = 2
# A load by pointer has fewer elements.
MOST_LOADED = 32 * WARPS - 1
RESULT_ROWS = 64  # on their way to memory at once, of 128 columns at least
RESERVED = 3 * 1024  # bytes of shared memory besides tiles and results: numbers of rows, barriers
FEWEST_STAGES = 2  # with one there is nothing to load ahead, and Triton ignores the request


def may_have_shape(program: Program, request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether a kernel of a call with this request compiles in the shape of a configuration."""
    if config.shape == "specialised":
        return may_specialise(program, request, kernel, config)
    return config.shape == "peeled" or may_describe(program, request, kernel, config)


def may_describe(program: Program, request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether a kernel may have the shape "described" with these sizes."""
    if not is_describable(request) or not is_straight(program, request):
        return False
    if request.target == "interpreter":
        return True
    own = config.block_n if kernel == "backward_dkv" else config.block_m
    widest = max(sum(chunk.width for chunk in chunks(d)) for d in widths(request))
    room = max(loop_bytes(request, kernel, config), own * widest * SUM_BYTES) + RESERVED
    return room <= shared_limit(request.target)


def may_specialise(program: Program, request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether a kernel of a call with this request compiles in the shape "specialised", with these
    sizes. In Triton's interpreter any sizes do, and any dtype."""
    if not is_describable(request) or not is_straight(program, request):
        return False
    own, walked = config.block_m, config.block_n
    if kernel == "backward_dkv":
        own, walked = walked, own
    if request.target == "interpreter":
        return True
    has_groups = config.num_warps == WARPS and own == GROUPS * GROUP_ROWS
    return (
        has_groups
        and walked >= NARROWEST
        and config.num_stages >= FEWEST_STAGES
        and lookups_fit(program, config)
        and has_room(request, kernel, config)
    )


def is_describable(request: Request) -> bool:
    """Whether query, key, value and the gradient of the result have descriptors."""
    item = ITEM_BYTES[request.dtype]
    is_hopper = request.target == "sm_90" and request.dtype in ("float16", "bfloat16")
    return (
        request.backend == "triton"
        and (is_hopper or request.target == "interpreter")
        and request.unit_stride
        and request.aligned
        and all(width * item % ALIGNMENT == 0 for width in widths(request))
    )


def is_straight(program: Program, request: Request) -> bool:
    """Whether tiles are runs of rows and columns of one head, and pairs read nothing of their own:
    a dot is a loop, and a lookup for each pair a load of the size of a tile."""
    if program.routed is not None or request.order != "linear":
        return False
    if any(find(root, "dot") for root in roots_of(program, with_results=True)):
        return False
    return not any(is_of_pairs(node) for node in lookups_of(program))


def is_of_pairs(node: Node) -> bool:
    return "score" in node.varies or node.varies >= {"q", "k"}


def lookups_fit(program: Program, config: Config) -> bool:
    """Whether what is looked up for each row, or for each column, is a small load."""
    extents = {"q": config.block_m, "k": config.block_n}
    return all(
        prod(extents[index] for index in extents if index in node.varies) <= MOST_LOADED
        for node in lookups_of(program)
    )


def lookups_of(program: Program) -> list[Node]:
    """What the loop may read of the program's tensors."""
    return [node for root in roots_of(program) for node in find(root, "lookup")]


def roots_of(program: Program, with_results: bool = False) -> list[Node]:
    """The expressions of pairs; `with_results` those of rows and results too."""
    weights = program.weights
    found = [program.mask, program.score, weights.value]
    if with_results:
        found += [weights.sink, program.output]
    return [root for root in found if root is not None]


def has_room(request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether shared memory holds the tiles of the loop and, beside them, results."""
    widest = max(sum(chunk.width for chunk in chunks(d)) for d in widths(request))
    results = RESULT_ROWS * max(widest, 128) * ITEM_BYTES[request.dtype]
    room = loop_bytes(request, kernel, config) + results + RESERVED
    return room <= shared_limit(request.target)


def loop_bytes(request: Request, kernel: KernelName, config: Config) -> int:
    """Bytes of the tiles of a kernel's own rows or columns, and of those on their way for each
    stage."""
    width, value_width = (sum(chunk.width for chunk in chunks(d)) for d in widths(request))
    both = width + value_width
    own, walked = config.block_m * (width if kernel == "forward" else both), config.block_n * both
    if kernel == "backward_dkv":
        own, walked = config.block_n * both, config.block_m * both
    return (own + config.num_stages * walked) * ITEM_BYTES[request.dtype]


def widths(request: Request) -> tuple[int, int]:
    return request.head_dim, request.value_dim
