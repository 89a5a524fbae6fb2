"""Which kernels may read by descriptors: what Triton compiles for sm_90 and has room for."""

from __future__ import annotations

from attndsl.ir.nodes import Node, find
from attndsl.ir.program import Program
from attndsl.plan.budget import ITEM_BYTES, SUM_BYTES, KernelName, shared_limit
from attndsl.plan.chunks import chunks
from attndsl.plan.kernel_plan import Config, Request

ALIGNMENT = 16  # bytes: of addresses and strides of a descriptor
RESERVED = 3 * 1024  # bytes of shared memory besides tiles and results: numbers of rows, barriers


def may_have_shape(program: Program, request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether a kernel of a call with this request compiles in the shape of a configuration."""
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
