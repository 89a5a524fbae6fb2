"""Tiles, warps and stages by target, dtype, head dimension and kind of work: the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from attndsl.ir.nodes import SCORE, Node, is_const, topological
from attndsl.plan.chunks import NARROWEST as NARROWEST
from attndsl.plan.chunks import chunks as chunks
from attndsl.plan.kernel_plan import Config, Request, Sizes

LONG_MASK = 4  # nodes of a mask that differ from pair to pair; one that has more counts as work
LONGEST_MASK = 8  # of one that has more, a tile is as small as where pairs look something up
Table = tuple[tuple[int, Sizes], ...]
Work = Literal["plain", "masked", "tables", "dots"]


def work_of(value: Node, mask: Node) -> Work:
    """What a pair costs in registers: little, a long mask, lookups by query and key (or a mask as
    long as that), or dots."""
    pairs = [node for node in topological(value, mask) if varies_with_pairs(node)]
    if any(node.op == "dot" for node in pairs):
        return "dots"
    if any(node.op == "lookup" for node in pairs):
        return "tables"
    nodes = topological(mask)
    cost = sum(1 for node in nodes if varies_with_pairs(node))
    cost += sum(2 for node in nodes if node.op == "lookup" and "k" in node.varies)
    if cost > LONGEST_MASK:
        return "tables"
    return "masked" if cost > LONG_MASK else "plain"


def varies_with_pairs(node: Node) -> bool:
    """Whether a node has a value of its own for every query and key, other than by the score."""
    return node.varies >= {"q", "k"}


def configs(request: Request, work: Work = "plain") -> Sizes:
    """Configurations of forward, backward_dq and backward_dkv.

    `block_m` counts queries and `block_n` keys in all three.
    """
    widest = max(request.head_dim, request.value_dim)
    if request.backend in ON_CPU:
        return ON_CPU[request.backend]
    if request.target == "interpreter":
        return INTERPRETER
    if request.dtype == "float32":
        table = FLOAT32
    elif request.target == "sm_90":
        return choose(HOPPER[work], widest)
    elif request.target.startswith("gfx"):
        table = AMD
    else:
        table = DEFAULT
    return lighter(choose(table, widest), {"tables": 2, "dots": 4}.get(work, 1))


def choose(table: Table, widest: int) -> Sizes:
    """The entry for a head dimension."""
    return next(found for limit, found in table if widest <= limit)


def lighter(found: Sizes, by: int) -> Sizes:
    """Configurations with fewer pairs in a tile: shorter along the axis of the loop."""
    forward, dq, dkv = found.forward, found.backward_dq, found.backward_dkv
    return Sizes(
        replace(forward, block_n=max(forward.block_n // by, NARROWEST)),
        replace(dq, block_n=max(dq.block_n // by, NARROWEST)),
        replace(dkv, block_m=max(dkv.block_m // by, NARROWEST)),
    )


def fitted(
    request: Request,
    value: Node,
    columns: Node,
    packs_heads: bool,
    found: Sizes,
) -> Sizes:
    """Configurations for tiles that hold keys of one block of so many: not wider than it needs,
    where a constant says how many they are; with fewer pairs where registers are short, for rows
    that are gathered have addresses of their own, and heads of a group that share tiles need more
    of these."""
    if request.backend == "torch":
        return found
    forward, dq, dkv = found.forward, found.backward_dq, found.backward_dkv
    if request.target == "sm_90":
        widest = max(request.head_dim, request.value_dim)
        most = next(sizes for limit, sizes in HOPPER_GATHERED[value is SCORE] if widest <= limit)
        forward = replace(forward, block_n=min(forward.block_n, most[0]))
        dq = replace(dq, block_n=min(dq.block_n, most[1]))
        dkv = replace(dkv, block_m=min(dkv.block_m, most[2]))
        if packs_heads:
            forward = replace(forward, block_n=min(forward.block_n, PACKED_COLUMNS))
            rows = dkv.block_m if widest <= 64 else NARROWEST
            dkv = replace(dkv, block_m=rows, block_n=min(dkv.block_n, PACKED_COLUMNS))
    if is_const(columns):
        width = width_for(int(columns.value))
        forward = replace(forward, block_n=min(forward.block_n, width))
        dq = replace(dq, block_n=min(dq.block_n, width))
        dkv = replace(dkv, block_n=min(dkv.block_n, max(width, least_columns(request))))
    return Sizes(forward, dq, dkv)


def width_for(columns: int) -> int:
    """The width of a gathered tile that holds a block of so many columns, if it may be so wide.

    >>> [width_for(n) for n in (1, 16, 17, 64, 100)]
    [16, 16, 32, 64, 128]
    """
    return max(NARROWEST, 1 << (max(columns, 1) - 1).bit_length())


def least_columns(request: Request) -> int:
    """The fewest columns of a gathered tile that owns them: the product of keys and queries is
    transposed there, and wgmma takes 64 of its rows."""
    return 64 if request.target == "sm_90" else NARROWEST


# Blocks of the PyTorch engine are chosen by that engine; these only bound its memory.
TORCH = Sizes(*(Config(256, 256, 1, 1),) * 3)
# Rows are worked on six at a time; a tile of float32 scores is 24 KiB, half of a CPU's L1 cache.
CPP = Sizes(*(Config(48, 128, 1, 1),) * 3)
ON_CPU = {"torch": TORCH, "cpp": CPP}

# Small enough that a test of 33 tokens meets several tiles.
INTERPRETER = Sizes(Config(32, 16, 1, 1), Config(32, 16, 1, 1), Config(16, 32, 1, 1))

# Where the tables come from: sizes were compiled for their targets, and chosen among those that
# spill no registers. Those of sm_90 for head dimensions up to 128 were then measured (`hopper.py`
# says where); no other has been timed. `attndsl tune FILE --table` prints rows that were measured,
# each below a line with its source, which is to be kept.

# Three programs of four warps on a multiprocessor: while one waits for keys, or computes weights,
# another multiplies.
SMALL = Sizes(Config(64, 64, 4, 3), Config(64, 32, 4, 3), Config(32, 64, 4, 3))
SMALLER = Sizes(Config(64, 32, 4, 3), Config(64, 32, 4, 3), Config(32, 64, 4, 3))
# As the one above with registers for pairs in heads of 128; its 16 rows are unmeasured.
SMALLEST = Sizes(Config(64, 32, 4, 3), Config(64, 32, 4, 3), Config(16, 64, 4, 3))
LIGHT: Table = (
    (128, SMALL),
    (192, Sizes(Config(128, 64, 8, 2), Config(64, 64, 8, 1), Config(32, 64, 8, 2))),
    (256, Sizes(Config(128, 32, 8, 2), Config(64, 32, 8, 1), Config(16, 64, 8, 1))),
)
# (widest head dimension, configurations), by work. No loop of an example spills with these, in bf16
# and fp16, and each tl.dot becomes wgmma.
HOPPER: dict[Work, Table] = {
    **dict.fromkeys(("plain", "masked"), LIGHT),
    "tables": (
        (64, SMALLER),
        (128, SMALLEST),
        (256, Sizes(Config(128, 32, 8, 2), Config(64, 32, 8, 1), Config(32, 64, 8, 1))),
    ),
    "dots": (
        (64, Sizes(Config(128, 16, 8, 2), Config(128, 16, 8, 2), Config(16, 128, 8, 2))),
        (128, Sizes(Config(128, 16, 8, 2), Config(64, 16, 4, 2), Config(16, 64, 8, 2))),
        (256, Sizes(Config(128, 16, 8, 2), Config(64, 16, 8, 1), Config(16, 64, 8, 1))),
    ),
}
# Whether the logit is the score: (widest head dimension, the most elements along the axis of the
# loop in forward, backward_dq and backward_dkv) of gathered tiles. None of moba and nsa spills with
# these up to a width of 192.
HOPPER_GATHERED: dict[bool, tuple[tuple[int, tuple[int, int, int]], ...]] = {
    True: ((64, (128, 64, 64)), (128, (64, 64, 32)), (192, (32, 32, 32)), (256, (16, 16, 16))),
    False: ((64, (128, 64, 64)), (128, (64, 32, 32)), (192, (32, 16, 16)), (256, (16, 16, 16))),
}
PACKED_COLUMNS = 64  # the most of a tile that heads share, in forward and backward_dkv on sm_90
# Other cards of NVIDIA, written for sm_80; where a card has less shared memory, the planner takes
# stages and parts of tiles away (`budget.py`).
DEFAULT: Table = (
    (64, Sizes(Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2))),
    (128, Sizes(Config(128, 64, 8, 2), Config(64, 64, 8, 2), Config(64, 64, 8, 2))),
    (256, Sizes(Config(64, 32, 8, 2), Config(64, 32, 8, 1), Config(16, 64, 8, 1))),
)
AMD: Table = (
    (64, Sizes(Config(128, 64, 4, 1), Config(64, 64, 4, 1), Config(64, 64, 4, 1))),
    (128, Sizes(Config(128, 64, 4, 1), Config(64, 64, 4, 1), Config(64, 64, 4, 1))),
    (256, Sizes(Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1))),
)
# Float32 products are exact (no TF32): they run on the ordinary units, and small tiles suit them.
FLOAT32: Table = (
    (64, Sizes(Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1))),
    (128, Sizes(Config(32, 32, 8, 1), Config(32, 16, 8, 1), Config(16, 32, 8, 1))),
    (256, Sizes(Config(32, 16, 8, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1))),
)
