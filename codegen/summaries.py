"""Which summaries of a mask a generator has to make, and how torch makes them: by position, then
by block.

A summary of one axis is an array over its positions; one of both axes is a view of the user's
table. Of blocks of positions the facts of tiles need the extremes only, and where values are
compared for equality a signature (`attndsl/analysis/summaries.py`). Triton modules make the same
with kernels (`triton/summarise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.ir.nodes import Node, topological
from attndsl.plan.kernel_plan import KernelPlan, Summary

from .host import EXTENT, HostScope
from .lines import Lines
from .scope import conversion_text, tensor_name

LAYOUT: dict[tuple[str, ...], str] = {("q",): "row", ("k",): "column"}


def used_leaves(plan: KernelPlan) -> frozenset[str]:
    """Names of the `summary` leaves in the plan's facts of a tile."""
    facts = topological(plan.tile.possible, plan.tile.certain)
    return frozenset(node.name for node in facts if node.op == "summary")


def parts_of(plan: KernelPlan, summary: Summary) -> tuple[str, ...]:
    """Which of "least", "greatest" and "signature" the facts of a tile use, in this order."""
    leaves = used_leaves(plan)
    parts = [part for part in ("least", "greatest") if f"{summary.number}_{part}" in leaves]
    meetings = [set(leaf.split("_meets_")) for leaf in leaves if "_meets_" in leaf]
    if any(str(summary.number) in pair for pair in meetings):
        parts.append("signature")
    return tuple(parts)


def used_summaries(plan: KernelPlan) -> list[Summary]:
    """The summaries that the facts of a tile use."""
    return [summary for summary in plan.summaries if parts_of(plan, summary)]


def list_axes(plan: KernelPlan) -> frozenset[str]:
    """Which of "b" and "h" the tiles that are found differ by: the segments, the facts of a tile
    with what they summarise, and offsets and lengths of each batch."""
    ends = [end for s in plan.keys + plan.queries for end in (s.lo, s.hi, s.full_lo, s.full_hi)]
    facts = [plan.tile.possible, plan.tile.certain, *(s.node for s in used_summaries(plan))]
    nodes = ends + (facts if plan.strategy == "lists" else [])
    varies = frozenset[str]().union(*(node.varies for node in nodes))
    return (varies & {"b", "h"}) | ({"b"} if plan.request.per_batch else frozenset())


def write_profiles(lines: Lines, plan: KernelPlan) -> None:
    """Sets profile_<n> for every summary that is used, after `host.write_arguments`.

    profile_<n>  bool, int64 or ACCUMULATOR [B or 1, H or 1, Nq] or [.., Nk], for rows or columns
                 (1 where it does not vary); of a table over both a view of it, [.., Nq, Nk], in its
                 own dtype. What lies outside a table is 0.
    """
    scopes = {layout: HostScope(plan, layout) for layout in LAYOUT.values()}
    for layout, scope in scopes.items():
        nodes = [s.node for s in used_summaries(plan) if is_computed(plan, s, layout)]
        scope.write_indices(lines, *nodes)
        scope.printer.share(lines, nodes)
    for summary in used_summaries(plan):
        lines.origin(plan.program, summary.node)
        name = profile_name(summary)
        if is_view(plan, summary):
            lines.add(f"{name} = {view_text(plan, summary)}")
        else:
            text = scopes[LAYOUT[summary.axes]].printer.text(summary.node)
            lines.add(f"{name} = attn_profile({text})")


def write_blocks(
    lines: Lines,
    plan: KernelPlan,
    block_m: int | str,
    block_n: int | str,
    prefix: str,
    orders: Mapping[str, str] | None = None,
) -> None:
    """Sets what the facts use of every summary, of blocks of `block_m` rows or `block_n` columns
    (numbers or names); after `write_profiles`. All are contiguous, and a short last block counts
    what it has. Where blocks are not runs of positions, `orders` has for "q" and "k" the name of
    an int64 tensor: the positions of all blocks, one block after the other.

    <prefix><n>_least, <prefix><n>_greatest
        bool (all, any), int64 or ACCUMULATOR [B or 1, H or 1, blocks], of a table over both axes
        [B or 1, H or 1, blocks of rows, blocks of columns]; NaN where a block has one
    <prefix><n>_signature
        int64 [B or 1, H or 1, blocks]
    """
    sizes: dict[tuple[str, ...], int | str] = {("q",): block_m, ("k",): block_n}
    for summary in used_summaries(plan):
        name, parts = f"{prefix}{summary.number}", parts_of(plan, summary)
        profile = profile_name(summary)
        ends = [f"{name}_{part}" if part in parts else "_" for part in ("least", "greatest")]
        if summary.axes == ("q", "k"):
            found = f"attn_pair_extremes({profile}, {block_m}, {block_n})"
            lines.add(f"{', '.join(ends)} = {found}")
            suffix = conversion_text(plan, summary.node)
            if suffix:
                lines.add(*(f"{end} = {end}{suffix}" for end in ends if end != "_"))
            continue
        block = sizes[summary.axes]
        if orders:
            profile = f"{profile}[..., {orders[summary.axes[0]]}]"
        if ends != ["_", "_"]:
            lines.add(f"{', '.join(ends)} = attn_block_extremes({profile}, {block})")
        if "signature" in parts:
            lines.add(f"{name}_signature = attn_signatures({profile}, {block})")


def profile_name(summary: Summary) -> str:
    return f"profile_{summary.number}"


def is_computed(plan: KernelPlan, summary: Summary, layout: str) -> bool:
    """Whether a summary is computed by position in this layout."""
    return LAYOUT.get(summary.axes) == layout and not is_view(plan, summary)


def is_view(plan: KernelPlan, summary: Summary) -> bool:
    """Whether a summary is a table at bare indices that run alike in all batches: a slice of it."""
    node = summary.node
    if node.op != "lookup":
        return False
    names = [arg.name for arg in node.args if arg.op == "index"]
    moving = {f"{axis}_offset" for axis in summary.axes} & set(plan.request.per_batch)
    return len(names) == len(node.args) == len(set(names)) and not moving


def view_text(plan: KernelPlan, summary: Summary) -> str:
    """The slice: in the dtype in which it is computed with, or of a whole table in its own."""
    node = summary.node
    ranges = ", ".join(f'"{arg.name}": {range_text(arg)}' for arg in node.args)
    text = f"attn_table({tensor_name(node.name)}, {{{ranges}}})"
    if summary.axes == ("q", "k"):
        return text
    return (
        text
        + (".squeeze(3)" if summary.axes == ("q",) else ".squeeze(2)")
        + conversion_text(plan, node)
    )


def range_text(arg: Node) -> str:
    """The first and the end of the positions that an index runs through."""
    extent = EXTENT[arg.name]
    if arg.name in ("q", "k"):
        return f"({arg.name}_offset, {extent} + {arg.name}_offset)"
    return f"(0, {extent})"
