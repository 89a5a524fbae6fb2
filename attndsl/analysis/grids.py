"""classify_boxes: facts of tiles that are boxes of a grid, whose coordinates are known one by one.

A box is a product of intervals of coordinates. A coordinate is a leaf here, `index("q.y")`, with
the ends `bound("q_y_lo")` and `bound("q_y_hi")` (both inclusive, inside the grid); a bare position
lies between `bound("q_lo")` and `bound("q_hi")`, the positions of the first and the last corner.
This holds for a call in which the grid begins at position 0 and is just what there is: offsets 0,
and as many rows and columns as the product of the extents.
"""

from __future__ import annotations

from attndsl.analysis.boxes import Box, Summary, no_summary
from attndsl.analysis.counted import NO_TABLES, Tables
from attndsl.analysis.facts import TileFacts
from attndsl.analysis.predicates import normal_form
from attndsl.ir.nodes import Node, bound, constant, find, index, make, rebuild, with_args
from attndsl.ir.program import Grid, Program
from attndsl.transform.simplify import simplified

POSITIONS = ("q", "k")


def is_boxable(program: Program) -> bool:
    """Whether tiles can be boxes, for some call, and the mask reads coordinates: what it says about
    positions alone is as good in their order."""
    grid = program.grid
    if program.routed is not None:  # the keys of a block are a run of positions
        return False
    if grid is None or len(grid.axes) < 2 or grid.start.varies or find(grid.start, "lookup"):
        return False
    if grid.start.op == "const" and grid.start.value != 0:
        return False
    return any("." in node.name for node in find(coordinated(grid, program.mask), "index"))


def classify_boxes(
    grid: Grid, mask: Node, summary: Summary = no_summary, tables: Tables = NO_TABLES
) -> TileFacts:
    """Facts of the tile of two boxes, over `bound("q_<axis>_lo")`, `bound("q_<axis>_hi")`, those of
    k, and what `classify` has.

    summary  what is known of lookups that vary with q or k (`summaries.summarise`), of a box
    tables   those whose entries are counted (`counted.counted_tables`)

    >>> from attndsl.ir.nodes import scalar
    >>> grid = Grid(("y", "x"), (scalar("h", "int"), constant(8)), constant(0))
    >>> rows = [coordinate(index(name), "y", grid) for name in "kq"]
    >>> classify_boxes(grid, make("le", *rows)).certain
    le(bound('k_y_hi'), bound('q_y_lo'))
    """
    ends = {
        f"{position}.{axis}": (bound(f"{position}_{axis}_lo"), bound(f"{position}_{axis}_hi"))
        for position in POSITIONS
        for axis in grid.axes
    }
    q_ends, k_ends = ((bound(f"{p}_lo"), bound(f"{p}_hi")) for p in POSITIONS)
    box = Box(q_ends, k_ends, summary, coordinates=ends, tables=tables)
    truth = box.truth(normal_form(coordinated(grid, mask)))
    return TileFacts(truth.possible, truth.certain)


def coordinate(position: Node, axis: str, grid: Grid) -> Node:
    """A coordinate of a position as it stands in a simplified mask: by floor arithmetic."""
    place = grid.axes.index(axis)
    found = position if grid.start is constant(0) else make("sub", position, grid.start)
    for extent in reversed(grid.extents[place + 1 :]):
        found = make("floordiv", found, extent)
    return simplified(found if place == 0 else make("floormod", found, grid.extents[place]))


def coordinated(grid: Grid, root: Node, within_lookups: bool = False) -> Node:
    """A simplified expression with its coordinates as leaves. Lookups stay as they are unless
    `within_lookups`, for summaries are known by their nodes."""
    leaves: dict[Node, Node] = {}
    for position in map(index, POSITIONS):
        for axis in reversed(grid.axes):  # of axes that mean the same (extents of 1) the first
            found = coordinate(position, axis, grid)
            if found.op != "const":
                leaves[found] = index(f"{position.name}.{axis}")
    outermost = [coordinate(index(name), grid.axes[0], grid) for name in POSITIONS]

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        if node in leaves:
            return leaves[node]
        if node.op == "lookup" and not within_lookups:
            return node
        for found in outermost:
            steps = _steps(found, node)
            if steps:
                return make("floordiv", leaves[found], constant(steps))
        return with_args(node, args)

    return rebuild(root, change)


def _steps(coordinate: Node, node: Node) -> int:
    """m where a node is coordinate // m, 0 where it is not: simplification has made one division of
    two, (p // s) // m = p // (s * m) for constants s, m > 0."""
    if not coordinate.op == node.op == "floordiv" or coordinate.args[0] is not node.args[0]:
        return 0
    by, whole = coordinate.args[1], node.args[1]
    if by.op != "const" or whole.op != "const" or by.value <= 0 or whole.value <= by.value:
        return 0
    return 0 if whole.value % by.value else int(whole.value // by.value)
