"""What the kernels share: their place in the grid, loads of tiles, and the loops over tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attndsl.ir.nodes import TRUE, Node, is_const
from attndsl.ir.program import Grid
from attndsl.plan.kernel_plan import Config, KernelPlan

from ..lines import Lines
from .arguments import Arguments
from .boxes import (
    COLUMNS,
    ROWS,
    Side,
    add_box_arguments,
    coordinate_name,
    corner_lines,
    inside_tests,
    write_coordinates,
    write_counts,
    write_places,
)
from .lists import add_list_arguments, uses_lists, visits_nothing, write_list_loops
from .ranges import KEYS, QUERIES, Axis, Loop, span_tests, write_range_loops
from .routed import (
    LIMIT,
    PLACES,
    SLOTS,
    add_gather_arguments,
    fact_nodes,
    kernel_name,
    write_gathered_head,
    write_gathered_loops,
    write_gathered_place,
    write_gathered_rows,
)
from .tensors import Tensors
from .tensors import arange as arange
from .tensors import elements as elements
from .tensors import load as load
from .tensors import width_test as width_test
from .values import Values, uses_score

Body = Callable[[bool], None]  # writes the work on one tile; whether it is a partial one

NEGATIVE_INFINITY = 'float("-inf")'


class Kernel(Tensors):
    """One kernel while it is written.

    columns_first  a program owns a tile of keys and loops over tiles of queries; its pair values
                   are transposed, [BLOCK_N, BLOCK_M]: the products read them from registers
    """

    def __init__(
        self, plan: KernelPlan, name: str, config: Config, columns_first: bool = False
    ) -> None:
        self.plan = plan
        self.lines = Lines()
        self.values = Values(plan, transposed=columns_first)
        self.arguments = Arguments(plan, kernel_name(plan, name), config)
        self.columns_first = columns_first
        self.has_score = uses_score(plan.value, plan.logit)
        self.segments = plan.queries if columns_first else plan.keys
        self.span = plan.query_span if columns_first else plan.key_span
        self.is_described = config.shape == "described"
        self._span_tests: list[str] | None = None

    @property
    def pair_value(self) -> Node:
        """What pairs compute of `KernelPlan.value`; `shift_text` is the rest."""
        return self.plan.value if self.plan.shift is None else self.plan.shift.value

    def shift_text(self) -> str:
        """The text of what all pairs of a row have in common in a tile, in units of log2(e), in the
        shape of rows or a number; "" where they have nothing."""
        if self.plan.shift is None:
            return ""
        (text,) = self.values.write(self.lines, self.plan.shift.rows)
        return f"({text}) * LOG2E"

    @property
    def mask_nodes(self) -> list[Node]:
        """What the tests of pairs read: nothing where rows have a run of columns."""
        return [] if self.span is not None else [self.plan.program.mask]

    @property
    def is_gathered(self) -> bool:
        """Whether the rows of a tile are gathered by lists of blocks."""
        return self.plan.gathered is not None

    # Shapes of vectors along rows and columns of a tile of pairs.
    @property
    def row(self) -> str:
        return "[None, :]" if self.columns_first else "[:, None]"

    @property
    def column(self) -> str:
        return "[:, None]" if self.columns_first else "[None, :]"

    @property
    def shape(self) -> str:
        return "BLOCK_N, BLOCK_M" if self.columns_first else "BLOCK_M, BLOCK_N"

    def segment_nodes(self) -> list[Node]:
        """The ends of segments that the kernel computes: none where it has lists of its tiles; or
        the facts of a tile, where it is gathered."""
        if self.is_gathered:
            return fact_nodes(self.plan)
        if uses_lists(self.plan):
            return []
        ends = [(s.lo, s.hi) for s in self.segments]
        ends += [(s.full_lo, s.full_hi) for s in self.segments]
        if self.span is not None:
            ends.append((self.span.lo, self.span.hi))
        return [end for pair in ends for end in pair]

    @property
    def key_head(self) -> str:
        """The text of the key head within its sequence."""
        return "group" if self.plan.packs_heads else "(h // G)"

    def add_tile_arguments(self) -> None:
        """What the kernel needs to find its tiles, besides the parameters in the segments."""
        if self.is_gathered:
            add_gather_arguments(self.arguments, self.columns_first)
        elif self.plan.grid is None:
            self.arguments.add("together", "i32", together_text(self.columns_first))
        if uses_lists(self.plan):
            add_list_arguments(self.arguments, self.columns_first)
        add_box_arguments(self.arguments, self.plan.grid)

    def finish(self) -> str:
        """The kernel's text: header and body."""
        whole = Lines()
        self.arguments.write_header(whole)
        with whole.indented():
            whole.add(self.lines.text().rstrip("\n"))
        return whole.text()

    # -- the place of a program --------------------------------------------------------------

    def write_place(self, roots: Sequence[Node]) -> None:
        """Which head and tile this program has; offsets and lengths; values that vary with nothing
        but the head."""
        lines = self.lines
        self.write_head()
        if self.plan.packs_heads:
            lines.add("b = head // H", "first_h = head % H", "G = H // Hk", "group = first_h // G")
        else:
            lines.add("b = head // H", "h = head % H", "G = H // Hk")
        self.write_offsets()
        if self.is_gathered:
            write_gathered_place(lines, self.plan, self.columns_first)
        elif self.segment_nodes():
            self.write_tile_bounds()
        self.values.define(lines, "program", [*roots, *self.segment_nodes()])

    def write_head(self) -> None:
        """The head, and where the tile begins as far as its number says that."""
        if self.is_gathered:
            write_gathered_head(self.lines, self.plan, self.columns_first)
        elif self.plan.grid is not None:
            self._write_box(self.plan.grid)
        else:
            self._write_run()

    def _write_run(self) -> None:
        """The head, and the first element of the tile where it is a run of positions."""
        lines = self.lines
        block = "BLOCK_N" if self.columns_first else "BLOCK_M"
        length, start = ("Nk", "start_n") if self.columns_first else ("Nq", "start_m")
        other, which, place = "keys", "last", "(tiles - 1 - within // heads)"
        if self.columns_first:
            other, which, place = "queries", "first", "(within // heads)"
        lines.add(f"tiles = tl.cdiv({length}, {block})")
        lines.comment(
            f"Some heads at a time, whose {other} the cache holds; their {which} tiles first,",
            f"which have the most {other} under a causal mask.",
        )
        lines.add(
            "first_head = tl.program_id(0) // (tiles * together) * together",
            "within = tl.program_id(0) - first_head * tiles",
            "heads = tl.minimum(together, tl.num_programs(0) // tiles - first_head)",
            "head = first_head + within % heads",
            f"{start} = {place} * {block}",
        )

    def _write_box(self, grid: Grid) -> None:
        """The head, and the corner of the tile where it is a box."""
        lines = self.lines
        write_counts(lines, grid, self.own_side, "tiles")
        write_counts(lines, grid, self.other_side, "other_tiles")
        number = "tl.program_id(0) % tiles"
        lines.add(
            "head = tl.program_id(0) // tiles",
            f"own = {number if self.columns_first else f'tiles - 1 - {number}'}",
            *corner_lines(grid, self.own_side, "own"),
        )

    @property
    def own_side(self) -> Side:
        """The side of the tiles that a program owns."""
        return COLUMNS if self.columns_first else ROWS

    @property
    def other_side(self) -> Side:
        return ROWS if self.columns_first else COLUMNS

    def write_offsets(self) -> None:
        """First positions of queries and keys, and the number of keys, of sequence b."""
        lines, per_batch = self.lines, self.plan.request.per_batch
        for letter in ("q", "k"):
            name = f"{letter}_offset"
            source = f"tl.load({name} + b).to(tl.int32)" if name in per_batch else name
            lines.add(f"{letter}_start = {source}")
        if "k_len" in per_batch:
            lines.add("n_keys = tl.minimum(tl.maximum(tl.load(k_len + b), 0), Nk).to(tl.int32)")
        else:
            lines.add("n_keys = Nk")

    def write_tile_bounds(self) -> None:
        """Positions of the first and the last row or column of the program's own tile."""
        if self.columns_first:
            self.lines.add(
                "tile_lo = start_n + k_start",
                "tile_hi = tl.minimum(start_n + BLOCK_N, n_keys) - 1 + k_start",
            )
        else:
            self.lines.add(
                "tile_lo = start_m + q_start",
                "tile_hi = tl.minimum(start_m + BLOCK_M, Nq) - 1 + q_start",
            )

    @property
    def row_elements(self) -> str:
        """The text of the indices of the tile's queries, [BLOCK_M]; after `write_rows`."""
        if self.is_gathered:
            return PLACES
        return ROWS.places if self.plan.grid else elements("start_m", "BLOCK_M")

    @property
    def column_elements(self) -> str:
        """The text of the indices of the tile's keys, [BLOCK_N]; after `write_columns`."""
        return COLUMNS.places if self.plan.grid else elements("start_n", "BLOCK_N")

    @property
    def column_limit(self) -> str:
        """The end of the columns that the program may read."""
        return LIMIT if self.is_gathered else "n_keys"

    @property
    def results(self) -> tuple[str, str, str]:
        """Of what a kernel stores for its rows: the index of its head, those of its rows, and the
        length of the axis. A gathered kernel stores something for every entry."""
        if self.plan.packs_heads:
            return "which_list", SLOTS, "(sharing * entries)"
        if self.is_gathered:
            return "local_head", SLOTS, "entries"
        return "head", self.row_elements, "Nq"

    def write_rows(self, partial: bool = True) -> None:
        """Indices and positions of the tile's queries. Where it is a box, `partial` says whether
        some of them may lie beyond the grid; where they are gathered, whether some may be none."""
        if self.is_gathered:
            write_gathered_rows(self.lines, self.plan, self.columns_first, partial)
        if self.plan.packs_heads:
            self.lines.add("row_head = head + member", f"h = (first_h + member){self.row}")
        self._write_elements(ROWS, self.row, partial)
        self.lines.add(f"rows = {self.row_elements}{self.row}", "q = rows + q_start")

    def write_columns(self, partial: bool = True) -> None:
        """Indices and positions of the tile's keys, as `write_rows`."""
        self._write_elements(COLUMNS, self.column, partial)
        self.lines.add(f"columns = {self.column_elements}{self.column}", "k = columns + k_start")
        if self.plan.shift is not None:
            self.lines.add(
                f"{coordinate_name('k', 'place')} = tl.arange(0, BLOCK_N){self.column}",
                "tile_k_first = start_n + k_start",
            )

    def _write_elements(self, side: Side, subscript: str, partial: bool) -> None:
        if self.plan.grid is not None:
            write_places(self.lines, self.plan.grid, side, partial)
            write_coordinates(self.lines, self.plan.grid, side, subscript)

    # -- loops over tiles --------------------------------------------------------------------------

    def write_tiles(self, body: Body) -> None:
        """The loops over tiles of the other axis: full ones, then the rest with their mask."""
        lines, plan = self.lines, self.plan
        if visits_nothing(plan):
            return
        lines.blank()
        lines.origin(plan.program, plan.program.mask)
        self.write_span()
        for loop in self._write_loops():
            lines.blank()
            outer = self.values
            lines.add(*loop.before)
            with lines.block(loop.header):
                place = [f"{self.axis.start} = tile * {self.axis.block}"]
                if self.is_gathered:
                    place = []
                elif plan.grid is not None:
                    place = corner_lines(plan.grid, self.other_side, "tile")
                lines.add(*loop.statements, *place, *loop.after)
                self.values = outer.inner()
                body(loop.partial)
                self.values = outer
            lines.blank()

    def _write_loops(self) -> list[Loop]:
        """The loops, and what has to be known before them."""
        lines, plan = self.lines, self.plan
        if self.is_gathered:
            return write_gathered_loops(lines, self.values, plan, self.columns_first)
        if uses_lists(plan):
            return write_list_loops(lines, plan, self.columns_first)
        return write_range_loops(
            lines, self.values, self.segments, self.axis, self.guard, self.whole_guard
        )

    def write_span(self) -> None:
        """For each of the tile's own rows or columns, the first element of the other axis with
        which it takes part, and the one after the last; where they are a run."""
        if self.span is not None and self.plan.program.mask is not TRUE:
            other = "rows" if self.columns_first else "columns"
            texts = (other, self.own_guard)
            self._span_tests = span_tests(self.lines, self.values, self.span, self.axis, *texts)

    @property
    def axis(self) -> Axis:
        """The axis over which the kernel loops."""
        return QUERIES if self.columns_first else KEYS

    @property
    def guard(self) -> str:
        """The test without which no tile is reached: keys beyond k_len meet no query."""
        batched = self.columns_first and "k_len" in self.plan.request.per_batch
        return "start_n < n_keys" if batched else ""

    @property
    def whole_guard(self) -> str:
        """The test without which no tile is full."""
        return ""

    @property
    def own_guard(self) -> str:
        """The test without which a row or column of the program's own has no pairs; where runs of
        the other axis are tested."""
        return ""

    def spread(self, node: Node, text: str) -> str:
        """The text of a value, an atom, in the shape of a tile whatever the node varies with."""
        if self.values.level(node) == "pair":
            return f"({text})"
        if is_const(node):
            return f"tl.full([{self.shape}], {text}, tl.float32)"
        return f"(tl.zeros([{self.shape}], tl.float32) + {text})"

    def end_tests(self, side: Side) -> list[str]:
        """Tests that a row or column of a pair is there."""
        is_cut = side is COLUMNS and "k_len" in self.plan.request.per_batch
        if self.plan.grid is not None and not is_cut:  # coordinates are there for the mask anyway
            return inside_tests(self.plan.grid, side)
        return [f"(columns < {self.column_limit})" if side is COLUMNS else "(rows < Nq)"]

    def mask_tests(self, partial: bool, always_rows: bool = False) -> list[str]:
        """Tests that a pair takes part, by bounds and mask; none in a full tile."""
        tests = []
        if partial and self._span_tests is not None:  # these know the end of the axis too
            return [*self._span_tests, *(self.end_tests(ROWS) if always_rows else [])]
        if partial:
            tests += self.end_tests(self.other_side)
        if always_rows:
            tests += self.end_tests(ROWS)
        mask = self.plan.program.mask
        if partial and mask is not TRUE:
            self.lines.origin(self.plan.program, mask)
            (text,) = self.values.write(self.lines, mask)
            tests.append(f"({text})")
        return tests


def together_text(columns_first: bool) -> str:
    """The host's text of how many heads' programs run at a time. Heads of a group read the same
    keys and values; queries and gradients of results are those of one head."""
    length, sharing = ("size_Nq", "1") if columns_first else ("size_Nk", "size_G")
    size = f"{length} * (size_D + size_Dv) * query.element_size()"
    return f"attn_together(size_B * size_H, {sharing}, {size})"
