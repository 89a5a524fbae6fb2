"""What the kernels share: their place in the grid, loads of tiles, and the loops over tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attndsl.ir.nodes import TRUE, Node, is_const
from attndsl.ir.program import Grid
from attndsl.plan.kernel_plan import Chunk, Config, KernelPlan

from ..lines import Lines
from .arguments import Arguments, elements_per_alignment
from .boxes import (
    COLUMNS,
    ROWS,
    Side,
    add_box_arguments,
    corner_lines,
    inside_tests,
    write_coordinates,
    write_counts,
    write_places,
)
from .lists import add_list_arguments, uses_lists, visits_nothing, write_list_loops
from .ranges import KEYS, QUERIES, Axis, write_range_loops
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
from .values import Values, uses_score

Body = Callable[[bool], None]  # writes the work on one tile; whether it is a partial one

NEGATIVE_INFINITY = 'float("-inf")'


class Kernel:
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

    @property
    def precision(self) -> str:
        return ', input_precision="ieee"' if self.plan.request.dtype == "float32" else ""

    def segment_nodes(self) -> list[Node]:
        """The ends of segments that the kernel computes: none where it has lists of its tiles; or
        the facts of a tile, where it is gathered."""
        if self.is_gathered:
            return fact_nodes(self.plan)
        if uses_lists(self.plan):
            return []
        return [n for s in self.segments for n in (s.lo, s.hi, s.full_lo, s.full_hi)]

    @property
    def row_head(self) -> str:
        """The text of the number of the rows' head among those of all sequences: one for the tile,
        or [BLOCK_M] after `write_rows`."""
        return "row_head" if self.plan.packs_heads else "head"

    @property
    def key_head(self) -> str:
        """The text of the key head within its sequence."""
        return "group" if self.plan.packs_heads else "(h // G)"

    def add_tile_arguments(self) -> None:
        """What the kernel needs to find its tiles, besides the parameters in the segments."""
        if self.is_gathered:
            add_gather_arguments(self.arguments, self.columns_first)
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
        lines.add(f"tiles = tl.cdiv({length}, {block})", "head = tl.program_id(0) // tiles")
        if self.columns_first:
            lines.add(f"{start} = tl.program_id(0) % tiles * {block}")
        else:
            lines.comment("The last tile comes first: under a causal mask it has the most keys.")
            lines.add(f"{start} = (tiles - 1 - tl.program_id(0) % tiles) * {block}")

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

    def _write_elements(self, side: Side, subscript: str, partial: bool) -> None:
        if self.plan.grid is not None:
            write_places(self.lines, self.plan.grid, side, partial)
            write_coordinates(self.lines, self.plan.grid, side, subscript)

    # -- loads ---------------------------------------------------------------------------------

    def write_base(self, name: str, head: str) -> None:
        """Strides in elements, and the address of one head of query, key or value."""
        unit = elements_per_alignment(self.plan)
        times = f" * {unit}" if unit > 1 else ""
        self.lines.add(
            f"{name}_n = {name}_stride_n{times}",
            f"{name}_head = {name} + (b * {name}_stride_b + {head} * {name}_stride_h){times}",
        )

    def write_query_base(self) -> None:
        """The address of the rows' head of query: one, or [BLOCK_M, 1]."""
        self.write_base("query", "(first_h + member)[:, None]" if self.plan.packs_heads else "h")

    def write_query_rows(self) -> None:
        """The addresses of the rows of query, in the shape of `rows`."""
        if not self.plan.packs_heads:
            self.lines.add("query_rows = query_head + rows * query_n")
            return
        unit = elements_per_alignment(self.plan)
        times = f" * {unit}" if unit > 1 else ""
        self.lines.add(
            f"query_rows = query + (b * query_stride_b + h * query_stride_h){times} "
            "+ rows * query_n"
        )

    def write_row_base(self, name: str, width: int) -> None:
        """The address of the rows' head of a contiguous tensor [B, H, Nq, width]: one, or
        [BLOCK_M, 1]."""
        shape = "[:, None]" if self.plan.packs_heads else ""
        self.write_own_base(name, width, "Nq", f"{self.row_head}{shape}")

    def write_loads(
        self, name: str, index: str, chunks: Sequence[Chunk], limit: str | None
    ) -> None:
        """Loads a tile [block, width] of query, key or value for each chunk, of the rows `index`
        ([block]); from row `limit` on it is 0 (None: no test)."""
        # Addresses are made where they are used: kept over a loop they would fill registers.
        stride = "" if self.plan.request.unit_stride else f" * {name}_stride_d"
        index = f"({index})[:, None]"
        for i, chunk in enumerate(chunks):
            tests = [f"({index} < {limit})"] if limit is not None else []
            element = f"({arange(chunk)}){stride}" if stride else arange(chunk)
            address = f"{name}_head + {index} * {name}_n + {element}"
            self.lines.add(f"{name}_{i} = " + load(address, tests + width_test(chunk), "0.0"))

    def own_address(self, name: str, width: int, index: str, chunk: Chunk) -> str:
        """Addresses of a tile of a contiguous tensor [B, H, length, width]; `index` is [block]."""
        return f"{name}_head + ({index})[:, None].to(tl.int64) * {width} + {arange(chunk)}"

    def write_own_base(self, name: str, width: int, length: str, owner: str = "head") -> None:
        self.lines.add(f"{name}_head = {name} + {owner}.to(tl.int64) * {length} * {width}")

    def write_own_loads(
        self,
        name: str,
        width: int,
        index: str,
        chunks: Sequence[Chunk],
        limit: str | None,
    ) -> None:
        """Loads a tile of a contiguous tensor, as `write_loads`."""
        for i, chunk in enumerate(chunks):
            tests = [f"(({index})[:, None] < {limit})"] if limit is not None else []
            address = self.own_address(name, width, index, chunk)
            self.lines.add(f"{name}_{i} = " + load(address, tests + width_test(chunk), "0.0"))

    def write_own_stores(
        self,
        name: str,
        width: int,
        index: str,
        chunks: Sequence[Chunk],
        limit: str,
        value: Callable[[int], str],
    ) -> None:
        """Stores tiles of a contiguous tensor; `value` gives the text of a chunk."""
        self.write_own_base(name, width, limit)
        self.write_stores(name, width, index, chunks, limit, value)

    def write_results(
        self, name: str, width: int, chunks: Sequence[Chunk], value: Callable[[int], str]
    ) -> None:
        """Stores what the kernel has computed for its rows, as `write_own_stores`."""
        owner, index, limit = self.results
        self.write_own_base(name, width, limit, owner)
        self.write_stores(name, width, index, chunks, limit, value)

    def write_row_store(self, name: str, value: str) -> None:
        """Stores one number for each of the kernel's rows."""
        owner, index, limit = self.results
        self.lines.add(
            f"row = {index}",
            f"tl.store({name} + {owner}.to(tl.int64) * {limit} + row, {value}, mask=row < {limit})",
        )

    def write_stores(
        self,
        name: str,
        width: int,
        index: str,
        chunks: Sequence[Chunk],
        limit: str,
        value: Callable[[int], str],
    ) -> None:
        """Stores tiles of the rows `index` at an address that is known."""
        for i, chunk in enumerate(chunks):
            tests = [f"(({index})[:, None] < {limit})", *width_test(chunk)]
            address = self.own_address(name, width, index, chunk)
            self.lines.add(f"tl.store({address}, {value(i)}, mask={' & '.join(tests)})")

    def write_product(self, name: str, left: str, right: str, chunks: Sequence[Chunk]) -> None:
        """name = sum over chunks of left_i @ right_i^T."""
        for i in range(len(chunks)):
            onto = f", {name}" if i else ""
            self.lines.add(
                f"{name} = tl.dot({left}_{i}, tl.trans({right}_{i}){onto}{self.precision})"
            )

    # -- loops over tiles --------------------------------------------------------------------------

    def write_tiles(self, body: Body) -> None:
        """The loops over tiles of the other axis: full ones, then the rest with their mask."""
        lines, plan = self.lines, self.plan
        if visits_nothing(plan):
            return
        lines.blank()
        lines.origin(plan.program, plan.program.mask)
        if self.is_gathered:
            loops = write_gathered_loops(lines, self.values, plan, self.columns_first)
        elif uses_lists(plan):
            loops = write_list_loops(lines, plan, self.columns_first)
        else:
            loops = write_range_loops(lines, self.values, self.segments, self.axis, self.guard)
        for loop in loops:
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

    @property
    def axis(self) -> Axis:
        """The axis over which the kernel loops."""
        return QUERIES if self.columns_first else KEYS

    @property
    def guard(self) -> str:
        """The test without which no tile is reached: keys beyond k_len meet no query."""
        batched = self.columns_first and "k_len" in self.plan.request.per_batch
        return "start_n < n_keys" if batched else ""

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


def elements(start: str, block: str) -> str:
    """The rows or columns of a tile, [block]."""
    return f"{start} + tl.arange(0, {block})"


def arange(chunk: Chunk) -> str:
    """The elements of a chunk of a head dimension, [1, width]."""
    plus = f"{chunk.start} + " if chunk.start else ""
    return f"{plus}tl.arange(0, {chunk.width})[None, :]"


def width_test(chunk: Chunk) -> list[str]:
    """The test that an element of a chunk is there; none where all are."""
    if chunk.valid == chunk.width:
        return []
    return [f"(tl.arange(0, {chunk.width})[None, :] < {chunk.valid})"]


def load(address: str, tests: Sequence[str], other: str) -> str:
    if not tests:
        return f"tl.load({address})"
    return f"tl.load({address}, mask={' & '.join(tests)}, other={other})"
