"""The kernels that summarise: what a value of the mask is over each block of positions.

Each reads its positions once and writes the extremes, and where they are used the signature, of one
block. What a short last block (or a clipped box) lacks stands for a position that it has, so
nothing has to be left out.
"""

from __future__ import annotations

from attndsl.plan.kernel_plan import Config, KernelPlan, Summary

from ..lines import Lines
from ..summaries import parts_of, used_summaries
from .boxes import (
    COLUMNS,
    ROWS,
    Side,
    add_box_arguments,
    corner_lines,
    index_text,
    write_coordinates,
    write_counts,
    write_lanes,
)
from .kernel import Kernel
from .lists import batch_and_head

BLOCKS = "block_"  # prefix of the names of summaries by block
SIDES = {"q": ROWS, "k": COLUMNS}


class Summarise(Kernel):
    """Writes `summarise_<n>`: one program for each block of queries or of keys, or for each tile of
    a table by both; of each batch and head for which the value is another.

    block_<n>_least, block_<n>_greatest
        bool (all, any), int64 or float32 [B or 1, H or 1, blocks], of a table over both axes
        [B or 1, H or 1, blocks of rows, blocks of columns]; NaN where a block has one
    block_<n>_signature
        int64 [B or 1, H or 1, blocks]: equal values set equal bits of 64
    """

    def __init__(self, plan: KernelPlan, summary: Summary) -> None:
        sizes, warps = plan.forward, 4 if len(summary.axes) == 2 else 1
        config = Config(sizes.block_m, sizes.block_n, num_warps=warps, num_stages=1)
        super().__init__(plan, summarise_name(summary), config)
        self.summary = summary
        self.sides = [SIDES[axis] for axis in summary.axes]

    # Values of one axis are vectors, for there is no tile of pairs.
    @property
    def row(self) -> str:
        return "[:, None]" if len(self.sides) == 2 else ""

    @property
    def column(self) -> str:
        return "[None, :]" if len(self.sides) == 2 else ""

    def write(self) -> str:
        lines, node = self.lines, self.summary.node
        for part in parts_of(self.plan, self.summary):
            self.arguments.add_own(block_name(self.summary, part), block_dtype(self.summary, part))
        add_box_arguments(self.arguments, self.plan.grid)
        self.arguments.add_call()
        self.arguments.add_leaves([node])
        self.lines.add('"""What a value is over a block: its extremes, which values occur."""')
        self._write_place()
        self.values.define(lines, "program", [node])
        for side, level in zip((ROWS, COLUMNS), ("row", "column"), strict=True):
            if side in self.sides:
                self._write_positions(side)
                self.values.define(lines, level, [node])
        lines.origin(self.plan.program, node)
        (text,) = self.values.write(lines, node)
        lines.add(f"value = {VALUES[self.summary.kind].format(text)}")
        self._write_results()
        return self.finish()

    def _write_place(self) -> None:
        """The number of the block on each side, and its batch and head."""
        lines, grid = self.lines, self.plan.grid
        for side in self.sides:
            if grid is not None:
                write_counts(lines, grid, side, f"tiles_{side.box}")
            else:
                lines.add(f"tiles_{side.box} = tl.cdiv({side.limit}, {side.block})")
        rest = "tl.program_id(0)"
        for side in reversed(self.sides):
            lines.add(f"own_{side.box} = {rest} % tiles_{side.box}")
            lines.add(f"which = {rest} // tiles_{side.box}")
            rest = "which"
        batch, head = batch_and_head(summary_axes(self.plan, self.summary))
        lines.add(f"b = {batch}", f"h = {head}", "G = H // Hk")
        self.write_offsets()

    def _write_positions(self, side: Side) -> None:
        """Indices, coordinates and positions of a block; what it lacks stands for its last one."""
        lines, grid, own = self.lines, self.plan.grid, f"own_{side.box}"
        name, subscript = ("rows", self.row) if side is ROWS else ("columns", self.column)
        if grid is None:
            places = (
                f"tl.minimum({own} * {side.block} + tl.arange(0, {side.block}), {side.limit} - 1)"
            )
        else:
            lines.add(*corner_lines(grid, side, own))
            lanes = write_lanes(lines, grid, side)
            for lane, axis in zip(lanes, grid.axes, strict=True):
                lines.add(f"{lane} = tl.minimum({lane}, extent_{axis} - 1)")
            write_coordinates(lines, grid, side, subscript)
            places = index_text(grid, lanes)
        lines.add(
            f"{side.places} = {places}",
            f"{name} = {side.places}{subscript}",
            f"{side.position} = {name} + {side.position}_start",
        )

    def _write_results(self) -> None:
        lines, kind = self.lines, self.summary.kind
        for part in parts_of(self.plan, self.summary):
            text = "attn_signature(value)"
            if part != "signature":
                text = "value"
                for axis in reversed(range(len(self.sides))):
                    text = f"{reduction(kind, part)}({text}, {axis})"
            if kind == "bool":
                text += " != 0"
            lines.add(f"{part} = {text}")
            lines.add(f"tl.store({block_name(self.summary, part)} + tl.program_id(0), {part})")


VALUES = {
    "bool": "tl.where({}, 1, 0)",
    "int": "tl.cast({}, tl.int64)",
    "float": "tl.cast({}, tl.float32)",
}
DTYPES = {"bool": "bool", "int": "int64", "float": "float32"}


def reduction(kind: str, part: str) -> str:
    """The function that reduces along an axis to its least or greatest value."""
    if kind == "float":
        return f"attn_{part}_float"
    return "tl.min" if part == "least" else "tl.max"


def summarise_name(summary: Summary) -> str:
    return f"summarise_{summary.number}"


def block_name(summary: Summary, part: str) -> str:
    """The host's name of what is known by block, and the kernels'."""
    return f"{BLOCKS}{summary.number}_{part}"


def block_names(plan: KernelPlan) -> list[str]:
    """Those of all summaries that the facts of a tile use."""
    found = used_summaries(plan)
    return [block_name(summary, part) for summary in found for part in parts_of(plan, summary)]


def block_dtype(summary: Summary, part: str) -> str:
    return "int64" if part == "signature" else DTYPES[summary.kind]


def summary_axes(plan: KernelPlan, summary: Summary) -> frozenset[str]:
    """Which of "b" and "h" a summary differs by: its value, or the positions of its blocks."""
    moves = {f"{axis}_offset" for axis in summary.axes} & set(plan.request.per_batch)
    return (summary.node.varies & {"b", "h"}) | ({"b"} if moves else set())


def write_allocation(lines: Lines, plan: KernelPlan, summary: Summary, blocks: list[str]) -> str:
    """Room for what the kernel writes; `blocks` are the texts of how many there are by axis.
    Returns the text of the number of programs."""
    axes = summary_axes(plan, summary)
    extents = ["size_B" if "b" in axes else "1", "size_H" if "h" in axes else "1", *blocks]
    parts = parts_of(plan, summary)
    for part in parts:
        dtype = f"torch.{block_dtype(summary, part)}"
        shape = ", ".join(extents)
        lines.add(f"{block_name(summary, part)} = query.new_empty(({shape}), dtype={dtype})")
    return f"{block_name(summary, parts[0])}.numel()"
