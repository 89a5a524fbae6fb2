"""Gathered tiles in kernels: the queries whose lists name one block of keys, and its keys.

Lists are [rows, slots] of block numbers for each (batch, head) or (batch, group), of which a launch
takes a run of lists and of rows. An entry is row * slots + slot, counted from the first row of the
launch. `entry_order` has the entries of each list sorted by their block, so that neighbours read
the same keys. A kernel that owns rows owns a tile of neighbouring entries of one block; one that
owns columns, a part of the columns of one block: it loops over the block's entries. An entry that
is not there has the row `Nq`, which every test against the end of the axis rules out.

Where the heads of a group share tiles (`KernelPlan.packs_heads`), each of them is counted as an
entry of its own: number n of a block is the head n % sharing of its entry n // sharing. So keys and
values of a block are loaded once for all heads, and what they give to it is summed in a tile.
"""

from __future__ import annotations

from attndsl.ir.nodes import FALSE, TRUE, Node
from attndsl.plan.kernel_plan import KernelPlan

from ..lines import Lines
from .arguments import Arguments
from .lists import visits_nothing
from .ranges import Loop
from .values import Values

PLACES = "row_places"  # rows of a tile, [BLOCK_M]
SLOTS = "entry_places"  # their entries
LIMIT = "column_last"  # the end of a block's columns


def routed_plan(plan: KernelPlan) -> KernelPlan | None:
    """The plan of the pairs that lists of blocks add, where they can add any."""
    return None if plan.routed is None or visits_nothing(plan.routed) else plan.routed


def is_whole(plan: KernelPlan) -> bool:
    """Whether a plan's own kernels compute whole results, not a part that is merged with others."""
    return plan.gathered is None and routed_plan(plan) is None


def kernel_name(plan: KernelPlan, name: str) -> str:
    return f"routed_{name}" if plan.gathered is not None else name


def own_name(plan: KernelPlan, name: str) -> str:
    """What the host calls a tensor that a kernel fills: of a gathered one it has a row per entry,
    of a kernel whose results are merged with others it is only the base."""
    if plan.gathered is not None:
        return f"entry_{name}"
    return name if is_whole(plan) else f"base_{name}"


def gather_facts(plan: KernelPlan) -> tuple[Node, Node]:
    """May some pair of a tile take part, do all: constants where that is known of every tile."""
    if plan.program.mask is TRUE:
        return TRUE, TRUE
    possible, certain = plan.tile.possible, plan.tile.certain
    # What differs between the heads of a tile says nothing of all of it.
    if plan.packs_heads and "h" in possible.varies:
        possible = TRUE
    if plan.packs_heads and "h" in certain.varies:
        certain = FALSE
    return possible, certain


def fact_nodes(plan: KernelPlan) -> list[Node]:
    """The facts that a kernel must compute."""
    return [fact for fact in gather_facts(plan) if fact not in (TRUE, FALSE)]


def add_gather_arguments(arguments: Arguments, columns_first: bool) -> None:
    """What a kernel needs to find its entries."""
    table = "block_starts" if columns_first else "entry_tiles"
    arguments.add_own(table, "int32")
    arguments.add_own("entry_order", "int32")
    counts = ["n_blocks", "n_parts"] if columns_first else ["n_tiles"]
    for name in ("first_head", "first_row", "slots", "entries", "sharing", "block_columns"):
        arguments.add(name, "i32")
    for name in counts:
        arguments.add(name, "i32")


def write_gathered_head(lines: Lines, plan: KernelPlan, columns_first: bool) -> None:
    """The head of a program, or the first of a group that shares its tiles, and its list."""
    if columns_first:
        lines.add("n_tiles = n_blocks * n_parts")
    if plan.packs_heads:
        lines.add(
            "local_list = tl.program_id(0) // n_tiles",
            "head = first_head + local_list * sharing",
            "which_list = local_list.to(tl.int64)",
        )
    else:
        lines.add(
            "local_head = tl.program_id(0) // n_tiles",
            "head = first_head + local_head",
            "which_list = (local_head // sharing).to(tl.int64)",
        )
    lines.add(
        "own = tl.program_id(0) % n_tiles",
        "list_order = entry_order + which_list * entries",
    )


def write_gathered_place(lines: Lines, plan: KernelPlan, columns_first: bool) -> None:
    """The block of a program, its entries [first_entry, last_entry) and its columns
    [column_first, column_last); after the offsets."""
    if columns_first:
        lines.add(
            "block = own // n_parts",
            "block_row = block_starts + which_list * (n_blocks + 1) + block",
            "first_entry = tl.load(block_row)",
            "last_entry = tl.load(block_row + 1)",
        )
    else:
        lines.add(
            "tile_row = entry_tiles + 3 * (which_list * n_tiles + own)",
            "block = tl.load(tile_row)",
            "first_entry = tl.load(tile_row + 1)",
            "last_entry = tl.load(tile_row + 2)",
        )
    lines.comment("The first block of the call may have lost columns at its front.")
    lines.add(
        "column_first = block * block_columns - attn_floormod(k_start, block_columns)",
        f"{LIMIT} = tl.minimum(column_first + block_columns, n_keys)",
        "column_first = tl.maximum(column_first, 0)",
    )
    if columns_first:
        lines.add(
            "start_n = column_first + own % n_parts * BLOCK_N",
            f"{LIMIT} = tl.minimum({LIMIT}, start_n + BLOCK_N)",
            f"last_entry = tl.where(start_n < {LIMIT}, last_entry, first_entry)",
        )
    if fact_nodes(plan):
        _write_bounds(lines, plan, "start_n" if columns_first else "column_first")


def _write_bounds(lines: Lines, plan: KernelPlan, start: str) -> None:
    """Positions of the first and last row and column: the entries of a block are in order."""
    share = " // sharing" if plan.packs_heads else ""
    for name, entry in (("lo", f"first_entry{share}"), ("hi", f"(last_entry - 1){share}")):
        load = f"tl.load(list_order + {entry}, mask=first_entry < last_entry, other=0)"
        lines.add(f"tile_q_{name} = first_row + {load} // slots + q_start")
    lines.add(f"tile_k_lo = {start} + k_start", f"tile_k_hi = {LIMIT} - 1 + k_start")


def write_gathered_rows(lines: Lines, plan: KernelPlan, columns_first: bool, partial: bool) -> None:
    """The rows of a tile; of a kernel that owns them also their entries. Where heads share a tile,
    which member of its group each row is of: one that is there also for a row that is not."""
    start = "start_m" if columns_first else "first_entry"
    lines.add(f"entry_at = {start} + tl.arange(0, BLOCK_M)")
    at = "entry_at"
    if plan.packs_heads:
        lines.add("member = entry_at % sharing")
        at = "entry_at // sharing"
    if not partial:
        lines.add(f"{PLACES} = first_row + tl.load(list_order + {at}) // slots")
        return
    lines.add(
        "is_entry = entry_at < last_entry",
        f"entry = tl.load(list_order + {at}, mask=is_entry, other=0)",
        f"{PLACES} = tl.where(is_entry, first_row + entry // slots, Nq)",
    )
    if columns_first:
        return
    if plan.packs_heads:
        lines.add(f"{SLOTS} = tl.where(is_entry, member * entries + entry, sharing * entries)")
    else:
        lines.add(f"{SLOTS} = tl.where(is_entry, entry, entries)")


def write_gathered_loops(
    lines: Lines, values: Values, plan: KernelPlan, columns_first: bool
) -> list[Loop]:
    """The loops of a program: whole tiles in which all pairs take part, then the others."""
    possible, certain = gather_facts(plan)
    if columns_first:
        first, last, block, start = "first_entry", "last_entry", "BLOCK_M", "start_m"
    else:
        first, last, block, start = "column_first", LIMIT, "BLOCK_N", "start_n"
    lines.add(f"length = tl.maximum({last} - {first}, 0)")
    if not columns_first:
        lines.add("length = tl.where(first_entry < last_entry, length, 0)")
    facts = fact_nodes(plan)
    known = dict(zip(facts, values.write(lines, *facts), strict=True))
    if possible in known:
        lines.add(f"length = tl.where({known[possible]}, length, 0)")
    lines.add(f"steps = tl.cdiv(length, {block})")
    statements = (f"{start} = {first} + tile * {block}",)
    if certain is FALSE:
        return [Loop(True, "for tile in range(0, steps):", statements)]
    lines.add(f"whole_steps = length // {block}")
    if certain in known:
        lines.add(f"whole_steps = tl.where({known[certain]}, whole_steps, 0)")
    return [
        Loop(False, "for tile in range(0, whole_steps):", statements),
        Loop(True, "for tile in range(whole_steps, steps):", statements),
    ]
