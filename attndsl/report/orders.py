"""The plan of a call, in the order that the runtime chooses for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import torch

from attndsl.ir.nodes import topological
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan as make_plan
from attndsl.report.table import figure
from attndsl.runtime.order import Extents, Order, Work, box_of, counts_of, is_boxable_once, order_of
from attndsl.runtime.views import View

TORCH_TILE = (128, 128)  # what tiles of a PyTorch module are counted in


def plan_of_call(program: Program, request: Request, seen: View) -> tuple[KernelPlan, Order]:
    """The plan for a call like a view's, and the order of its tiles with the numbers behind it."""
    request = replace(request, per_batch=seen.per_batch)
    plan = make_plan(program, request)
    block = (plan.forward.block_m, plan.forward.block_n)
    order = order_of_call(program, seen, TORCH_TILE if request.backend == "torch" else block)
    if order.name == "boxes":
        plan = make_plan(program, replace(request, order="boxes"))
    return plan, order


def order_of_call(program: Program, seen: View, block: tuple[int, int]) -> Order:
    """What `order_of` says, for a call that has all that the grid is computed from."""
    if not is_boxable_once(program):
        return order_of(program, {}, {}, *block)
    if not (is_nought(seen.q_offset) and is_nought(seen.k_offset)):
        return Order("linear", "queries or keys do not begin at position 0")
    assert program.grid is not None
    for node in topological(*program.grid.extents, program.grid.start):
        known = {"scalar": seen.scalars, "size": seen.sizes}.get(node.op)
        if known is not None and node.name not in known:
            return Order("linear", f"`{node.name}` is not given, on which the grid depends")
    return order_of(program, seen.sizes, seen.scalars, *block)


def is_nought(offset: object) -> bool:
    return isinstance(offset, int) and offset == 0


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
        f"{shape(box_of(block[0], order.grid))} queries and {shape(box_of(block[1], order.grid))} "
        "keys": None
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
        return [TORCH_TILE]
    kernels = (plan.forward, plan.backward_dq, plan.backward_dkv)
    return [(config.block_m, config.block_n) for config in kernels]


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
            "the order costs copies of query, key and value and of the results: "
            f"{figure(permuted_bytes(plan, seen), 'B')} in forward"
        )
    padding = []
    for what, block in zip(("rows", "columns"), blocks_of(plan)[0], strict=True):
        padding.append(padded(what, order.grid, box_of(block, order.grid)))
    beyond = ", ".join(text for text in padding if text)
    return (
        "the order costs integer arithmetic, which finds the positions of a tile; nothing is "
        "copied" + (f"; boxes at the border reach beyond the grid: {beyond}" if beyond else "")
    )


def padded(what: str, grid: Extents, box: Extents) -> str:
    """`3,584 rows for 3,136`; nothing where the boxes fit."""
    count = prod(counts_of(grid, box)) * prod(box)
    return "" if count == prod(grid) else f"{count:,} {what} for {prod(grid):,}"


def permuted_bytes(plan: KernelPlan, seen: View) -> int:
    """Of query, key, value and out, all positions in another order."""
    sizes, request = seen.sizes, plan.request
    rows, columns = sizes["H"] * sizes["Nq"], sizes["Hk"] * sizes["Nk"]
    width = request.head_dim + request.value_dim
    entry = int(getattr(torch, request.dtype).itemsize)
    return sizes["B"] * (rows + columns) * width * entry
