"""Writes the Python functions of a C++ module: they allocate with torch and call the library."""

from __future__ import annotations

from attndsl.plan.kernel_plan import KernelPlan

from .. import host
from ..lines import Lines
from ..runs import at_distance
from ..scope import gradient_name, tensor_name, tuple_text
from ..summaries import used_summaries, write_blocks, write_profiles
from .backward import finds_delta
from .call import Fields
from .distances import distance_printer
from .forward import is_direct, result_dtype
from .source import reads_keys, reads_values
from .sums import Backward, is_query_whole, tables_of
from .tile import Tile
from .tiles import BLOCK

ARGUMENTS = "scale, q_offset, k_offset, k_len, tensors, scalars"
FEW_TILES = 2  # that read a key: then each packs it for itself


def write_forward(lines: Lines, plan: KernelPlan, fields: Fields, tile: Tile) -> None:
    """`run_forward`."""
    lines.add("@torch.no_grad()")
    with lines.block(f"def run_forward(query, key, value, {ARGUMENTS}):"):
        lines.add(f'"""(out, raw, stat) of `{plan.program.name}`."""')
        write_inputs(lines, plan)
        write_packed(lines, plan, "keys", *([] if reads_values(plan) else ["values"]))
        if reads_values(plan):
            lines.add("packed_values = packed_keys  # never read")
        write_blocks_of_tiles(lines, plan)
        tile.diagonals.write(lines)
        shape = "size_B, size_H, size_Nq"
        dtype = f"torch.{result_dtype(plan)}"
        lines.add(f"result = query.new_empty(({shape}, size_Dv), dtype={dtype})")
        rows = "0" if plan.form == "elementwise" else f"({shape})"
        lines.add(f"stat = query.new_empty({rows}, dtype=ACCUMULATOR)")
        fields.write_call(lines, "attn_forward", "FORWARD")
        if is_direct(plan):
            lines.add("return result, query.new_empty(0), stat")
            return
        lines.add("raw = result")
        host.write_sink(lines, plan)
        host.write_output(lines, plan)
        raw = "raw.to(query.dtype)" if plan.program.output else "raw.new_empty(0)"
        lines.add(f"return out.to(query.dtype), {raw}, stat")


def write_inputs(lines: Lines, plan: KernelPlan) -> None:
    """Sizes and parameters by their names, tensors as the library takes them."""
    host.write_arguments(lines, plan)
    names = ["query", "key", "value", *(tensor_name(t.name) for t in plan.program.tensors)]
    lines.add(*(f"{name} = attn_unit_stride({name})" for name in names))
    lines.add(*(f"{name} = {name}.contiguous()" for name in plan.request.per_batch))


def write_packed(lines: Lines, plan: KernelPlan, *names: str) -> None:
    """`packs`, whether operands are packed before the tiles, and room for them."""
    lines.add(
        f"packs = int(-(-size_Nq // ROWS) * size_G > {FEW_TILES})  # whether keys are packed once",
        "room = packs * size_B * size_Hk * -(-size_Nk // PANEL) * PANEL",
    )
    for name in names:
        width = "size_Dv" if name == "values" else "size_D"
        lines.add(
            f"packed_{name} = query.new_empty(room * (-(-{width} // LANES) * LANES), "
            "dtype=ACCUMULATOR)"
        )


def write_blocks_of_tiles(lines: Lines, plan: KernelPlan) -> None:
    """The summaries of blocks of rows and of columns."""
    if plan.strategy != "lists" or not used_summaries(plan):
        return
    write_profiles(lines, plan)
    write_blocks(lines, plan, "ROWS", "WIDTH", BLOCK)


ITEMS = 16  # that a backward has at the least, where there are tiles enough: work for threads
MOST_COPIED = 1 << 24  # numbers in the copies of a table's gradient, one for each item


def write_backward(lines: Lines, plan: KernelPlan, fields: Fields, made: Backward) -> None:
    """`run_backward`."""
    lines.add("@torch.no_grad()")
    lines.add("def run_backward(")
    with lines.indented():
        lines.add("grad_out, grad_lse, query, key, value, raw, stat,", f"{ARGUMENTS},")
    with lines.block("):"):
        lines.add(
            f'"""Gradients of `{plan.program.name}`: query, key, value, then the tensors\'."""'
        )
        write_inputs(lines, plan)
        tables = tables_of(plan, made.sums)
        # The sums of a table have the places of its entries.
        lines.add(*(f"{tensor_name(n)} = {tensor_name(n)}.contiguous()" for n in tables))
        write_packed(lines, plan, "keys", "values", *([] if reads_keys(plan) else ["key_rows"]))
        if reads_keys(plan):
            lines.add("packed_key_rows = packed_keys  # never read")
        write_blocks_of_tiles(lines, plan)
        gathered = [s.leaf.node for s in made.sums if s.axis == "distance"]
        made.tile.diagonals.write(lines, [arg for node in gathered for arg in node.args])
        host.write_gradients(lines, plan)
        write_incoming(lines, plan, made)
        host.write_sink_backward(lines, plan)
        write_sums(lines, made, tables)
        fields.write_call(lines, "attn_backward", "BACKWARD")
        write_results(lines, plan, made, tables)


def write_incoming(lines: Lines, plan: KernelPlan, made: Backward) -> None:
    """grad_rows, the gradient of the result before the epilogue as the library takes it; delta."""
    lines.add(
        f"grad_query = query.new_{'empty' if is_query_whole(made) else 'zeros'}(query.shape"
        + ("" if is_query_whole(made) else ", dtype=ACCUMULATOR")
        + ")"
    )
    if finds_delta(plan):
        lines.add("grad_rows, raw = attn_unit_stride(grad_out), attn_unit_stride(raw)")
        if plan.form != "elementwise":
            lines.add("stat = stat.contiguous()")
        return
    lines.add("raw = raw.to(ACCUMULATOR)")
    host.write_output_backward(lines, plan)
    source = "grad_out" if plan.program.output is None else "grad_raw"
    lines.add(f"grad_rows = attn_unit_stride({source}.expand(raw.shape).to(query.dtype))")
    if plan.form != "elementwise":
        host.write_delta(lines, plan)
        lines.add("delta, stat = delta.contiguous(), stat.contiguous()")


def write_sums(lines: Lines, made: Backward, tables: list[str]) -> None:
    """Arrays that the library adds to, and in how many items the work is cut."""
    lines.add(
        "tiles = -(-size_Nq // ROWS)",
        f"parts = max(1, min(-(-{ITEMS} // max(size_B * size_H, 1)), tiles))",
        "items = copies = size_B * size_H * parts",
        "grad_key = query.new_empty(key.shape)",
        "grad_value = query.new_empty(value.shape)",
    )
    if not is_query_whole(made):
        lines.add("grad_by_score = torch.empty_like(grad_query)")
    extents = {"row": "size_Nq", "column": "size_Nk"}
    extents["distance"] = "max(size_Nq + size_Nk - 1, 0)"
    for item in made.sums:
        if item.axis != "table":
            parts = "" if item.axis == "row" else "parts, "
            shape = f"{parts}size_B, size_H, {extents[item.axis]}"
            lines.add(f"{item.name} = query.new_zeros(({shape}), dtype=ACCUMULATOR)")
    if tables:
        numbers = " + ".join(f"{tensor_name(name)}.numel()" for name in tables)
        with lines.block(f"if items * ({numbers}) > {MOST_COPIED}:"):
            lines.add("copies = 1")
    for name in tables:
        lines.add(
            f"sums_{name} = query.new_zeros((copies, *{tensor_name(name)}.shape), "
            "dtype=ACCUMULATOR)"
        )


def write_results(lines: Lines, plan: KernelPlan, made: Backward, tables: list[str]) -> None:
    """What the library has found, at its place."""
    if not is_query_whole(made):
        lines.add("grad_query += grad_by_score")
    for name in tables:
        if name in plan.request.grads:
            lines.add(f"{gradient_name(name)} += sums_{name}.sum(0)")
    for level, text in (("row", "{}"), ("column", "{}.sum(0)")):
        found = {s.leaf.node: text.format(s.name) for s in made.sums if s.axis == level}
        if found:
            host.write_leaves(lines, plan, level, found)
    printer = distance_printer(plan)
    for item in made.sums:
        if item.axis == "distance":
            node = item.leaf.node
            lines.origin(plan.program, node)
            texts = printer.write(lines, *(at_distance(arg) for arg in node.args))
            lines.add(
                f"attn_scatter({gradient_name(node.name)}, {item.name}.sum(0), "
                f"{tuple_text(tuple(texts))})"
            )
    results = ["grad_query.to(query.dtype)", "grad_key", "grad_value", *host.result_texts(plan)]
    lines.add(f"return {', '.join(results)}")
