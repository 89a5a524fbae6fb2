"""Writes what a PyTorch module has for the pairs that lists of blocks add.

Work goes from blocks to rows: of every list and every block the rows that hold it are gathered, and
attend the block's columns together. A row meets a block once, so that what a tile adds to its rows
can be written back by index; keys and values are slices. `run_routes` finds the tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attndsl.analysis.tiles import classify
from attndsl.ir.nodes import find
from attndsl.ir.program import Routed
from attndsl.plan.kernel_plan import KernelPlan, TileFacts

from ..host import write_arguments
from ..lines import Lines
from ..scope import Plainness, scope_printer, tensor_name
from .block import Block
from .spans import ARGUMENTS, write_no_dot


def write_routes(lines: Lines, plan: KernelPlan) -> None:
    """The function that returns [((b0, b1, j0, j1, g0, g1), tiles), ...]: the heads of every list,
    and of each tile its rows and its chunks of columns (first, end, ranges that need the mask)."""
    assert plan.program.routed is not None
    lines.add("@torch.no_grad()")
    with lines.block(f"def run_routes(query, key, value, {ARGUMENTS}):"):
        lines.add(
            '"""Heads that share a list, and the tiles that the lists of '
            f'`{plan.program.name}` add."""'
        )
        write_arguments(lines, plan)
        with lines.block("if min(size_B, size_H, size_Nq, size_Nk) == 0:"):
            lines.add("return []")
        write_pieces(lines, plan, plan.program.routed)
        write_piece_facts(lines, plan)
        lines.add(
            "kept = (possible & (first < end)).nonzero().squeeze(1)",
            "place, low, high = place[kept], low[kept], high[kept]",
            "listed, first, end, certain = listed[kept], first[kept], end[kept], certain[kept]",
            "columns = max(ROOM // (ROWS * heads * LEAST_COLUMNS), 1) * LEAST_COLUMNS",
            "most = min(MOST_GATHERED, ROOM // 4 // min(columns, width)) // (ROWS * heads)",
            "begins, high = attn_joined(place, low, high, certain, max(most, 1))",
            "listed, first, end = listed[begins], first[begins], end[begins]",
            "tiles = (listed, low[begins], high, first, end, certain[begins])",
            "tiles = attn_tiles(entries, size_Nq, columns, tiles)",
            "return [",
        )
        with lines.indented():
            lines.add(
                "(attn_list_part(at, size_H // heads, size_G, heads), found)",
                "for at, found in tiles.items()",
            )
        lines.add("]")


def write_pieces(lines: Lines, plan: KernelPlan, routed: Routed) -> None:
    """Sets the pieces: `listed` (the list), `low` and `high` (entries), `first` and `end` (columns,
    end <= first where there are none), and `b`."""
    lists = tensor_name(routed.lists)
    lines.add(
        f"width = {width_text(lines, plan, routed)}  # columns of a block",
        f"heads = size_H // {lists}.shape[1]  # of a list",
        "blocks = (size_Nk + width - 2) // width + 1  # as many as any k_offset can need",
        f"entries, edges = attn_entries({lists}, blocks)",
        "place, low, high = attn_pieces(edges)",
        "listed = place // blocks",
        f"b = listed // {lists}.shape[1]",
    )
    batched = plan.request.per_batch
    for name in ("q", "k"):
        offset = f"{name}_offset"
        lines.add(f"{name}_shift = {offset}" + ("[b]" if offset in batched else ""))
    lines.add(
        "first = place % blocks * width - k_shift % width",
        "end = first + width",
        "first = first.clamp(min=0)",
        "end = end.minimum(k_len.clamp(0, size_Nk)[b])"
        if "k_len" in batched
        else "end = end.clamp(max=size_Nk)",
    )


def write_piece_facts(lines: Lines, plan: KernelPlan) -> None:
    """Sets `possible` and `certain` of the pieces."""
    assert plan.routed is not None
    facts = facts_of(plan.routed)
    nodes = (facts.possible, facts.certain)
    varies = frozenset[str]().union(*(node.varies for node in nodes))
    if "h" in varies:
        lines.add(
            "h = listed % (size_H // heads) * heads",
            "h = h + torch.arange(heads, device=query.device)[:, None]",
        )
    lines.add(
        "q_lo = entries[low] - listed * size_Nq + q_shift",
        "q_hi = entries[high - 1] - listed * size_Nq + q_shift",
        "k_lo, k_hi = first + k_shift, end - 1 + k_shift",
    )
    leaves = {("bound", name): name for name in ("q_lo", "q_hi", "k_lo", "k_hi")}
    leaves |= {("index", name): name for name in "bh"}
    lines.origin(plan.program, plan.routed.program.mask)
    printer = scope_printer(plan.routed, leaves, write_no_dot, Plainness(), "fact_")
    possible, certain = printer.write(lines, *nodes)
    lines.add(
        f"possible = attn_fact({possible}, place, False)",
        f"certain = attn_fact({certain}, place, True)",
    )


def facts_of(plan: KernelPlan) -> TileFacts:
    """Facts over the ends of a piece alone: its rows lie apart, so that summaries of blocks of rows
    say nothing about them."""
    if any(find(fact, "summary") for fact in (plan.tile.possible, plan.tile.certain)):
        return classify(plan.program.mask)
    return plan.tile


def width_text(lines: Lines, plan: KernelPlan, routed: Routed) -> str:
    """The columns of a block, as the text of an int."""
    printer = scope_printer(plan, {}, write_no_dot, Plainness(), "width_")
    (text,) = printer.write(lines, routed.columns)
    return f"int({text})"


def write_flat(lines: Lines, *names: str) -> None:
    """Sets <name>_rows, the array <name> [B, H, Nq, ..] or [B, Hk, G, Nq, ..] with its rows on one
    axis; a view where it is contiguous."""
    for name in names:
        lines.add(f"{name}_rows = {name}.flatten(0, {'-1' if name == 'stat' else '-2'})")


class RoutedBlock(Block):
    """The loops over the tiles that lists add: rows are gathered, columns are runs.

    Arrays whose rows a tile reads or adds to have all their rows on one axis (`write_flat`): there
    the tile's are at `places`, those of one head behind those of another.
    """

    parts_text = f"(b0, b1, j0, j1, g0, g1), tiles in run_routes(query, key, value, {ARGUMENTS})"
    chunks_text = "chunks"
    products_texts = ("logits = attn_products(packed, keys[n0:n1, first:end].transpose(1, 2))",)

    @property
    def has_runs(self) -> bool:
        return False

    def write_part_end(self) -> None:
        """Which of all heads those of the part are."""
        self.lines.add("heads = torch.arange(g0, g1, device=query.device)[:, None] + n0 * size_G")

    @contextmanager
    def blocks(self) -> Iterator[None]:
        """The loop over tiles."""
        lines = self.lines
        with lines.block("for rows, chunks in tiles:"):
            lines.add(
                "here = (slice(b0, b1), slice(j0, j1), slice(g0, g1), rows)",
                "places = (heads * size_Nq + rows).view(-1)",
                "query_block = queries_rows.index_select(0, places)",
                "query_block = query_block.view(1, 1, g1 - g0, len(rows), size_D)",
            )
            self.write_rows()
            yield

    def positions(self, first: str, end: str, axis: str, subscript: str = "") -> str:
        """The positions of the tile's rows ("q"), or of a range of columns ("k")."""
        if axis == "q":
            return f"rows{subscript} + q_shift"
        return super().positions(first, end, axis, subscript)

    def packed_rows(self, name: str) -> str:
        """The text of the tile's rows of an array, packed like its queries."""
        return f"{name}_rows.index_select(0, places)[None]"

    def add_rows(self, name: str, text: str) -> None:
        """Adds elements of the tile's rows to rows of an array [.., Nq, D]."""
        self.lines.add(f"{name}_rows.index_add_(0, places, {text}.view(-1, size_D))")
