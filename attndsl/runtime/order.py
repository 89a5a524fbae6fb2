"""order_of: whether the tiles of a call are runs of positions or boxes of its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from attndsl.analysis.facts import TileFacts
from attndsl.analysis.grids import classify_boxes, is_boxable
from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import Node, find, index, lookup, substitute, topological
from attndsl.ir.program import Program
from attndsl.plan.boxes import attn_box, attn_counts
from attndsl.plan.kernel_plan import Request
from attndsl.plan.planner import block_of
from attndsl.reference import Number, Values, evaluate
from attndsl.runtime.dims import compute_dim

Extents = tuple[int, ...]

BOXES_PAY = 0.85  # of the linear order's pairs: gathered rows and lists cost something, too
MOST_SAMPLES, FEWEST_SAMPLES = 64, 8  # tiles of queries that are looked at
MOST_TESTS = 2**15  # tiles that are looked at, so that a decision takes a few milliseconds
MOST_HEADS = 4  # batches and heads, where the mask differs between them
# Scalar operations that take as long as a pair of the matrix products with its exponential: what
# it costs to test a tile is counted in pairs by it.
OPERATIONS_PER_PAIR = 16


@dataclass(frozen=True)
class Work:
    """What one order computes for one head of one batch; estimated where tiles are sampled.

    visited   tiles that may have a pair which takes part; full: those of them that keep all
    tiles     all tiles
    pairs     pairs that the kernel computes, those beyond the ends of clipped boxes included
    prepared  what testing the tiles costs, in pairs
    """

    visited: int
    full: int
    tiles: int
    pairs: int
    prepared: int = 0


@dataclass(frozen=True)
class Order:
    """The order of a call's positions, with the numbers behind it.

    name       "linear" or "boxes"
    reason     for people
    grid       extents of the grid; empty where boxes were not considered
    query_box, key_box   extents of the tiles; empty like `grid`
    linear, boxes        the work of each order; None where boxes were not considered
    """

    name: Literal["linear", "boxes"]
    reason: str
    grid: Extents = ()
    query_box: Extents = ()
    key_box: Extents = ()
    linear: Work | None = None
    boxes: Work | None = None


def order_of_call(
    program: Program,
    request: Request,
    sizes: Mapping[str, int],
    scalars: Mapping[str, Number],
    offsets: tuple[int, int],
) -> Order:
    """The order for a call; `request` says how its kernels are made, apart from that.

    offsets  positions of the first query and key, where no tensor has them (`request.per_batch`)
    """
    if is_boxable_once(program):
        if offsets != (0, 0) or {"q_offset", "k_offset"} & set(request.per_batch):
            return Order("linear", "queries or keys do not begin at position 0")
    return order_of(program, sizes, scalars, *block_of(program, request))


def order_of(
    program: Program,
    sizes: Mapping[str, int],
    scalars: Mapping[str, Number],
    block_m: int,
    block_n: int,
) -> Order:
    """The order for tiles of block_m queries and block_n keys (powers of two), for a call whose
    offsets are ints of 0. Remembered. Tables in the mask count as unknown.

    sizes    B, H, Nq, Nk and the dimensions that tensors bind
    scalars  values of the program's scalar parameters
    """
    if not is_boxable_once(program):
        return Order("linear", "the mask reads no coordinates of a grid of two axes or more")
    used = _names_used(program)
    known = tuple((name, sizes[name]) for name in sorted(sizes) if name in used)
    given = tuple((name, scalars[name]) for name in sorted(scalars) if name in used)
    return _order(program, known, given, block_m, block_n)


is_boxable_once = lru_cache(maxsize=256)(is_boxable)


@lru_cache(maxsize=256)
def _names_used(program: Program) -> frozenset[str]:
    assert program.grid is not None
    nodes = topological(program.mask, *program.grid.extents, program.grid.start)
    names = {node.name for node in nodes if node.op in ("size", "scalar")}
    return frozenset(names | {"B", "H", "Nq", "Nk"})


@lru_cache(maxsize=1024)
def _order(
    program: Program,
    known: tuple[tuple[str, int], ...],
    given: tuple[tuple[str, Number], ...],
    block_m: int,
    block_n: int,
) -> Order:
    sizes, scalars = dict(known), dict(given)
    assert program.grid is not None
    if compute_dim(program.grid.start, sizes, scalars) != 0:
        return Order("linear", "the grid does not begin at position 0")
    grid = tuple(compute_dim(extent, sizes, scalars) for extent in program.grid.extents)
    written = " x ".join(map(str, grid))
    if min(grid) < 1 or not prod(grid) == sizes["Nq"] == sizes["Nk"]:
        return Order("linear", f"the grid of {written} is not all of the queries and keys")
    query_box, key_box = attn_box(block_m, grid), attn_box(block_n, grid)
    linear, boxes = _facts(program)
    values = Values(torch.float32, torch.device("cpu"), sizes, scalars, {}, {})
    n = prod(grid)
    straight = _counted(program, linear, values, _runs(n, block_m), _runs(n, block_n))
    boxed = _counted(
        program,
        boxes,
        values,
        Tiles(program.grid.axes, grid, query_box),
        Tiles(program.grid.axes, grid, key_box),
    )
    return _chosen(grid, query_box, key_box, straight, boxed)


def _chosen(
    grid: Extents, query_box: Extents, key_box: Extents, linear: Work, boxes: Work
) -> Order:
    share = (boxes.pairs + boxes.prepared) / max(linear.pairs, 1)
    tiles = " and ".join(" x ".join(map(str, box)) for box in dict.fromkeys((query_box, key_box)))
    reason = (
        f"tiles that are boxes of {tiles} compute {share:.2f} of the pairs, lists counted; "
        f"at most {BOXES_PAY} pays"
    )
    pays = linear.pairs > 0 and share <= BOXES_PAY
    name: Literal["linear", "boxes"] = "boxes" if pays else "linear"
    return Order(name, reason, grid, query_box, key_box, linear, boxes)


@lru_cache(maxsize=256)
def _facts(program: Program) -> tuple[TileFacts, TileFacts]:
    """Facts of runs and of boxes, for a mask whose tables are unknown."""
    assert program.grid is not None
    unknown: dict[Node, Node] = {}
    for number, node in enumerate(find(program.mask, "lookup")):
        unknown[node] = lookup(f"unknown {number}", node.kind, index("q"), index("k"))
    mask = substitute(program.mask, unknown)
    return classify(mask), classify_boxes(program.grid, mask)


# Tiles of both orders


@dataclass(frozen=True)
class Tiles:
    """The tiles of queries or of keys: boxes of a grid (of one axis without a name: runs)."""

    axes: tuple[str, ...]
    grid: Extents
    box: Extents

    @property
    def count(self) -> int:
        return prod(attn_counts(self.grid, self.box))

    def ends(self, position: str, numbers: Tensor) -> dict[str, Tensor]:
        """The ends of the tiles of these numbers, by the names of the facts' bounds."""
        found: dict[str, Tensor] = {}
        first, last, stride = torch.zeros_like(numbers), torch.zeros_like(numbers), 1
        rest = numbers
        parts = zip(self.axes, self.grid, self.box, attn_counts(self.grid, self.box), strict=True)
        for axis, extent, size, count in reversed(list(parts)):
            lo = rest % count * size
            hi = torch.clamp(lo + (size - 1), max=extent - 1)
            rest = rest // count
            found[f"{position}_{axis}_lo"], found[f"{position}_{axis}_hi"] = lo, hi
            first, last, stride = first + lo * stride, last + hi * stride, stride * extent
        return {**found, f"{position}_lo": first, f"{position}_hi": last}


def _runs(length: int, block: int) -> Tiles:
    return Tiles(("",), (length,), (block,))


@torch.no_grad()
def _counted(program: Program, facts: TileFacts, like: Values, queries: Tiles, keys: Tiles) -> Work:
    """The work of an order, from a sample of its tiles of queries."""
    samples = min(max(MOST_TESTS // keys.count, FEWEST_SAMPLES), MOST_SAMPLES)
    rows = sample(queries.count, samples)[:, None]
    values = Values(like.dtype, like.device, like.sizes, like.scalars, {}, {})
    values.leaves.update(queries.ends("q", rows))
    values.leaves.update(keys.ends("k", torch.arange(keys.count)))
    shape = [rows.shape[0], keys.count]
    shared = 1
    for name, extent in (("h", like.sizes["H"]), ("b", like.sizes["B"])):
        chosen = sample(extent, MOST_HEADS) if name in program.mask.varies else torch.zeros(1)
        values.leaves[name] = chosen.to(torch.int64).view(-1, *[1] * len(shape))
        shape.insert(0, len(chosen))
        shared *= 1 if name in program.mask.varies else extent
    possible = evaluate(facts.possible, values).expand(shape)
    full = possible & evaluate(facts.certain, values).expand(shape)
    scale = queries.count / max(possible.numel() // keys.count, 1)
    visited = round(float(possible.sum()) * scale)
    tiles = queries.count * keys.count
    cost = len(topological(facts.possible, facts.certain)) / OPERATIONS_PER_PAIR
    return Work(
        visited,
        full=round(float(full.sum()) * scale),
        tiles=tiles,
        pairs=visited * prod(queries.box) * prod(keys.box),
        prepared=round(tiles * cost / max(shared, 1)),
    )


def sample(count: int, most: int) -> Tensor:
    """At most so many of 0 .. count - 1, one of each stretch of the same length, at places that
    repeat with no period."""
    if count <= most:
        return torch.arange(count)
    strata = torch.arange(most, dtype=torch.float64)
    return ((strata + strata * GOLDEN % 1) * (count / most)).to(torch.int64)


GOLDEN = (5**0.5 - 1) / 2
