"""The plan of a call, in the order that the runtime chooses for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from attndsl.ir.nodes import topological
from attndsl.ir.program import Program
from attndsl.plan.boxes import attn_box, attn_counts
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import TORCH_BOX
from attndsl.plan.planner import plan as make_plan
from attndsl.report.table import figure
from attndsl.runtime.order import Extents, Order, Work, order_of_call
from attndsl.runtime.views import View


def plan_of_call(program: Program, request: Request, seen: View) -> tuple[KernelPlan, Order]:
    """The plan for a call like a view's, and the order of its tiles with the numbers behind it."""
    request = replace(request, per_batch=seen.per_batch)
    order = order_seen(program, request, seen)
    return make_plan(program, replace(request, order=order.name)), order


def order_seen(program: Program, request: Request, seen: View) -> Order:
    """What the runtime chooses, where the view has all that the grid is computed from."""
    grid = program.grid
    for node in topological(*grid.extents, grid.start) if grid else ():
        known = {"scalar": seen.scalars, "size": seen.sizes}.get(node.op)
        if known is not None and node.name not in known:
            return Order("linear", f"`{node.name}` is not given, on which the grid depends")
    offsets = (seen.q_offset, seen.k_offset)
    first, second = (0 if isinstance(offset, Tensor) else offset for offset in offsets)
    return order_of_call(program, request, seen.sizes, seen.scalars, (first, second))


# -- for a person ------------------------------------------------------------------------------


def order_lines(plan: KernelPlan, seen: View, order: Order) -> list[str]:
    """Which positions make a tile, why, and what that costs; nothing where there is no grid."""
    if plan.program.grid is None:
        return []
    if plan.grid is None:
        return [f"linear: a tile is a run of positions, because {order.reason}", *both(order)]
    extents = zip(plan.grid.axes, order.grid, strict=True)
    grid = ", ".join(f"{axis} = {extent}" for axis, extent in extents)
    shapes = {
        f"{shape(attn_box(block[0], order.grid))} queries and "
        f"{shape(attn_box(block[1], order.grid))} keys": None
        for block in blocks_of(plan)
    }
    first, *others = shapes
    lines = [
        f"boxes of {first} of the grid {grid}, because {order.reason}",
        "results come back in your order",
        *both(order),
    ]
    if others:
        lines.insert(1, f"backward: boxes of {' and of '.join(others)}")
    return [*lines, cost_of_boxes(plan, seen, order)]


def blocks_of(plan: KernelPlan) -> list[tuple[int, int]]:
    """Queries and keys of a tile in each kernel, forward first."""
    if plan.request.backend == "torch":
        return [TORCH_BOX]
    return [(config.block_m, config.block_n) for _, config in plan.configs]


def shape(box: Iterable[int]) -> str:
    return " x ".join(map(str, box))


def both(order: Order) -> list[str]:
    """The work of both orders; nothing where boxes were not considered."""
    if order.linear is None or order.boxes is None:
        return []
    found = {"runs": order.linear, "boxes": order.boxes}
    shown = "; ".join(f"{name} {work_of_order(work)}" for name, work in found.items())
    return [f"expected of the forward for one head: {shown}"]


def work_of_order(work: Work) -> str:
    return (
        f"{work.visited:,} of {work.tiles:,} tiles, {figure(work.pairs, 'pairs')} and lists for "
        f"the time of {figure(work.prepared, 'pairs')}"
    )


def cost_of_boxes(plan: KernelPlan, seen: View, order: Order) -> str:
    """What the order itself costs: arithmetic or copies, and elements beyond the grid."""
    if plan.request.backend == "torch":
        return (
            f"the order costs a copy of key and value, {figure(copied_bytes(plan, seen), 'B')}; "
            "rows are gathered block by block"
        )
    padding = []
    for what, block in zip(("rows", "columns"), blocks_of(plan)[0], strict=True):
        padding.append(padded(what, order.grid, attn_box(block, order.grid)))
    beyond = ", ".join(text for text in padding if text)
    return (
        "the order costs integer arithmetic, which finds the positions of a tile; nothing is "
        "copied" + (f"; boxes at the border reach beyond the grid: {beyond}" if beyond else "")
    )


def padded(what: str, grid: Extents, box: Extents) -> str:
    """`3,584 rows for 3,136`; nothing where the boxes fit."""
    count = prod(attn_counts(grid, box)) * prod(box)
    return "" if count == prod(grid) else f"{count:,} {what} for {prod(grid):,}"


def copied_bytes(plan: KernelPlan, seen: View) -> int:
    """Of key and value in the order of the boxes."""
    width = plan.request.head_dim + plan.request.value_dim
    entry = int(getattr(torch, plan.request.dtype).itemsize)
    return seen.sizes["B"] * seen.sizes["Hk"] * seen.sizes["Nk"] * width * entry
