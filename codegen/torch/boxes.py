"""Writes what a PyTorch module has for tiles that are boxes of a grid.

Columns are worked on in the order of the boxes: keys and values are brought into it once a call,
their gradients back. Rows stay in the user's order, and a block of queries gathers its own. The
grid must be all of the queries and keys, and begin at position 0 (`analysis/grids.py`).
"""

from __future__ import annotations

from attndsl.ir.nodes import topological
from attndsl.plan.kernel_plan import KernelPlan

from ..host import write_arguments, write_grid
from ..lines import Lines
from ..summaries import used_summaries, write_blocks, write_profiles
from .spans import ARGUMENTS, BLOCK, list_text, write_facts, write_levels, write_parts, write_shape

BOX = "attn_box(ROWS, grid)"  # of queries and of keys alike


def is_cut(plan: KernelPlan) -> bool:
    """Whether the keys of a box may end before the grid does: `k_len` tests every pair then."""
    return plan.grid is not None and "k_len" in plan.request.per_batch


def write_order(lines: Lines, plan: KernelPlan) -> None:
    """Sets `order` and `starts`, see attn_boxed; after `write_arguments`."""
    write_grid(lines, plan)
    lines.add(f"order, starts = attn_boxed(grid, {BOX}, query.device)")


def write_box_spans(lines: Lines, plan: KernelPlan) -> None:
    """The function that returns what `spans.write_spans` says, with blocks of queries that are
    boxes and ranges of columns in the order of the boxes."""
    lines.add("@torch.no_grad()")
    with lines.block(f"def run_spans(query, key, value, {ARGUMENTS}):"):
        lines.add(
            '"""Parts of the call, and the keys, in the order of the boxes, that each box of '
            f'`{plan.program.name}` meets."""'
        )
        write_arguments(lines, plan)
        write_grid(lines, plan)
        lines.add(f"box = {BOX}")
        write_parts(lines, plan, "math.prod(attn_counts(grid, box))")
        write_shape(lines, plan)
        lines.add(
            "bits = attn_box_bits(grid, box)",
            "depth = sum(bits)",
            "places, boxes = attn_box_places(grid, box, bits, query.device)",
        )
        if is_cut(plan):
            lines.add("limit = attn_by_row(k_len[:, None, None], shape, query)")
        write_box_summaries(lines, plan)
        lines.blank()
        with lines.block("def classify(tile, level, first, end):"):
            write_box_classify(lines, plan)
        lines.blank()
        lines.add(
            "every, none = attn_box_refine_start(math.prod(shape), places, depth)",
            "reached, full = attn_refine(every, none, classify, 0, depth)",
            "begins = attn_box_begins(grid, box, bits, query.device)",
            "reached, full = (attn_box_runs(runs, begins, depth) for runs in (reached, full))",
            "spans = attn_spans(reached, full, shape, size_Nk + 1)",
            f"return [(part, spans[{list_text(plan)}]) for part in parts]",
        )


def write_box_summaries(lines: Lines, plan: KernelPlan) -> None:
    """What the facts use of summaries, by box of queries and by place of keys."""
    if not used_summaries(plan):
        return
    write_profiles(lines, plan)
    lines.add("padded = attn_order(grid, box, query.device)")
    write_blocks(lines, plan, "ROWS", "ROWS", BLOCK, {"q": "padded", "k": "padded"})
    write_levels(lines, plan, "[..., boxes]")


def write_box_classify(lines: Lines, plan: KernelPlan) -> None:
    """The body of `classify`: the facts of a box of queries and of what the boxes at the places of
    a tile cover."""
    assert plan.grid is not None
    facts = topological(plan.tile.possible, plan.tile.certain)
    names = {node.name for node in facts if node.op == "bound"}
    if is_cut(plan):
        names |= {"k_lo", "k_hi"}
    lines.add(
        "# Of tiles, by their numbers: may some pair take part; do all.",
        "row = tile >> (depth - level)",
        "at = (tile - (row << (depth - level))) << level",
        "k_lows, k_highs = attn_box_ends(at, at + ((1 << level) - 1), grid, box, bits)",
    )
    if any(name.startswith("q_") for name in names):
        lines.add(
            "at = places[row % blocks]",
            "q_lows, q_highs = attn_box_ends(at, at, grid, box, bits)",
        )
    leaves = {}
    for position in "qk":
        for end, side in (("lo", "lows"), ("hi", "highs")):
            name, ends = f"{position}_{end}", f"{position}_{side}"
            if name in names:
                lines.add(f"{name} = attn_box_position({ends}, grid)")
                leaves["bound", name] = name
            for at, axis in enumerate(plan.grid.axes):
                leaves["bound", f"{position}_{axis}_{end}"] = f"{ends}[{at}]"
    possible, certain = write_facts(lines, plan, leaves)
    tests = [f"(k_lows[{at}] < grid[{at}])" for at in range(len(plan.grid.axes))]
    if is_cut(plan):
        lines.add("limits = limit[row]")
        tests.append("(k_lo < limits)")
        certain = f"(k_hi < limits) & ({certain})"
    lines.add(f"return {' & '.join([*tests, f'({possible})'])}, {certain}")
