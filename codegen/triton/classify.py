"""The kernels that classify tiles, from summaries of positions, and list those to be visited."""

from __future__ import annotations

from attndsl.ir.nodes import FALSE, TRUE, Node
from attndsl.plan.kernel_plan import Config, KernelPlan

from ..summaries import list_axes, parts_of, used_leaves, used_summaries
from .boxes import add_box_arguments, whole_tests, write_bounds, write_counts
from .kernel import Kernel
from .lists import add_list_arguments, batch_and_head
from .ranges import Span, reached_parts, write_ends
from .summarise import block_dtype, block_name

AT_ONCE = 64  # tiles of the other axis in a vector; one warp scans it without a barrier
BOXES_AT_ONCE = 128  # no segment says which boxes to look at: all of them are


class Classify(Kernel):
    """Writes `classify_rows`, or `classify_columns`: one program for each tile of queries (keys)
    of each list; see `lists`.

    A tile is visited where the segments reach it and the facts of it do not rule it out; it is full
    where they say so and it ends within the axis. Boxes know no segments.
    """

    def __init__(self, plan: KernelPlan, config: Config, columns_first: bool = False) -> None:
        name = "classify_columns" if columns_first else "classify_rows"
        config = Config(config.block_m, config.block_n, num_warps=1, num_stages=1)
        super().__init__(plan, name, config, columns_first)
        self.facts = (plan.tile.possible, plan.tile.certain)
        self.has_full = plan.tile.certain is not FALSE
        self.at_once = AT_ONCE if plan.grid is None else BOXES_AT_ONCE

    def write(self) -> str:
        self._add_arguments()
        over, other = ("keys", "queries") if self.columns_first else ("queries", "keys")
        self.lines.add(f'"""Lists the tiles of {other} that a tile of {over} needs."""')
        self._write_place()
        outer = self._write_hull()
        self._write_summaries(on_own_axis=True)
        self.lines.blank()
        with self.lines.block(f"for at in range(first, last, {self.at_once}):"):
            scope = self.values
            self.values = scope.inner()
            self._write_vector(outer)
            self.values = scope
        self.lines.blank()
        self._write_counts()
        return self.finish()

    def _add_arguments(self) -> None:
        arguments = self.arguments
        add_list_arguments(arguments, self.columns_first)
        for summary in used_summaries(self.plan):
            first, *_ = parts = parts_of(self.plan, summary)
            for part in parts:
                arguments.add_own(block_name(summary, part), block_dtype(summary, part))
            shaped = block_name(summary, first)
            for axis, letter in enumerate("bh"):
                host = f"{shaped}.stride({axis}) if {shaped}.shape[{axis}] > 1 else 0"
                arguments.add(f"stride_{letter}_{summary.number}", "i64", host)
        add_box_arguments(arguments, self.plan.grid)
        arguments.add_call()
        arguments.add_leaves([*self._segment_ends(), *self.facts])

    def _segment_ends(self) -> list[Node]:
        return [end for part in reached_parts(self.segments) for end in part]

    def _write_place(self) -> None:
        """Which list and tile this program has."""
        lines = self.lines
        block, length = ("BLOCK_N", "Nk") if self.columns_first else ("BLOCK_M", "Nq")
        start = "start_n" if self.columns_first else "start_m"
        grid = self.plan.grid
        if grid is None:
            lines.add(f"tiles = tl.cdiv({length}, {block})")
        else:
            write_counts(lines, grid, self.own_side, "tiles")
            write_counts(lines, grid, self.other_side, "other_tiles")
        lines.add("which = tl.program_id(0) // tiles", "own = tl.program_id(0) % tiles")
        if grid is None:
            lines.add(f"{start} = own * {block}")
        batch, head = batch_and_head(list_axes(self.plan))
        lines.add(f"b = {batch}", f"h = {head}", "G = H // Hk")
        self.write_offsets()
        if grid is not None:
            write_bounds(lines, grid, self.own_side, "own")
            return
        self.write_tile_bounds()
        letter = "k" if self.columns_first else "q"
        lines.add(f"tile_{letter}_lo = tile_lo", f"tile_{letter}_hi = tile_hi")

    def _write_hull(self) -> list[Span]:
        """The ends of the segments, and [first, last): the tiles from their first to their last."""
        lines = self.lines
        lines.origin(self.plan.program, self.plan.program.mask)
        outer: list[Span] = []
        if self.plan.grid is None:
            outer = self._write_reached()
        else:
            lines.add("first = own * 0", f"last = {self._other_boxes()}")
        lines.add(
            "row = 1 + tl.program_id(0) * most_listed",
            "partial_tiles = first * 0",
            "full_tiles = first * 0",
            f"lowest = tl.full([{self.at_once}], 0, tl.int32) + last",
            f"highest = tl.full([{self.at_once}], -1, tl.int32)",
        )
        return outer

    def _write_reached(self) -> list[Span]:
        """The ends of the segments, and [first, last) of runs of positions."""
        lines, axis = self.lines, self.axis
        parts = reached_parts(self.segments)
        outer, _ = write_ends(lines, self.values, parts, [], axis, self.guard)
        for at, (lo, hi) in enumerate(outer):
            least, most = f"tl.where({lo} < {hi}, {lo}, {axis.length})", f"{hi}"
            if at:
                least, most = f"tl.minimum(least, {least})", f"tl.maximum(most, {most})"
            lines.add(f"least = {least}", f"most = {most}")
        lines.add(
            f"first = least // {axis.block}",
            f"last = tl.maximum(tl.cdiv(most, {axis.block}), first)",
        )
        return outer

    @property
    def is_cut(self) -> bool:
        """Whether the keys of a box may end before the grid does."""
        return "k_len" in self.plan.request.per_batch

    def _other_boxes(self) -> str:
        """The number of boxes of the other axis: none for one beyond the last key."""
        if self.columns_first and self.is_cut:
            return "tl.where(tile_k_lo < n_keys, other_tiles, 0)"
        return "other_tiles"

    def _write_summaries(self, on_own_axis: bool) -> None:
        """Loads summaries of the program's own tile, or of a vector of the other axis' tiles."""
        own_axis = ("k",) if self.columns_first else ("q",)
        for summary in used_summaries(self.plan):
            if (summary.axes == own_axis) is not on_own_axis:
                continue
            number, mask = summary.number, "" if on_own_axis else ", mask=inside, other=0"
            place = "own" if on_own_axis else "tile"
            if len(summary.axes) == 2:
                rows, columns = ("tile", "own") if self.columns_first else ("own", "tile")
                place = f"{rows}.to(tl.int64) * tl.cdiv(Nk, BLOCK_N) + {columns}"
            place = f"b * stride_b_{number} + h * stride_h_{number} + {place}"
            for part in parts_of(self.plan, summary):
                value = f"tl.load({block_name(summary, part)} + {place}{mask})"
                if summary.kind == "bool" and part != "signature":
                    value = f"attn_truth({value} != 0)"
                self.lines.add(f"summary_{number}_{part} = {value}")

    def _write_vector(self, outer: list[Span]) -> None:
        """Classifies a vector of tiles and appends them to the row."""
        lines, axis = self.lines, self.axis
        letter = "q" if self.columns_first else "k"
        lines.add(f"tile = at + tl.arange(0, {self.at_once})", "inside = tile < last")
        if self.plan.grid is not None:
            write_bounds(lines, self.plan.grid, self.other_side, "tile")
        else:
            lines.add(
                f"start = tile * {axis.block}",
                f"end = start + {axis.block}",
                f"tile_{letter}_lo = start + {axis.offset}",
                f"tile_{letter}_hi = tl.minimum(end, {axis.length}) - 1 + {axis.offset}",
            )
        self._write_summaries(on_own_axis=False)
        for leaf in sorted(used_leaves(self.plan)):
            if "_meets_" in leaf:
                x, y = (f"summary_{number}_signature" for number in leaf.split("_meets_"))
                lines.add(f"summary_{leaf} = ({x} & {y}) != 0")
        self._write_truths(outer)
        lines.add(
            "place = partial_tiles + tl.cumsum(some.to(tl.int32), 0) - 1",
            "tl.store(tile_lists + (row + place), tile, mask=some & (place < most_listed))",
            "partial_tiles += tl.sum(some.to(tl.int32), 0)",
        )
        if self.has_full:
            lines.add(
                "place = most_listed - full_tiles - tl.cumsum(whole.to(tl.int32), 0)",
                "tl.store(tile_lists + (row + place), tile, mask=whole & (place >= 0))",
                "full_tiles += tl.sum(whole.to(tl.int32), 0)",
            )

    def _write_truths(self, outer: list[Span]) -> None:
        """`some` and `whole`: which tiles of the vector are partial, and which are full."""
        lines, (possible, certain) = self.lines, self.facts
        texts = self.values.write(lines, possible, certain)
        kept = ["inside"]
        if len(outer) > 1:
            reached = [
                f"(attn_truth({lo} < {hi}) & (start < {hi}) & (end > {lo}))" for lo, hi in outer
            ]
            kept.append(f"({' | '.join(reached)})")
        whole = [f"(end <= {self.axis.length})"]
        if self.plan.grid is not None:
            whole = whole_tests(self.plan.grid, self.other_side)
            if self.is_cut and not self.columns_first:
                kept.append("(tile_k_lo < n_keys)")
                whole.append("(tile_k_hi < n_keys)")
        if possible is not TRUE:
            kept.append(f"({texts[0]})")
        lines.add(
            f"some = {' & '.join(kept)}",
            "lowest = tl.where(some, tl.minimum(lowest, tile), lowest)",
            "highest = tl.where(some, tile, highest)",
        )
        if self.has_full:
            lines.add(
                f"whole = {' & '.join(['some', *whole, f'({texts[1]})'])}",
                "some = some & attn_not(whole)",
            )

    def _write_counts(self) -> None:
        """The three numbers of the row."""
        self.lines.add(
            "lowest_tile = tl.min(lowest, 0)",
            "hull = tl.max(highest, 0) + 1 - lowest_tile",
            "is_listed = partial_tiles + full_tiles <= most_listed",
            "place = tl.where(is_listed, row, 1 + tl.num_programs(0) * most_listed + lowest_tile)",
            "counts = tile_counts + 3 * tl.program_id(0).to(tl.int64)",
            "tl.store(counts, tl.where(is_listed, partial_tiles, hull))",
            "tl.store(counts + 1, tl.where(is_listed, full_tiles, 0))",
            "tl.store(counts + 2, place)",
        )
