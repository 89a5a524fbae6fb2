"""Lists of tiles in kernels: what the classifying kernels write is what the others loop over.

A row belongs to one tile of the kernel's own axis, of one batch and head where they differ. Its
`tile_counts` are the number of partial tiles, that of full ones, and where its entries begin in
`tile_lists`: `most_listed` of them, the partial tiles at the front and the full ones at the back.
A row that needs more has all tiles from its first to its last one as partial ones: it begins within
the numbers of all tiles, which follow the last row there. The entry before or after those of a row
may be read too, but is not used.
"""

from __future__ import annotations

from attndsl.ir.nodes import FALSE
from attndsl.plan.kernel_plan import KernelPlan

from ..lines import Lines
from ..summaries import list_axes
from .arguments import Arguments
from .ranges import Loop, reached_parts


def uses_lists(plan: KernelPlan) -> bool:
    """Whether the plan's kernels loop over lists of tiles."""
    return plan.strategy == "lists" and not visits_nothing(plan)


def visits_nothing(plan: KernelPlan) -> bool:
    """Whether no tile of any call has a pair that takes part."""
    if plan.strategy == "lists" and plan.tile.possible is FALSE:
        return True
    return not (reached_parts(plan.keys) and reached_parts(plan.queries))


def list_names(columns_first: bool) -> tuple[str, str, str]:
    """What the host functions call counts and lists of kernels over tiles of keys or queries, and
    the most entries of a row."""
    name = "column" if columns_first else "row"
    return f"{name}_counts", f"{name}_lists", f"{name}_most"


def add_list_arguments(arguments: Arguments, columns_first: bool) -> None:
    counts, lists, most = list_names(columns_first)
    arguments.add_own("tile_counts", "int32", counts)
    arguments.add_own("tile_lists", "int32", lists)
    arguments.add("most_listed", "i32", most)


def list_count(plan: KernelPlan) -> str:
    """By how much the host multiplies the rows of one list for all lists: its text."""
    axes = list_axes(plan)
    return "".join(f" * size_{name.upper()}" for name in ("b", "h") if name in axes)


def batch_and_head(axes: frozenset[str]) -> tuple[str, str]:
    """The texts of batch and head of list `which`, where lists differ by these axes."""
    if len(axes) == 2:
        return "which // H", "which % H"
    return "which" if "b" in axes else "which * 0", "which" if "h" in axes else "which * 0"


def write_list_loops(lines: Lines, plan: KernelPlan, columns_first: bool) -> list[Loop]:
    """The loops over a row of a list: full tiles, then partial ones."""
    _write_row(lines, plan, columns_first)
    loops = []
    if plan.tile.certain is not FALSE:
        lines.add("full_tiles = tl.load(tile_row + 1)")
        loops.append(_loop(False, "full_tiles", "(listed + most_listed - 1 - {})"))
    return [*loops, _loop(True, "partial_tiles", "(listed + {})")]


def _write_row(lines: Lines, plan: KernelPlan, columns_first: bool) -> None:
    """Where a row of a list begins, and how many partial tiles it has."""
    own = "start_n // BLOCK_N" if columns_first else "start_m // BLOCK_M"
    if plan.grid is not None:
        own = "own"
    axes = list_axes(plan)
    which = {
        frozenset("bh"): "(b * H + h) * tiles + ",
        frozenset("b"): "b * tiles + ",
        frozenset("h"): "h * tiles + ",
    }.get(axes, "")
    lines.add(
        f"tile_row = tile_counts + 3 * ({which}{own}).to(tl.int64)",
        "partial_tiles = tl.load(tile_row)",
        "listed = tl.load(tile_row + 2)",
    )


def _loop(partial: bool, count: str, place: str) -> Loop:
    """A loop over entries. Each step loads the next step's tile: as a value that is there when the
    loop comes round, it costs fewer registers than one that is loaded where it is used."""
    first = f"tile = tl.load(tile_lists + {place.format('0')}, mask={count} > 0, other=0)"
    following = f"tile = tl.load(tile_lists + {place.format('(step + 1)')})"
    return Loop(partial, f"for step in range(0, {count}):", before=(first,), after=(following,))
