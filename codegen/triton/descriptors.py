"""Descriptors in kernels: tiles of a head that the hardware copies whole, 0 beyond its ends.

They are made where the head is known, one for each chunk of the head dimension. A tile is read by
the first of its rows (or columns) and the first element of the chunk, so that no address and no
test costs a register in the loop.
"""

from __future__ import annotations

from attndsl.plan.kernel_plan import Chunk, Config, KernelPlan

from ..lines import Lines

# The length, the block and the first element of a tile, of tensors by row and by column.
ROW_TILES = ("Nq", "BLOCK_M", "start_m")
COLUMN_TILES = ("n_keys", "BLOCK_N", "start_n")
TILES = {"query": ROW_TILES, "grad_raw": ROW_TILES, "key": COLUMN_TILES, "value": COLUMN_TILES}


def write_descriptors(lines: Lines, plan: KernelPlan, name: str, stride: str) -> None:
    """The descriptors of the tiles of one head of query, key, value or grad_raw, whose address is
    <name>_head and whose rows are `stride` elements apart."""
    length, block, _ = TILES[name]
    is_value = name in ("value", "grad_raw")
    width = plan.request.value_dim if is_value else plan.request.head_dim
    chunks = plan.value_chunks if is_value else plan.query_chunks
    # An axis of no elements has no descriptor; nothing is read of it.
    shape = f"[tl.maximum({length}, 1), {width}]"
    for i, chunk in enumerate(chunks):
        lines.add(
            f"{name}_tiles_{i} = tl.make_tensor_descriptor({name}_head, shape={shape}, "
            f"strides=[{stride}, 1], block_shape=[{block}, {chunk.width}])"
        )


def descriptor_load(name: str, number: int, chunk: Chunk) -> str:
    """The statement that loads a chunk of a tile."""
    start = TILES[name][2]
    return f"{name}_{number} = {name}_tiles_{number}.load([{start}, {chunk.start}])"


def describes_rows(name: str, config: Config) -> bool:
    """Whether a kernel reads `base` and `delta` by descriptors: where its loop walks over rows. By
    pointer each thread would hold addresses, and the numbers of all rows of a tile."""
    return name == "backward_dkv" and config.shape == "described"


def pads_rows(plan: KernelPlan) -> bool:
    """Whether heads of `base` and `delta` begin at aligned rows, as descriptors need it."""
    return any(describes_rows(name, config) for name, config in plan.configs if name != "forward")


def rows_between_heads(plan: KernelPlan) -> str:
    """The text of how many rows lie between heads of `base` and `delta`."""
    return "tl.cdiv(Nq, 4) * 4" if pads_rows(plan) else "Nq"


def write_row_descriptor(lines: Lines, plan: KernelPlan, name: str) -> None:
    """The descriptor of one number for each row of a head."""
    lines.add(
        f"{name}_tiles = tl.make_tensor_descriptor({name} + head.to(tl.int64) * "
        f"({rows_between_heads(plan)}), shape=[tl.maximum(Nq, 1)], strides=[1], "
        "block_shape=[BLOCK_M])"
    )
