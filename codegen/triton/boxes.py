"""Boxes in kernels: from the number of a tile to the elements of its box and their coordinates.

The arithmetic is that of `attndsl/plan/boxes.py`. Extents of the grid and of boxes are arguments,
so another image runs the same kernels. An element of a box beyond the grid has the index `Nq` (or
`Nk`), which every test against the end of the axis rules out.
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.program import Grid
from attndsl.plan.kernel_plan import KernelPlan

from ..lines import Lines
from .arguments import Arguments


@dataclass(frozen=True)
class Side:
    """One side of a tile: the position, the box in names of the kernel and of the host, the number
    of elements, what they are called, and the index of an element that is not there."""

    position: str
    box: str
    host: str
    block: str
    places: str
    limit: str


ROWS = Side("q", "m", "row_box", "BLOCK_M", "row_places", "Nq")
COLUMNS = Side("k", "n", "column_box", "BLOCK_N", "column_places", "Nk")


def add_box_arguments(arguments: Arguments, grid: Grid | None) -> None:
    """Extents of the grid and of both boxes; the host has set `grid`, `row_box`, `column_box`."""
    if grid is None:
        return
    for at, axis in enumerate(grid.axes):
        arguments.add(f"extent_{axis}", "i32", f"grid[{at}]")
    for side in (ROWS, COLUMNS):
        for at, axis in enumerate(grid.axes):
            arguments.add(f"size_{side.box}_{axis}", "i32", f"{side.host}[{at}]")
        for at, axis in enumerate(grid.axes[:-1]):
            inner = f"math.prod({side.host}[{at + 1}:]).bit_length() - 1"
            arguments.add(f"shift_{side.box}_{axis}", "i32", inner)


def has_box_arguments(plan: KernelPlan, arguments: Arguments) -> bool:
    """Whether a kernel computes places of boxes: not where it takes all rows as they come."""
    return plan.grid is not None and arguments.has(f"extent_{plan.grid.axes[0]}")


def write_counts(lines: Lines, grid: Grid, side: Side, total: str) -> None:
    """Boxes along each axis, and `total`, the number of all."""
    for axis in grid.axes:
        extent, size = f"extent_{axis}", f"size_{side.box}_{axis}"
        lines.add(f"count_{side.box}_{axis} = tl.cdiv({extent}, {size})")
    lines.add(f"{total} = " + " * ".join(f"count_{side.box}_{axis}" for axis in grid.axes))


def corner_lines(grid: Grid, side: Side, number: str) -> list[str]:
    """Statements that set the coordinates of a box's first corner (or of a vector of them)."""
    lines, rest = [], number
    outermost, *inner = grid.axes
    for axis in reversed(inner):
        count = f"count_{side.box}_{axis}"
        lines.append(f"corner_{side.box}_{axis} = {rest} % {count} * size_{side.box}_{axis}")
        lines.append(f"rest_{side.box} = {rest} // {count}")
        rest = f"rest_{side.box}"
    return [*lines, f"corner_{side.box}_{outermost} = {rest} * size_{side.box}_{outermost}"]


def write_places(lines: Lines, grid: Grid, side: Side, tested: bool) -> None:
    """Coordinates and indices of the elements of a box, [BLOCK]; `tested`: some may lie beyond the
    grid."""
    lanes = write_lanes(lines, grid, side)
    places = index_text(grid, lanes)
    if tested:
        inside = " & ".join(
            f"({lane} < extent_{axis})" for lane, axis in zip(lanes, grid.axes, strict=True)
        )
        places = f"tl.where({inside}, {places}, {side.limit})"
    lines.add(f"{side.places} = {places}")


def write_lanes(lines: Lines, grid: Grid, side: Side) -> list[str]:
    """Coordinates of the elements of a box, [BLOCK] each, by axis; returns their names."""
    position = side.position
    # The corner is added before the shift: a loop would otherwise keep the shifted lanes in
    # registers, as many as a thread has columns of a tile.
    lane, sizes = f"lane_{position}", [f"size_{side.box}_{axis}" for axis in grid.axes]
    rest = f"tl.arange(0, {side.block})"
    for at, axis in enumerate(grid.axes):
        inner = " * ".join(sizes[at + 1 :])
        corner = f"corner_{side.box}_{axis}"
        if not inner:
            lines.add(f"{lane}_{axis} = {rest} + {corner}")
            continue
        lines.add(
            f"{lane} = {rest} + {corner} * {inner}",
            f"{lane}_{axis} = {lane} >> shift_{side.box}_{axis}",
        )
        rest = f"({lane} & ({inner} - 1))"
    return [f"{lane}_{axis}" for axis in grid.axes]


def write_coordinates(lines: Lines, grid: Grid, side: Side, subscript: str) -> None:
    """Coordinates of the elements in the shape of a row or column of a tile of pairs."""
    for axis in grid.axes:
        source = f"lane_{side.position}_{axis}"
        lines.add(f"{coordinate_name(side.position, axis)} = {source}{subscript}")


def inside_tests(grid: Grid, side: Side) -> list[str]:
    """Tests that an element of a tile of pairs does not lie beyond the grid."""
    names = (coordinate_name(side.position, axis) for axis in grid.axes)
    return [f"({name} < extent_{axis})" for name, axis in zip(names, grid.axes, strict=True)]


def coordinate_name(position: str, axis: str) -> str:
    return f"at_{position}_{axis}"


def write_bounds(lines: Lines, grid: Grid, side: Side, number: str) -> None:
    """The ends of a box, or of a vector of boxes, by the names of the facts' bounds."""
    lines.add(*corner_lines(grid, side, number))
    tile = f"tile_{side.position}"
    for axis in grid.axes:
        corner = f"corner_{side.box}_{axis}"
        end = f"tl.minimum({corner} + size_{side.box}_{axis}, extent_{axis})"
        lines.add(f"{tile}_{axis}_lo = {corner}", f"{tile}_{axis}_hi = {end} - 1")
    for end in ("lo", "hi"):
        text = index_text(grid, [f"{tile}_{axis}_{end}" for axis in grid.axes])
        lines.add(f"{tile}_{end} = {text}")


def whole_tests(grid: Grid, side: Side) -> list[str]:
    """Tests that no element of a box lies beyond the grid."""
    return [
        f"(corner_{side.box}_{axis} + size_{side.box}_{axis} <= extent_{axis})"
        for axis in grid.axes
    ]


def index_text(grid: Grid, coordinates: list[str]) -> str:
    """The index of the element with these coordinates.

    >>> from attndsl.ir.nodes import constant
    >>> index_text(Grid(("t", "y", "x"), (constant(4),) * 3, constant(0)), ["t", "y", "x"])
    '(t * extent_y + y) * extent_x + x'
    """
    text = coordinates[0]
    for axis, coordinate in zip(grid.axes[1:], coordinates[1:], strict=True):
        outer = text if text == coordinates[0] else f"({text})"
        text = f"{outer} * extent_{axis} + {coordinate}"
    return text
