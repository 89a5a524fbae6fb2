"""Writes what a PyTorch module has for few rows with lists of blocks: a step of decoding.

There a tile would hold a row or two. Instead one row of many heads is worked on at once, with the
columns of its blocks gathered, those of one block behind those of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attndsl.ir.nodes import is_const
from attndsl.ir.program import Routed

from ..scope import tensor_name
from .block import Block
from .routed import width_text


class FewRowsBlock(Block):
    """The loops over rows. `columns` and `there` are [batch, key heads, lists of one, 1, columns]:
    the columns of the listed blocks, and which of them exist."""

    parts_text = (
        "b0, b1, j0, j1, g0, g1 in "
        'attn_parts(size_B, size_Hk, size_G, "all", max(ROOM // max(room, 1), 1))'
    )
    chunks_text = "[(0, there.shape[-1], [(0, there.shape[-1])])]"
    products_texts = ("logits = attn_products(packed, key_columns.transpose(1, 2))",)
    values_text = "value_columns"

    @property
    def has_runs(self) -> bool:
        return False

    def write_lists(self, routed: Routed) -> None:
        """Sets what is known of the lists of the call."""
        self.lists = tensor_name(routed.lists)
        self.has_mask = True  # `there`
        self.lines.add(
            f"width = {width_text(self.lines, self.plan, routed)}  # columns of a block",
            f"lists = {self.lists}.shape[1] // max(size_Hk, 1)  # of a key head",
            f"room = lists * {self.lists}.shape[3] * min(width, size_Nk) * max(size_D, size_Dv)",
        )

    def write_shifts(self) -> None:
        """The positions of row 0 and column 0, and the end of the columns."""
        batched = self.plan.request.per_batch
        part = "[b0:b1, None, None, None, None]"
        for name in ("q", "k"):
            offset = f"{name}_offset"
            self.lines.add(f"{name}_shift = {offset}" + (part if offset in batched else ""))
        limit = f"k_len{part}.clamp(0, size_Nk)" if "k_len" in batched else "size_Nk"
        self.lines.add(f"limit = {limit}")

    def write_part_end(self) -> None:
        """The part's lists, and where the rows of its heads begin."""
        self.lines.add(
            f"listed = {self.lists}[b0:b1, j0 * lists : j1 * lists]",
            "listed = listed.unflatten(1, (j1 - j0, lists)).long()",
            "heads = torch.arange(n0 * size_G, n1 * size_G, device=query.device) * size_Nq",
        )

    @contextmanager
    def blocks(self) -> Iterator[None]:
        """The loop over rows."""
        lines = self.lines
        with lines.block("for row in range(size_Nq):"):
            lines.add(
                "places = heads + row",
                "columns, there = attn_columns("
                "listed[:, :, :, row : row + 1], width, k_shift, limit, size_Nk)",
                "key_columns, value_columns = (",
                "    attn_gathered(x, b0, j0, columns).to(ACCUMULATOR) for x in (key, value)",
                ")",
                "query_block = queries[b0:b1, j0:j1, :, row : row + 1]",
            )
            self.write_rows()
            lines.add("packed = packed.view(key_columns.shape[0], -1, size_D)")
            yield

    def positions(self, first: str, end: str, axis: str, subscript: str = "") -> str:
        """The position of the row, or those of the columns."""
        if axis == "q":
            return f"torch.arange(row, row + 1, device=query.device){subscript} + q_shift"
        return "columns + k_shift"

    def write_kept(self) -> str:
        """The text of which pairs take part."""
        if is_const(self.plan.program.mask, True):
            return "there"
        return f"({super().write_kept()}) & there"
