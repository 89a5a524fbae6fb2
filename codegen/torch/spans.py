"""Writes run_spans of a PyTorch module: which keys every block of queries meets.

All batches and heads are worked on at once: index arrays are b [B, 1, 1] and h [H, 1], blocks of
queries the last axis. The segments give ranges of keys for each block. Where the plan's strategy is
"lists", tiles inside of them are told apart by their facts, wide ones first.
"""

from __future__ import annotations

from attndsl.ir.nodes import Node, constant
from attndsl.plan.kernel_plan import KernelPlan, Segment, Summary

from ..host import write_arguments
from ..lines import Lines
from ..scope import Plainness, scope_printer, tensor_name, tuple_text
from ..summaries import (
    list_axes,
    parts_of,
    used_leaves,
    used_summaries,
    write_blocks,
    write_profiles,
)

ARGUMENTS = "scale, q_offset, k_offset, k_len, tensors, scalars"
NOTHING = Segment(*(constant(0),) * 4)
BLOCK = "block_"  # prefix of the summaries of blocks of ROWS rows or WIDTH columns


def write_spans(lines: Lines, plan: KernelPlan) -> None:
    """The function that returns [((b0, b1, j0, j1, g0, g1), spans), ...]: parts of the batch and of
    the heads, and of each block of queries the columns that can take part and those that do."""
    lines.add("@torch.no_grad()")
    with lines.block(f"def run_spans(query, key, value, {ARGUMENTS}):"):
        lines.add(
            f'"""Parts of the call, and the keys that each block of `{plan.program.name}` meets."""'
        )
        write_arguments(lines, plan)
        write_parts(lines, plan, "-(-size_Nq // ROWS)")
        write_places(lines, plan)
        write_segments(lines, plan)
        if plan.strategy == "lists":
            write_refinement(lines, plan)
        lines.add("spans = attn_spans(reached, full, shape, stride)")
        lines.add(f"return [(part, spans[{list_text(plan)}]) for part in parts]")


def write_parts(lines: Lines, plan: KernelPlan, blocks: str) -> None:
    """What is worked on together, and an early end for a call without a pair; `blocks` is the text
    of how many blocks of queries there are."""
    axes = list_axes(plan)
    by = "head" if "h" in axes else "batch" if "b" in axes else "all"
    lines.add(
        "heads = max(1, ROOM // (COLUMNS * max(size_G, 1) * min(ROWS, max(size_Nq, 1))))",
        f'parts = attn_parts(size_B, size_Hk, size_G, "{by}", heads)',
        f"blocks = {blocks}",
    )
    with lines.block("if min(size_B, size_H, size_Nq, size_Nk) == 0:"):
        lines.add("return [(part, [([], [])] * blocks) for part in parts]")


def write_places(lines: Lines, plan: KernelPlan) -> None:
    """Rows of all lists on a line, and the positions of their queries."""
    batched = plan.request.per_batch
    write_shape(lines, plan)
    if "k_len" in batched:
        lines.add("limit = k_len.clamp(0, size_Nk)[:, None, None]")
    else:
        lines.add("limit = size_Nk")
    for name in ("q", "k"):
        offset = f"{name}_offset"
        lines.add(f"{name}_shift = {offset}" + ("[:, None, None]" if offset in batched else ""))
    if plan.strategy == "lists":
        lines.add(
            "bits = WIDTH.bit_length() - 1",
            "depth = (size_Nk // WIDTH).bit_length()",
            "stride = WIDTH << depth",
        )
    else:
        lines.add("stride = size_Nk + 1")
    lines.add(
        "q_first = torch.arange(0, size_Nq, ROWS, device=query.device) + q_shift",
        "q_last = (q_first + (ROWS - 1)).minimum(q_shift + torch.as_tensor(size_Nq - 1))"
        if "q_offset" in batched
        else "q_last = (q_first + (ROWS - 1)).clamp(max=size_Nq - 1 + q_shift)",
    )


def write_shape(lines: Lines, plan: KernelPlan) -> None:
    """Sets `shape`: lists of batches and heads, and the blocks of each."""
    axes = list_axes(plan)
    extents = (
        extent if axis in axes else "1" for axis, extent in (("b", "size_B"), ("h", "size_H"))
    )
    lines.add(f"shape = ({', '.join(extents)}, blocks)")


def write_segments(lines: Lines, plan: KernelPlan) -> None:
    """Runs of columns from the segments: `reached` and `full`."""
    lines.origin(plan.program, plan.program.mask)
    ends = [(s.lo, s.hi, s.full_lo, s.full_hi) for s in plan.keys or (NOTHING,)]
    varies = frozenset[str]().union(*(node.varies for group in ends for node in group))
    if "b" in varies:
        lines.add("b = torch.arange(size_B, device=query.device)[:, None, None]")
    if "h" in varies:
        lines.add("h = torch.arange(size_H, device=query.device)[:, None]")
    leaves = {("bound", "lo"): "q_first", ("bound", "hi"): "q_last"}
    leaves |= {("index", name): name for name in "bh"}
    printer = scope_printer(plan, leaves, write_no_dot, Plainness(), "bound_")
    texts = printer.write(lines, *(node for group in ends for node in group))
    lines.add("segments = [  # positions of keys: lo, hi, full_lo, full_hi")
    with lines.indented():
        for at in range(0, len(texts), 4):
            lines.add(f"({', '.join(texts[at : at + 4])}),")
    lines.add("]", "reached, full = attn_reach(segments, shape, k_shift, limit, stride, query)")


def write_refinement(lines: Lines, plan: KernelPlan) -> None:
    """The summaries, `classify`, and the runs as it changes them: from two tiles on."""
    with lines.block("if size_Nq > ROWS or size_Nk > WIDTH:"):
        write_tiles(lines, plan)


def write_tiles(lines: Lines, plan: KernelPlan) -> None:
    write_profiles(lines, plan)
    write_blocks(lines, plan, "ROWS", "WIDTH", BLOCK)
    write_levels(lines, plan)
    lines.add(
        "row_first = attn_by_row(q_first, shape, query)",
        "row_last = attn_by_row(q_last, shape, query)",
        "starts = torch.arange(len(row_first), device=query.device) * stride",
        "starts -= attn_by_row(k_shift, shape, query)",
    )
    lines.blank()
    with lines.block("def classify(tile, level, first, end):"):
        write_classify(lines, plan)
    lines.blank()
    lines.add("reached, full = attn_refine(reached, full, classify, bits, depth)")


def write_levels(lines: Lines, plan: KernelPlan, places: str = "") -> None:
    """Summaries by row, and pyramids over columns; `places` is a subscript that puts the blocks of
    columns where the first level has them."""
    for summary in used_summaries(plan):
        for part in parts_of(plan, summary):
            name = f"{summary.number}_{part}"
            if summary.axes == ("q",):
                lines.add(f"row_{name} = attn_by_row({BLOCK}{name}, shape, query)")
            else:
                lists = "shape" if summary.axes == ("q", "k") else "shape[:2]"
                lines.add(f"level_{name} = attn_levels({BLOCK}{name}{places}, {lists}, depth)")


def write_classify(lines: Lines, plan: KernelPlan) -> None:
    """The body of `classify`: the facts of tiles, each a part of one tile of a level."""
    lines.add(
        "# Of tiles, by their ranges of places on the line: may some pair take part; do all.",
        "row = tile >> (depth - level)",
        "q_lo, q_hi = row_first[row], row_last[row]",
        "k_lo, k_hi = first - starts[row], end - 1 - starts[row]",
    )
    leaves = {("bound", name): name for name in ("q_lo", "q_hi", "k_lo", "k_hi")}
    lines.add(f"return {', '.join(write_facts(lines, plan, leaves))}")


def write_facts(lines: Lines, plan: KernelPlan, bounds: dict[tuple[str, str], str]) -> list[str]:
    """The texts of whether some pair of a tile may take part, and whether all do; after `row`,
    `tile` and `level`. `bounds`: the texts of the ends of tiles."""
    facts = (plan.tile.possible, plan.tile.certain)
    write_lists(lines, plan, facts)
    leaves = bounds | {("index", name): name for name in "bh"}
    for summary in used_summaries(plan):
        for part in parts_of(plan, summary):
            name = f"{summary.number}_{part}"
            lines.add(f"tile_{name} = {read_text(summary, part)}")
            leaves["summary", name] = f"tile_{name}"
    for leaf in sorted(used_leaves(plan)):
        if "_meets_" in leaf:
            x, y = leaf.split("_meets_")
            name = f"meets_{x}_{y}"
            lines.add(f"{name} = (tile_{x}_signature & tile_{y}_signature) != 0")
            leaves["summary", leaf] = name
    printer = scope_printer(plan, leaves, write_no_dot, Plainness(), "fact_")
    return printer.write(lines, *facts)


def write_lists(lines: Lines, plan: KernelPlan, facts: tuple[Node, ...]) -> None:
    """Which list a tile belongs to, its batch and its head."""
    axes = list_axes(plan)
    varies = frozenset[str]().union(*(node.varies for node in facts))
    has_columns = any(s.axes == ("k",) for s in used_summaries(plan))
    if has_columns or varies & {"b", "h"}:
        lines.add("listed = row // blocks")
    for axis, other in (("b", "listed // size_H"), ("h", "listed % size_H")):
        if axis in varies:
            lines.add(f"{axis} = {other if axes == {'b', 'h'} else 'listed'}")
    if has_columns:
        lines.add(
            "column = tile - ((row - listed) << (depth - level))  # of a list, tiles behind tiles"
        )


def read_text(summary: Summary, part: str) -> str:
    """What a tile takes of a summary."""
    name = f"{summary.number}_{part}"
    if summary.axes == ("q",):
        return f"row_{name}[row]"
    place = "tile" if summary.axes == ("q", "k") else "column"
    return f'attn_level(level_{name}, level, "{part}")[{place}]'


def list_text(plan: KernelPlan) -> str:
    """The list of a part (b0, b1, j0, j1, g0, g1)."""
    axes = list_axes(plan)
    head = "part[2] * size_G + part[4]"
    if "h" in axes:
        return f"part[0] * size_H + {head}" if "b" in axes else head
    return "part[0]" if "b" in axes else "0"


def write_no_dot(node: Node, args: tuple[str, ...]) -> str:
    """A dot of the queries, which no position of a tile tells."""
    return f"attn_dot_row(query.to(ACCUMULATOR), {tensor_name(node.name)}, {tuple_text(args)})"
