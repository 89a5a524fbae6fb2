"""The table of kernels on Hopper in half precision: sizes and shapes by what pairs cost and by how
many tiles a row has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attndsl.analysis.facts import Segment
from attndsl.ir.nodes import SCORE, Node, find, topological
from attndsl.plan.configs import work_of
from attndsl.plan.kernel_plan import Config, Request, Strategy

# bare    the score itself
# plain   something is added to it
# long    an elementary function of the score
# band    bare or plain, and a row has few tiles: keys from one that moves with it to another
Kind = Literal["bare", "plain", "long", "band"]
Row = tuple[Config, Config, Config]

LONG_OPS = frozenset("exp exp2 log log2 tanh sigmoid softplus erf sin cos".split())
LONGEST_OPS = frozenset(("pow",))  # no registers are left beside it


def measured(
    request: Request, value: Node, mask: Node, strategy: Strategy, keys: Sequence[Segment]
) -> Row | None:
    """Configurations of forward, backward_dq and backward_dkv; None where those of peeled kernels
    serve: for lists of tiles, whose next entry a descriptor would wait for, for long masks, and for
    pairs that look something up."""
    kind = None if strategy == "lists" else kind_of(value, mask, keys)
    if request.target != "sm_90" or request.dtype == "float32" or kind is None:
        return None
    widest = max(request.head_dim, request.value_dim)
    return next((row for limit, row in TABLE[kind] if widest <= limit), None)


def kind_of(value: Node, mask: Node, keys: Sequence[Segment]) -> Kind | None:
    """What a row costs; None where a pair costs too much."""
    ops = {node.op for node in topological(value) if "score" in node.varies or node.varies >= {"k"}}
    if work_of(value, mask) != "plain" or ops & LONGEST_OPS:
        return None
    if ops & LONG_OPS:
        return "long"
    if all(find(end, "bound") for segment in keys for end in (segment.lo, segment.hi)):
        return "band"
    return "bare" if value is SCORE else "plain"


def described(rows: int, columns: int, warps: int, stages: int) -> Config:
    return Config(rows, columns, warps, stages, "described")


# (widest head dimension, forward, backward_dq and backward_dkv), by kind. Measured on an H200 in
# bf16 with Triton 3.6.0 on 2026-11-20 (docs/performance.md): the fastest at 16k tokens, or one that
# is within 3 % (backward_dq of long pairs at 64: 7 %) and also fast for other masks. Programs of
# four warps share a multiprocessor: one computes weights while another multiplies. Making a
# descriptor takes about a microsecond, which few tiles do not give back.
TABLE: dict[Kind, tuple[tuple[int, Row], ...]] = {
    "bare": (
        (64, (described(64, 128, 4, 2), described(64, 64, 4, 2), described(64, 64, 4, 3))),
        (128, (Config(128, 128, 8, 3), described(64, 64, 4, 2), described(64, 128, 8, 3))),
    ),
    "plain": (
        (64, (described(64, 64, 4, 3), described(64, 64, 4, 2), described(64, 64, 4, 3))),
        (128, (described(128, 128, 8, 3), described(64, 64, 4, 2), described(64, 64, 4, 2))),
    ),
    "long": (
        (64, (described(64, 128, 4, 2), described(64, 64, 4, 2), described(64, 64, 4, 3))),
        (128, (described(64, 64, 4, 3), described(64, 64, 4, 2), described(32, 64, 4, 3))),
    ),
    "band": (
        (64, (Config(64, 64, 4, 3), Config(64, 32, 4, 3), Config(32, 64, 4, 3))),
        (128, (described(64, 64, 4, 3), described(64, 64, 4, 2), described(64, 64, 4, 2))),
    ),
}
