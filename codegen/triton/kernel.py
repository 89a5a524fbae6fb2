"""What the kernels share: their place in the grid, loads of tiles, and the loops over tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from attndsl.ir.nodes import TRUE, Node, is_const
from attndsl.plan.kernel_plan import Chunk, Config, KernelPlan, Segment

from ..lines import Lines
from .arguments import Arguments, elements_per_alignment
from .values import Values, level_of, uses_score

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
        self.arguments = Arguments(plan, name, config)
        self.columns_first = columns_first
        self.has_score = uses_score(plan.value, plan.logit)
        self.segments = plan.queries if columns_first else plan.keys
        self.has_full = any(has_full_part(segment) for segment in self.segments)

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
        return [n for s in self.segments for n in (s.lo, s.hi, s.full_lo, s.full_hi)]

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
        block = "BLOCK_N" if self.columns_first else "BLOCK_M"
        length, start = ("Nk", "start_n") if self.columns_first else ("Nq", "start_m")
        lines.add(f"tiles = tl.cdiv({length}, {block})", "head = tl.program_id(0) // tiles")
        if self.columns_first:
            lines.add(f"{start} = tl.program_id(0) % tiles * {block}")
        else:
            lines.comment("The last tile comes first: under a causal mask it has the most keys.")
            lines.add(f"{start} = (tiles - 1 - tl.program_id(0) % tiles) * {block}")
        lines.add("b = head // H", "h = head % H", "G = H // Hk")
        for letter in ("q", "k"):
            name = f"{letter}_offset"
            batched = name in self.plan.request.per_batch
            source = f"tl.load({name} + b).to(tl.int32)" if batched else name
            lines.add(f"{letter}_start = {source}")
        if "k_len" in self.plan.request.per_batch:
            lines.add("n_keys = tl.minimum(tl.maximum(tl.load(k_len + b), 0), Nk).to(tl.int32)")
        else:
            lines.add("n_keys = Nk")
        self._write_tile_bounds()
        self.values.define(lines, "program", [*roots, *self.segment_nodes()])

    def _write_tile_bounds(self) -> None:
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

    def write_rows(self, start: str = "start_m") -> None:
        """Indices and positions of the tile's queries."""
        self.lines.add(f"rows = {start} + tl.arange(0, BLOCK_M){self.row}", "q = rows + q_start")

    def write_columns(self, start: str = "start_n") -> None:
        """Indices and positions of the tile's keys."""
        self.lines.add(
            f"columns = {start} + tl.arange(0, BLOCK_N){self.column}", "k = columns + k_start"
        )

    # -- loads ---------------------------------------------------------------------------------

    def write_base(self, name: str, head: str) -> None:
        """Strides in elements, and the address of one head of query, key or value."""
        unit = elements_per_alignment(self.plan)
        times = f" * {unit}" if unit > 1 else ""
        self.lines.add(
            f"{name}_n = {name}_stride_n{times}",
            f"{name}_head = {name} + (b * {name}_stride_b + {head} * {name}_stride_h){times}",
        )

    def write_loads(
        self, name: str, start: str, chunks: Sequence[Chunk], limit: str | None, block: str
    ) -> None:
        """Loads a tile [block, width] of query, key or value for each chunk; beyond `limit` rows it
        is 0 (None: no test)."""
        # Addresses are made where they are used: kept over a loop they would fill registers.
        stride = "" if self.plan.request.unit_stride else f" * {name}_stride_d"
        index = f"({start} + tl.arange(0, {block}))[:, None]"
        for i, chunk in enumerate(chunks):
            tests = [f"({index} < {limit})"] if limit is not None else []
            element = f"({arange(chunk)}){stride}" if stride else arange(chunk)
            address = f"{name}_head + {index} * {name}_n + {element}"
            self.lines.add(f"{name}_{i} = " + load(address, tests + width_test(chunk), "0.0"))

    def own_address(self, name: str, width: int, start: str, block: str, chunk: Chunk) -> str:
        """Addresses of a tile of a contiguous tensor [B, H, length, width]."""
        index = f"({start} + tl.arange(0, {block}))[:, None]"
        return f"{name}_head + {index}.to(tl.int64) * {width} + {arange(chunk)}"

    def write_own_base(self, name: str, width: int, length: str) -> None:
        self.lines.add(f"{name}_head = {name} + head.to(tl.int64) * {length} * {width}")

    def write_own_loads(
        self,
        name: str,
        width: int,
        start: str,
        chunks: Sequence[Chunk],
        limit: str | None,
        block: str,
    ) -> None:
        """Loads a tile of a contiguous tensor, as `write_loads`."""
        for i, chunk in enumerate(chunks):
            index = f"({start} + tl.arange(0, {block}))[:, None]"
            tests = [f"({index} < {limit})"] if limit is not None else []
            address = self.own_address(name, width, start, block, chunk)
            self.lines.add(f"{name}_{i} = " + load(address, tests + width_test(chunk), "0.0"))

    def write_own_stores(
        self,
        name: str,
        width: int,
        start: str,
        chunks: Sequence[Chunk],
        limit: str,
        block: str,
        value: Callable[[int], str],
    ) -> None:
        """Stores tiles of a contiguous tensor; `value` gives the text of a chunk."""
        self.write_own_base(name, width, limit)
        for i, chunk in enumerate(chunks):
            tests = [f"(({start} + tl.arange(0, {block}))[:, None] < {limit})", *width_test(chunk)]
            address = self.own_address(name, width, start, block, chunk)
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
        lines = self.lines
        if not self.segments:
            return
        offset, length, block = ("k_start", "n_keys", "BLOCK_N")
        if self.columns_first:
            offset, length, block = ("q_start", "Nq", "BLOCK_M")
        lines.blank()
        over = "queries" if self.columns_first else "keys"
        lines.comment(
            f"Tiles of {over}: some pair takes part in those of [first, last), every pair in those",
            "of [full_first, full_last).",
        )
        lines.origin(self.plan.program, self.plan.program.mask)
        for at, segment in enumerate(self.segments):
            self._write_segment(at, segment, offset, length)
        self._write_order()
        for at in range(len(self.segments)):
            self._write_tile_range(at, block)
        if self.has_full:
            with self._loop("full", self._full_parts()):
                body(False)
        with self._loop("partial", self._partial_parts()):
            body(True)

    def _write_segment(self, at: int, segment: Segment, offset: str, length: str) -> None:
        ends = {"lo": segment.lo, "hi": segment.hi}
        if self.has_full:
            ends |= {"full_lo": segment.full_lo, "full_hi": segment.full_hi}
        texts = self.values.write(self.lines, *ends.values())
        for name, text in zip(ends, texts, strict=True):
            self.lines.add(f"{name}_{at} = attn_clip({text}, {offset}, {length})")
        if self.columns_first and "k_len" in self.plan.request.per_batch:
            self.lines.comment("Keys beyond k_len meet no query.")
            self.lines.add(f"hi_{at} = tl.where(start_n < n_keys, hi_{at}, 0)")

    def _write_order(self) -> None:
        """Sorts several segments by their first element, so that none visits a tile again."""
        count = len(self.segments)
        for end in range(count - 1, 0, -1):
            for at in range(end):
                a, b = at, at + 1
                self.lines.add(f"swap = lo_{b} < lo_{a}")
                for name in ("lo", "hi", "full_lo", "full_hi")[: 4 if self.has_full else 2]:
                    x, y = f"{name}_{a}", f"{name}_{b}"
                    self.lines.add(f"{x}, {y} = tl.where(swap, {y}, {x}), tl.where(swap, {x}, {y})")

    def _write_tile_range(self, at: int, block: str) -> None:
        lines = self.lines
        if at == 0:
            lines.add(f"first_{at} = lo_{at} // {block}")
        else:
            lines.add(f"first_{at} = tl.maximum(lo_{at} // {block}, last_{at - 1})")
        lines.add(
            f"last_{at} = tl.where(lo_{at} < hi_{at}, tl.cdiv(hi_{at}, {block}), 0)",
            f"last_{at} = tl.maximum(last_{at}, first_{at})",
        )
        if self.has_full:
            lines.add(
                f"full_first_{at} = tl.maximum(tl.cdiv(full_lo_{at}, {block}), first_{at})",
                f"full_first_{at} = tl.minimum(full_first_{at}, last_{at})",
                f"full_last_{at} = tl.maximum(full_hi_{at} // {block}, full_first_{at})",
                f"full_last_{at} = tl.minimum(full_last_{at}, last_{at})",
            )

    def _full_parts(self) -> list[tuple[str, str]]:
        return [(f"full_first_{at}", f"full_last_{at}") for at in range(len(self.segments))]

    def _partial_parts(self) -> list[tuple[str, str]]:
        parts = []
        for at in range(len(self.segments)):
            if self.has_full:
                parts.append((f"first_{at}", f"full_first_{at}"))
                parts.append((f"full_last_{at}", f"last_{at}"))
            else:
                parts.append((f"first_{at}", f"last_{at}"))
        return parts

    @contextmanager
    def _loop(self, name: str, parts: list[tuple[str, str]]) -> Iterator[None]:
        """One loop over the tiles of several ranges, numbered in sequence."""
        lines, block = self.lines, "BLOCK_M" if self.columns_first else "BLOCK_N"
        start = "start_m" if self.columns_first else "start_n"
        lines.blank()
        first, last = parts[0]
        header, tile = f"for tile in range({first}, {last}):", ""
        if len(parts) > 1:
            for at, (first, last) in enumerate(parts):
                before = f"{name}_{at - 1} + " if at else ""
                lines.add(f"{name}_{at} = {before}{last} - {first}")
            header, tile = f"for step in range(0, {name}_{len(parts) - 1}):", numbered(name, parts)
        outer = self.values
        with lines.block(header):
            if tile:
                lines.add(f"tile = {tile}")
            lines.add(f"{start} = tile * {block}")
            self.values = outer.inner()
            yield
            self.values = outer
        lines.blank()

    def spread(self, node: Node, text: str) -> str:
        """The text of a value, an atom, in the shape of a tile whatever the node varies with."""
        if level_of(node) == "pair":
            return f"({text})"
        if is_const(node):
            return f"tl.full([{self.shape}], {text}, tl.float32)"
        return f"(tl.zeros([{self.shape}], tl.float32) + {text})"

    def mask_tests(self, partial: bool, always_rows: bool = False) -> list[str]:
        """Tests that a pair takes part, by bounds and mask; none in a full tile."""
        tests = []
        if partial and not self.columns_first:
            tests.append("(columns < n_keys)")
        if self.columns_first and partial:
            tests.append("(rows < Nq)")
        if always_rows:
            tests.append("(rows < Nq)")
        mask = self.plan.program.mask
        if partial and mask is not TRUE:
            self.lines.origin(self.plan.program, mask)
            (text,) = self.values.write(self.lines, mask)
            tests.append(f"({text})")
        return tests


def numbered(name: str, parts: list[tuple[str, str]]) -> str:
    """The tile of a step, where the ranges come one after the other.

    >>> numbered("part", [("a", "b"), ("c", "d")])
    'tl.where(step < part_0, a + step, c + step - part_0)'
    """
    text = f"{parts[-1][0]} + step - {name}_{len(parts) - 2}"
    for at in range(len(parts) - 2, -1, -1):
        shift = f" - {name}_{at - 1}" if at else ""
        text = f"tl.where(step < {name}_{at}, {parts[at][0]} + step{shift}, {text})"
    return text


def has_full_part(segment: Segment) -> bool:
    """Whether any tile may be full: an inner part that is empty by its constants has none."""
    lo, hi = segment.full_lo, segment.full_hi
    return not (is_const(lo) and is_const(hi) and lo.value >= hi.value)


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
