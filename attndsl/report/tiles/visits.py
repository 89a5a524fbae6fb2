"""How many tiles each kernel visits, and how many it would have to."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from attndsl.ir import text as ir_text
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import TORCH_BOX
from attndsl.report.table import About, share, table
from attndsl.report.tiles.boxes import entries_per_box, loop_over_boxes
from attndsl.report.tiles.lists import base_blocks, loop_over_lists
from attndsl.report.tiles.loops import (
    Axes,
    Lanes,
    Loops,
    axes_of,
    lanes_of,
    loop_over_ranges,
    reach_of_lanes,
)
from attndsl.report.tiles.needed import Needed, needed_of
from attndsl.report.tiles.pairs import Pairs, count_by_lines
from attndsl.runtime import cache
from attndsl.runtime.blocks import Blocks
from attndsl.runtime.views import View

MOST_SPANS = 1 << 14  # blocks of queries whose spans a PyTorch module is asked for
MOST_MARKS = 1 << 22  # tiles of them
MOST_ERROR = 0.3  # of a figure that is told to people, as a part of it
UNKNOWN = "not counted"


@dataclass(frozen=True)
class Visits:
    """Tiles of one kernel, of all batches and heads.

    visited    tiles that its loops run over
    full       those of them that are proved to keep every pair: their mask is not evaluated
    needed     tiles with a pair that takes part
    total      all tiles
    computed_pairs, needed_pairs   pairs that the matrix products compute; that take part
    is_counted          whether visited and full are counted; else estimated from some rows of tiles
    are_needed_known, are_pairs_known   the same of the tiles and pairs that are needed
    visited_error, needed_error, pairs_error   how far off visited, needed and needed_pairs may well
                        be, as parts of them; of more than MOST_ERROR nothing is said to people
    tests               runs of tiles that are looked at to find those that are visited
    """

    kernel: str
    block: tuple[int, int]
    visited: int
    full: int
    needed: int
    total: int
    computed_pairs: int
    needed_pairs: int
    is_counted: bool
    are_needed_known: bool
    are_pairs_known: bool
    visited_error: float = 0.0
    needed_error: float = 0.0
    pairs_error: float = 0.0
    tests: int = 0


OWN_KEYS = ("backward_dkv", "backward_fused")  # kernels whose tiles own keys and walk queries


def visits_of(plan: KernelPlan, seen: View, most_pairs: int | None = None) -> Iterator[Visits]:
    """The visits of every kernel for the sizes and tables of a view. In PyTorch, forward and
    backward run over the same blocks. most_pairs as in `needed_of`.

    The pairs that take part are those of the call: one number, whichever kernel.
    """
    pairs = count_by_lines(plan, seen)
    if plan.request.backend == "torch":
        loops = torch_loops(plan, seen)
        needed = needed_of_loops(plan, seen, loops, pairs, most_pairs)
        for kernel in ("forward", "backward"):
            yield counted(kernel, loops, needed, pairs or needed.pairs, seen)
        return
    kernels = Kernels(plan, seen, pairs, most_pairs)
    if pairs is None:
        pairs = best(kernels.found(kernel)[1].pairs for kernel in kernels.configs)
    for kernel in kernels.configs:
        yield counted(kernel, *kernels.found(kernel), pairs, seen)


class Kernels:
    """What the Triton kernels of a call visit and need, found when it is asked for."""

    def __init__(
        self, plan: KernelPlan, seen: View, pairs: Pairs | None, most_pairs: int | None
    ) -> None:
        self.plan, self.seen, self.pairs, self.most_pairs = plan, seen, pairs, most_pairs
        self.configs = dict(plan.configs)
        blocks = [(config.block_m, config.block_n) for config in self.configs.values()]
        self.base = base_blocks(seen, blocks)
        self._found: dict[tuple[bool, int, int], tuple[Loops, Needed]] = {}

    def found(self, kernel: str) -> tuple[Loops, Needed]:
        config, by_keys = self.configs[kernel], kernel in OWN_KEYS
        key = (by_keys, config.block_m, config.block_n)
        if key not in self._found:
            axes = axes_of(self.plan, self.seen, key[1:], by_keys)
            loops = loops_of(self.plan, self.seen, axes, self.base)
            needed = needed_of_loops(self.plan, self.seen, loops, self.pairs, self.most_pairs)
            self._found[key] = loops, needed
        return self._found[key]


def best(estimates: Iterable[Pairs]) -> Pairs:
    """What is counted, as soon as something is; else what is likely to be least far off."""
    found = []
    for pairs in estimates:
        if pairs.is_known:
            return pairs
        found.append(pairs)
    return min(found, key=lambda pairs: pairs.error)


def loops_of(plan: KernelPlan, seen: View, axes: Axes, base: Blocks) -> Loops:
    """What the loops of a Triton kernel visit; `base` as in `loop_over_lists`."""
    if plan.grid is not None:
        return loop_over_boxes(plan, seen, axes)
    if plan.strategy == "lists":
        return loop_over_lists(plan, seen, axes, base)
    return loop_over_ranges(plan, seen, axes)


def needed_of_loops(
    plan: KernelPlan, seen: View, loops: Loops, pairs: Pairs | None, most_pairs: int | None
) -> Needed:
    """What is needed: every tile that is visited, where the segments are as tight as tiles can be
    and say which pairs take part as well."""
    if pairs is not None and plan.strategy == "ranges" and not plan.losses:
        tiles, is_known = loops.total(loops.visited), not loops.lanes.is_sample
        return Needed(tiles, loops.visited_error, is_known, pairs)
    return needed_of(plan.program.mask, seen, loops, most_pairs)


def counted(kernel: str, loops: Loops, needed: Needed, pairs: Pairs, seen: View) -> Visits:
    axes = loops.axes
    block = (axes.block, axes.own_block) if axes.by_keys else (axes.own_block, axes.block)
    return Visits(
        kernel,
        block,
        visited=loops.total(loops.visited),
        full=loops.total(loops.full),
        needed=min(needed.tiles, loops.total(loops.visited)),
        total=axes.tiles * axes.own_tiles * seen.sizes["B"] * seen.sizes["H"],
        computed_pairs=loops.computed_pairs,
        needed_pairs=pairs.count,
        is_counted=not (loops.is_estimate or loops.lanes.is_sample),
        are_needed_known=needed.are_tiles_known,
        are_pairs_known=pairs.is_known,
        visited_error=likely(loops.visited_error, loops.lanes),
        needed_error=likely(needed.error, loops.lanes),
        pairs_error=2 * pairs.error,
        tests=0 if loops.tests is None else loops.total(loops.tests),
    )


def likely(error: float, lanes: Lanes) -> float:
    """How far off an estimate may well be: two standard errors, and more where lanes are so few
    that these are not well known."""
    return 2 * error + (1 / max(1, len(lanes)) if lanes.is_sample else 0)


def table_of_tiles(found: list[Visits]) -> str:
    """The visits of several kernels as a table; ~ stands before an estimate."""
    rows = []
    for visits in found:
        skipped = share(visits.total - visits.visited, visits.total)
        figures: list[object] = [skipped, visits.visited, visits.full]
        if not visits.is_counted:
            figures = [f"~{skipped}", About(visits.visited), About(visits.full)]
        if visits.visited_error > MOST_ERROR:
            figures = [UNKNOWN] * 3
        needed = visits.needed if visits.are_needed_known else About(visits.needed)
        figures.append(UNKNOWN if visits.needed_error > MOST_ERROR else needed)
        block = f"{visits.block[0]} x {visits.block[1]}"
        rows.append([visits.kernel, block, visits.total, *figures])
    titles = ["kernel", "tile", "in all", "skipped", "visited", "of these full", "needed"]
    return table(titles, rows)


# -- PyTorch ----------------------------------------------------------------------------------


def torch_module(plan: KernelPlan, seen: View) -> types.ModuleType:
    """The PyTorch module of the plan's program for a call like the view's."""
    named = zip(plan.program.tensors, plan.request.tensor_dtypes, strict=True)
    request = Request(
        head_dim=seen.sizes["D"],
        value_dim=seen.sizes["D"],
        per_batch=seen.per_batch,
        order=plan.request.order,
        tensor_dtypes=tuple(
            str(seen.tensors[t.name].dtype).removeprefix("torch.") if t.name in seen.tensors else d
            for t, d in named
        ),
    )
    return cache.module_of(ir_text.dump(plan.program), plan.program, request)


def call_of(plan: KernelPlan, seen: View) -> tuple[object, ...]:
    """The arguments of `run_spans`: query, key and value have shapes and nothing else, and so have
    tensors that the mask does not read."""
    program, sizes = plan.program, seen.sizes
    nothing = torch.zeros((), device=seen.device)
    query = nothing.expand(sizes["B"], sizes["H"], sizes["Nq"], sizes["D"])
    key = nothing.expand(sizes["B"], sizes["Hk"], sizes["Nk"], sizes["D"])
    tensors = []
    for tensor in program.tensors:
        shape = [sizes.get(dim.name, 1) if dim.op == "size" else 1 for dim in tensor.dims]
        given = seen.tensors.get(tensor.name)
        tensors.append(nothing.expand(shape) if given is None else given)
    scalars = tuple(seen.scalars.get(s.name, 0) for s in program.scalars)
    offsets = (seen.q_offset, seen.k_offset, seen.k_len)
    return query, key, key, 1.0, *offsets, tuple(tensors), scalars


def torch_loops(plan: KernelPlan, seen: View) -> Loops:
    """What the blocks of a PyTorch module run over, in tiles of their rows and of the columns that
    it classifies by themselves. Of a long call it is found as the module would find it; with lists
    that is an estimate."""
    axes = axes_of(plan, seen, TORCH_BOX, by_keys=False)
    lanes = lanes_of(plan, seen, axes)
    if 0 < len(lanes) <= MOST_SPANS and 0 < len(lanes) * axes.tiles <= MOST_MARKS:
        return loops_of_module(plan, seen, axes, lanes)
    if plan.grid is not None:
        return replace(loop_over_boxes(plan, seen, axes), is_estimate=True)
    if plan.strategy == "lists":
        loops = loop_over_lists(plan, seen, axes, base_blocks(seen, [TORCH_BOX]))
        return replace(loops, is_estimate=True)
    columns = reach_of_lanes(seen, axes, lanes).outer.total
    return replace(loop_over_ranges(plan, seen, axes), pairs=columns * lanes.extent)


def loops_of_module(plan: KernelPlan, seen: View, axes: Axes, lanes: Lanes) -> Loops:
    """What the module says of each block of queries."""
    found = torch_module(plan, seen).run_spans(*call_of(plan, seen))
    lists = {id(spans): spans for _, spans in found}  # parts share them; in the order of the lanes
    blocks = [span for spans in lists.values() for span in spans]
    assert len(blocks) == len(lanes)
    reached, full = (flattened([span[side] for span in blocks], lanes) for side in (0, 1))
    edges = edges_of(axes).to(lanes.own.device)
    visited, whole = tiles_touched(reached, edges, lanes), tiles_covered(full, edges, lanes)
    lane, tile = (visited & ~whole).nonzero(as_tuple=True)
    columns = torch.zeros_like(lanes.own).index_add_(0, reached.lane, reached.hi - reached.lo)
    return Loops(
        axes,
        lanes,
        visited.sum(1),
        (visited & whole).sum(1),
        lane,
        tile,
        torch.ones_like(tile),
        pairs=columns * lanes.extent,
        whole=((visited & whole) * (edges[1:] - edges[:-1])).sum(1) * lanes.extent,
    )


class Spans(NamedTuple):
    """Ranges of columns [lo, hi), and the lane of each: vectors."""

    lane: Tensor
    lo: Tensor
    hi: Tensor


def flattened(ranges: list[list[tuple[int, int]]], lanes: Lanes) -> Spans:
    rows = [(lane, lo, hi) for lane, row in enumerate(ranges) for lo, hi in row]
    table = torch.tensor(rows, dtype=torch.int64, device=lanes.own.device).view(-1, 3)
    return Spans(*table.T.contiguous())


def edges_of(axes: Axes) -> Tensor:
    """Where the tiles of columns begin and end: int64 [tiles + 1]."""
    if axes.boxes is not None:
        return torch.cat((torch.zeros(1, dtype=torch.int64), entries_per_box(axes.boxes).cumsum(0)))
    return torch.arange(axes.tiles + 1) * axes.block


def tiles_touched(spans: Spans, edges: Tensor, lanes: Lanes) -> Tensor:
    """Which tiles have a column in a span of their lane: bool [lanes, tiles]."""
    first = torch.searchsorted(edges, spans.lo, right=True) - 1
    return marked(spans.lane, first, torch.searchsorted(edges, spans.hi), edges, lanes)


def tiles_covered(spans: Spans, edges: Tensor, lanes: Lanes) -> Tensor:
    """Which tiles lie in a span of their lane."""
    last = torch.searchsorted(edges, spans.hi, right=True) - 1
    return marked(spans.lane, torch.searchsorted(edges, spans.lo), last, edges, lanes)


def marked(lane: Tensor, first: Tensor, last: Tensor, edges: Tensor, lanes: Lanes) -> Tensor:
    """The tiles first .. last - 1 of lanes: bool [lanes, tiles]."""
    tiles, there = len(edges) - 1, first < last
    line = torch.zeros(len(lanes) * tiles + 1, dtype=torch.int32, device=first.device)
    one = torch.ones_like(first[there], dtype=torch.int32)
    for end, change in ((first, one), (last, -one)):
        line.index_add_(0, (lane * tiles + end)[there], change)
    return (line.cumsum(0)[:-1] > 0).view(len(lanes), tiles)
