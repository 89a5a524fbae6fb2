"""What forward and backward share: the pairs of a tile, with each value where it can be computed.

Inside a tile: `b`, `h` are its batch and head, `q` the position of a row and `k` of a column, all
in 32 bits; `start` is its first row, `rows` their number; `first` and `count` are those of the
columns of a chunk. `line` are the scores of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from attndsl.ir.nodes import Node, index, is_const
from attndsl.plan.kernel_plan import KernelPlan

from ..expressions import hoist, unnamed
from ..scope import tensor_name
from .call import Fields
from .distances import Diagonals
from .lines import CppLines
from .values import LEVELS, Leaves, Values, guards, place_of, place_text

ROW, COLUMN = LEVELS.index("row"), LEVELS.index("column")


def row_text(node: Node, args: tuple[str, ...], plan: KernelPlan) -> str:
    """The offset of the row of a table that a dot reads; -1 where there is none."""
    return f"attn_row<{guards(plan, node)}>({place_text(node, args, len(args))})"


class Tile:
    """Writes the values of one function's tiles."""

    def __init__(self, plan: KernelPlan, fields: Fields, roots: Sequence[Node]) -> None:
        """`roots`: what pairs are computed from; those that no pair reads may be among them."""
        self.plan, self.fields = plan, fields
        self.mask = plan.program.mask
        self.has_mask = not is_const(self.mask, True)
        self.roots = tuple(roots)
        names = {("index", name): name for name in "bhqk"} | {("score", ""): "score"}
        self.values = Values(plan, Leaves(names, self._dot), is_wide=False)
        everything = (*self.roots, self.mask)
        self.diagonals = Diagonals(plan, everything)
        for node in self.diagonals.nodes:
            found = f"at_{self.diagonals.name(node)}[j]"
            text = {"bool": f"({found} != 0)", "float": found}
            kind = self.values.type_of(node)
            self.values.names[node] = text.get(node.kind, f"({kind}){found}")
        self.hoisted = hoist(everything, self._place, len(LEVELS))
        self.used = frozenset[str]().union(*(root.varies for root in everything))

    def _place(self, node: Node) -> int:
        return len(LEVELS) - 1 if node in self.values.names else place_of(node)

    def _dot(self, node: Node, args: tuple[str, ...]) -> str:
        place = row_text(node, args, self.plan)
        return f"attn_dot(query_line, {tensor_name(node.name)}, {place})"

    def write_place(self, lines: CppLines) -> None:
        """Values of the whole tile, and of its rows."""
        lines.add(
            "const int32_t b = (int32_t)batch, h = (int32_t)head;",
            "const int32_t q_first = (int32_t)(start + q_start(batch));",
            "(void)b, (void)h, (void)q_first;",
        )
        self.values = self.values.scope("tile_")
        self.values.define(lines, self.hoisted[0])
        found = self.hoisted[ROW]
        if not found:
            return
        for at, node in enumerate(found):
            lines.add(f"{self.values.type_of(node)} rows_{at}[ROWS];")
        with lines.block("for (int64_t r = 0; r < rows; ++r)"):
            self._write_row(lines, self._below(found))
            inner = self.values.scope("row_")
            inner.share(lines, found)
            for at, node in enumerate(found):
                lines.add(f"rows_{at}[r] = {inner.text(node)};")
                inner.names[node] = f"rows_{at}[r]"
        for at, node in enumerate(found):
            self.values.names[node] = f"rows_{at}[r]"

    def _write_row(self, lines: CppLines, below: Iterable[Node], reads_query: bool = False) -> None:
        """What values are computed from, in a row: `below` are all nodes without a name."""
        below = list(below)
        if index("q") in below:
            lines.add("const int32_t q = q_first + (int32_t)r;")
        if reads_query or any(node.op == "dot" for node in below):
            lines.add("const T *const query_line = query_at(batch, head, start + r);")

    def _below(self, nodes: Iterable[Node]) -> list[Node]:
        return unnamed(nodes, self.values.names)

    def write_columns(self, lines: CppLines, roots: Sequence[Node]) -> Values:
        """Arrays of what columns have for themselves; a printer that knows them."""
        values = self.values.scope("pair_")
        found = [n for n in hoist(roots, self._place, len(LEVELS))[COLUMN] if n not in values.names]
        if not found:
            return values
        for at, node in enumerate(found):
            lines.add(f"{values.type_of(node)} columns_{at}[WIDTH];")
        lines.add("INDEPENDENT")
        with lines.block("for (int64_t j = 0; j < count; ++j)"):
            lines.add("const int32_t k = k_first + (int32_t)j;")
            inner = values.scope("column_")
            inner.share(lines, found)
            for at, node in enumerate(found):
                lines.add(f"columns_{at}[j] = {inner.text(node)};")
                inner.names[node] = f"columns_{at}[j]"
        for at, node in enumerate(found):
            values.names[node] = f"columns_{at}[j]"
        return values

    @contextmanager
    def pairs(
        self,
        lines: CppLines,
        roots: Sequence[Node],
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        pragma: str = "INDEPENDENT",
        reads_query: bool = False,
    ) -> Iterator[Values]:
        """The loop over the pairs of a chunk: yields a printer inside of it.

        roots   what the body reads; `before` and `after` are statements of a row
        pragma  what the compiler is told of the loop
        reads_query  whether the body reads `query_line`, the row's query
        """
        with lines.block(""):
            values = self.write_columns(lines, roots)
            with lines.block("for (int64_t r = 0; r < rows; ++r)"):
                lines.add(*before)
                below = self._below(roots)
                self._write_row(lines, below, reads_query)
                for at, node in enumerate(self.hoisted[ROW]):
                    if values.names.get(node) == f"rows_{at}[r]":
                        lines.add(f"const {values.type_of(node)} row_{at} = rows_{at}[r];")
                        values.names[node] = f"row_{at}"
                for node in self.diagonals.nodes:
                    name = self.diagonals.name(node)
                    lines.add(
                        f"const auto *const at_{name} = {name} + batch * {name}_b + "
                        f"head * {name}_h + (size_Nq - 1 - start - r) + first;"
                    )
                if pragma:
                    lines.add(pragma)
                with lines.block("for (int64_t j = 0; j < count; ++j)"):
                    if index("k") in below:
                        lines.add("const int32_t k = k_first + (int32_t)j;")
                    yield values
                lines.add(*after)
