"""The table of kernels whose tiles are read by descriptors on Hopper: sizes by what pairs cost."""

from __future__ import annotations

from typing import Literal

from attndsl.ir.nodes import SCORE, Node, topological
from attndsl.plan.configs import varies_with_pairs, work_of
from attndsl.plan.kernel_plan import Config, Request

# bare    the score itself, and a mask that compares positions as they are
# plain   an affine score, or a mask that computes with positions first
# long    an elementary function of the score
# masked  a long mask
Kind = Literal["bare", "plain", "long", "masked"]
Row = tuple[Config | None, Config | None, Config | None]

LONG_OPS = frozenset("exp exp2 log log2 tanh sigmoid softplus erf sin cos".split())
LONGEST_OPS = frozenset(("pow",))  # no registers are left beside it


def described(request: Request, value: Node, mask: Node) -> Row:
    """Configurations of forward, backward_dq and backward_dkv in the shape "described", for those
    of them that have it wherever they may (`shapes.py`); None for the others."""
    kind = kind_of(value, mask)
    if request.target != "sm_90" or kind is None:
        return None, None, None
    widest = max(request.head_dim, request.value_dim)
    return next((row for limit, row in TABLE[kind] if widest <= limit), (None, None, None))


def kind_of(value: Node, mask: Node) -> Kind | None:
    """What pairs cost; None where they cost too much."""
    work = work_of(value, mask)
    ops = {node.op for node in topological(value) if "score" in node.varies or node.varies >= {"k"}}
    if work in ("tables", "dots") or ops & LONGEST_OPS:
        return None
    if work == "masked":
        return "masked"
    if ops & LONG_OPS:
        return "long"
    nodes = topological(mask)
    computed = [n for n in nodes if n.args and n.varies & {"q", "k"} and not varies_with_pairs(n)]
    return "plain" if computed or value is not SCORE else "bare"


def sized(forward: tuple[int, int], dq: tuple[int, int], dkv: tuple[int, int]) -> Row:
    """Rows and columns of the three kernels, with eight warps and two stages."""
    m, n, k = (Config(*size, 8, 2, "described") for size in (forward, dq, dkv))
    return m, n, k


# (widest head dimension, configurations), by kind: the largest tiles that spill no registers for
# any example, in bf16, compiled with Triton 3.9. They take fewer instructions for each pair than
# peeled loops by pointer (`attndsl bench static`); no card has timed them yet.
TABLE: dict[Kind, tuple[tuple[int, Row], ...]] = {
    "bare": ((128, sized((128, 128), (128, 128), (64, 128))),),
    "plain": (
        (64, sized((128, 128), (128, 128), (64, 128))),
        (128, sized((128, 128), (128, 64), (64, 128))),
    ),
    "long": (
        (64, sized((128, 128), (128, 64), (64, 128))),
        (128, sized((128, 128), (128, 64), (32, 128))),
    ),
    "masked": (
        (64, sized((128, 128), (128, 64), (64, 128))),
        (128, sized((128, 128), (128, 64), (32, 128))),
    ),
}
