"""The kernel for many short sequences: a program has one head of several of them, one by one.

Such a sequence is one tile (a window of an image has 49 tokens), of which little is computed: most
time would go into starting programs and into what is the same for all sequences. So a program goes
over sequences, and computes before its loop all that does not vary with b: a table of biases by
head, query and key is read once, and stays in registers.
"""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.ir.nodes import Node
from attndsl.plan.decode import windows_plan
from attndsl.plan.kernel_plan import KernelPlan

from ..expressions import hoist
from ..lines import Lines
from .forward import Forward
from .values import Values

INNER = frozenset(("b", "score", "out", "d"))  # what a value of the loop over sequences varies with


class WindowValues(Values):
    """Values of two depths: those before the loop over sequences, then those in it."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan)
        self.is_inside = False

    def place(self, node: Node) -> int:
        return super().place(node) + (len(self.order) if node.varies & INNER else 0)

    def define(self, lines: Lines, level: str, roots: Iterable[Node]) -> None:
        depth = self.order.index(level) + (len(self.order) if self.is_inside else 0)
        values = hoist([self.normal(root) for root in roots], self.place, 2 * len(self.order))
        self.printer.define(lines, values[depth])


class Windows(Forward):
    """Writes `windows`: whole results of sequences of one tile."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(windows_plan(plan), "windows")
        self.values = WindowValues(self.plan)
        # The mask of a pair is known before the loop: nothing is gained by that of a row.
        self.span = None
        self.roots = [plan.value, plan.logit, plan.program.mask]

    def add_tile_arguments(self) -> None:
        self.arguments.add("sequences", "i32", "size_B")
        self.arguments.add("together", "i32")

    def segment_nodes(self) -> list[Node]:
        return []

    def write(self) -> str:
        lines, roots = self.lines, [*self.roots, *self.row_roots]
        self._add_arguments()
        lines.add('"""One head of some short sequences."""')
        lines.add(
            "h = tl.program_id(0) % H",
            "first = tl.program_id(0) // H * together",
            "count = tl.minimum(together, sequences - first)",
            "G = H // Hk",
            "q_start = q_offset",
            "k_start = k_offset",
            "start_m = 0",
            "start_n = 0",
        )
        self.write_rows()
        self.write_columns()
        for level in self.values.order:
            self.values.define(lines, level, roots)
        lines.blank()
        with lines.block("for at in range(0, count):"):
            self._write_sequence(roots)
        return self.finish()

    def _write_sequence(self, roots: list[Node]) -> None:
        lines = self.lines
        assert isinstance(self.values, WindowValues)
        self.values.is_inside = True
        lines.add("b = first + at", "head = b * H + h")
        if "k_len" in self.plan.request.per_batch:
            lines.add("n_keys = tl.minimum(tl.maximum(tl.load(k_len + b), 0), Nk).to(tl.int32)")
        else:
            lines.add("n_keys = Nk")
        self.values.define(lines, "program", roots)
        self._write_query()
        self.values.define(lines, "row", roots)
        self.write_base("value", self.key_head)
        self._write_start()
        self._write_tile(True)
        self._write_end()
