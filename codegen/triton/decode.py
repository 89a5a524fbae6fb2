"""Kernels for few queries: heads of a group share tiles, and the keys of a tile are split.

A tile has few rows, and as many keys as any other: what takes time is to read these. So rows are
pairs of a query and a head, where the heads of a group need the same keys: row number n of a key
head is the head n % G of query n // G. And the tiles of keys that such a tile needs are split into
`splits` parts, so that there are programs enough to keep a device busy. Full tiles and the others
are one sequence: a test costs little where the time goes into reading.

`decode` has whole results, for calls that need no split. `decode_part` has those of a part, which
`decode_merge` puts together: they are [B, H, splits, Nq].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attndsl.ir.nodes import FALSE, Node
from attndsl.plan.decode import decode_plan
from attndsl.plan.kernel_plan import Chunk, KernelPlan

from ..summaries import list_axes
from .forward import Forward
from .lists import add_list_arguments, uses_lists
from .ranges import Loop, numbered, reached_parts, write_ends, write_reached
from .routed import PLACES
from .routed_merge import Merge


class Decode(Forward):
    """Writes `decode`, or `decode_part` where `is_part`."""

    def __init__(self, plan: KernelPlan, is_part: bool = False) -> None:
        super().__init__(decode_plan(plan), "decode_part" if is_part else "decode")
        self.is_part = is_part
        self.is_whole = not is_part

    def _add_results(self) -> None:
        if not self.is_part:
            super()._add_results()
            return
        self.arguments.add_own("out", "float32", "entry_out")
        if self.plan.form != "elementwise":
            self.arguments.add_own("stat", "float32", "entry_stat")
        self.arguments.add("splits", "i32")

    def add_tile_arguments(self) -> None:
        if uses_lists(self.plan):
            add_list_arguments(self.arguments, columns_first=False)

    # -- the place of a program ------------------------------------------------------------------

    def write_head(self) -> None:
        """The first head, the tile, and which part of its keys; programs that read the same keys
        are neighbours."""
        lines = self.lines
        rows, heads = "Nq", ""
        if self.plan.packs_heads:
            lines.add("sharing = H // Hk")
            rows, heads = "Nq * sharing", " * sharing"
        lines.add(
            f"tiles = tl.cdiv({rows}, BLOCK_M)",
            "start_m = tl.program_id(0) % tiles * BLOCK_M",
        )
        number = "tl.program_id(0) // tiles"
        if self.is_part:
            lines.add(f"split = {number} % splits")
            number += " // splits"
        lines.add(f"head = {number}{heads}")

    def write_tile_bounds(self) -> None:
        if not self.plan.packs_heads:
            super().write_tile_bounds()
            return
        self.lines.add(
            "tile_lo = start_m // G + q_start",
            "tile_hi = (tl.minimum(start_m + BLOCK_M, Nq * G) - 1) // G + q_start",
        )

    @property
    def row_elements(self) -> str:
        return PLACES if self.plan.packs_heads else super().row_elements

    def write_rows(self, partial: bool = True) -> None:
        if self.plan.packs_heads:
            self.lines.add(
                "row_at = start_m + tl.arange(0, BLOCK_M)",
                "member = row_at % G",
                f"{PLACES} = row_at // G",
            )
        super().write_rows(partial)

    # -- loops -----------------------------------------------------------------------------------

    def segment_nodes(self) -> list[Node]:
        """The ends of what tiles reach, and the run of each row: no tile is known to be full."""
        if uses_lists(self.plan):
            return []
        ends = [end for segment in self.segments for end in (segment.lo, segment.hi)]
        return ends if self.span is None else [*ends, self.span.lo, self.span.hi]

    def _write_loops(self) -> list[Loop]:
        """One loop over the tiles of keys that the program has."""
        lines, is_listed = self.lines, uses_lists(self.plan)
        count, tile = self._write_listed() if is_listed else self._write_ranged()
        first, last = "0", count
        if self.is_part:
            first, last = "first", "last"
            lines.comment("Those of them that this program has.")
            lines.add(
                f"share = tl.cdiv({count}, splits)",
                f"first = tl.minimum(split * share, {count})",
                f"last = tl.minimum(first + share, {count})",
            )
        header = f"for at in range({first}, {last}):"
        if not is_listed:
            return [Loop(True, header, (f"tile = {tile.format('at')}",))]
        # Each step loads the next step's tile, as in `lists`.
        before = f"tile = tl.load({tile.format(first)}, mask={first} < {last}, other=0)"
        after = f"tile = tl.load({tile.format('(at + 1)')})"
        return [Loop(True, header, before=(before,), after=(after,))]

    def _write_ranged(self) -> tuple[str, str]:
        """How many tiles the segments reach, and the text of number {0} of them."""
        self.lines.comment("Tiles of keys in which pairs may take part are numbered.")
        outer, _ = write_ends(self.lines, self.values, reached_parts(self.segments), [], self.axis)
        reached = write_reached(self.lines, outer, self.axis.block)
        if len(reached) > 1:
            return f"end_{len(reached) - 1}", numbered("end", reached, "{0}")
        ((first, last),) = reached
        self.lines.add(f"count = {last} - {first}")
        return "count", f"{first} + {{0}}"

    def _write_listed(self) -> tuple[str, str]:
        """How many tiles a list has, and where number {0} of them stands: those at its front, then
        those at its back. All queries of the call are one tile of the lists."""
        axes = list_axes(self.plan)
        both = {frozenset("bh"): "b * H + h", frozenset("h"): "h", frozenset(): "b * 0"}
        self.lines.add(
            f"tile_row = tile_counts + 3 * ({both.get(axes, 'b')}).to(tl.int64)",
            "partial_tiles = tl.load(tile_row)",
            "listed = tl.load(tile_row + 2)",
        )
        if self.plan.tile.certain is FALSE:
            return "partial_tiles", "tile_lists + listed + {0}"
        self.lines.add(
            "count = partial_tiles + tl.load(tile_row + 1)",
            "behind = listed + most_listed - 1 + partial_tiles",
        )
        return "count", "tile_lists + tl.where({0} < partial_tiles, listed + {0}, behind - {0})"

    # -- results ---------------------------------------------------------------------------------

    @property
    def results(self) -> tuple[str, str, str]:
        owner = f"({self.row_head} * splits + split)" if self.is_part else self.row_head
        return owner, self.row_elements, "Nq"

    def write_results(
        self, name: str, width: int, chunks: Sequence[Chunk], value: Callable[[int], str]
    ) -> None:
        owner, index, limit = self.results
        shape = "[:, None]" if self.plan.packs_heads else ""
        self.write_own_base(name, width, limit, f"{owner}{shape}")
        self.write_stores(name, width, index, chunks, limit, value)


class DecodeMerge(Merge):
    """Writes `decode_merge`: the results of one row from those of its parts, some at once."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan, True, "decode_merge")
        self.has_base = False

    def segment_nodes(self) -> list[Node]:
        return []

    def add_slot_arguments(self) -> None:
        self.arguments.add("splits", "i32")

    def write_head(self) -> None:
        self.lines.add(
            "head = tl.program_id(0) // Nq",
            f"{PLACES} = tl.program_id(0) % Nq + tl.arange(0, BLOCK_M)",
        )

    def write_slots(self, body: Callable[[], None]) -> None:
        """The loop over parts: `entry_at` are the numbers of entries of all rows, [1, BLOCK_N],
        `is_entry` whether they are there."""
        lines = self.lines
        lines.blank()
        with lines.block("for first_split in range(0, splits, BLOCK_N):"):
            lines.add(
                "split = first_split + tl.arange(0, BLOCK_N)[None, :]",
                "is_entry = split < splits",
                "entry_at = (head.to(tl.int64) * splits + split) * Nq + row_places[:, None]",
            )
            body()
        lines.blank()
