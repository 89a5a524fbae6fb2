"""The kernels that own rows and loop over their lists: results are merged, gradients summed.

Each is written twice. Tiles of rows, of which one slot comes after the other, keep a device busy
where there are many rows. Where there are few, a program has one row, and some slots at once: there
are more programs, and none waits for long chains of loads.
"""

from __future__ import annotations

from collections.abc import Callable

from attndsl.ir.nodes import Node, find
from attndsl.plan.kernel_plan import Config, KernelPlan

from .forward import Forward
from .kernel import NEGATIVE_INFINITY, Kernel, arange, load, width_test
from .lists import visits_nothing
from .routed import PLACES

WIDE = 64  # elements of the head dimension; with more of them a tile has fewer rows


def slot_config(width: int) -> Config:
    """A tile of rows of which each slot's results are loaded one after the other."""
    return Config(16 if width > WIDE else 32, 1, 4, 1)


def spread_config(width: int) -> Config:
    """A row of which the results of BLOCK_N slots are loaded at once."""
    many = slot_config(width)
    return Config(1, many.block_m, many.num_warps, many.num_stages)


def few_name(name: str, is_spread: bool) -> str:
    return f"{name}_few" if is_spread else name


def summed(text: str, is_spread: bool) -> str:
    """The text of a sum over slots, if there are some at once."""
    return f"tl.sum({text}, 1)" if is_spread else text


class Slots(Kernel):
    """A kernel that owns a tile of rows and loops over the slots of their lists.

    is_spread  whether it takes some slots at once: then entries are [rows, slots], not [rows]
    """

    is_spread: bool

    @property
    def row_elements(self) -> str:
        return PLACES

    def segment_nodes(self) -> list[Node]:
        return []

    def add_slot_arguments(self) -> None:
        self.arguments.add_own("entry_blocks", "int32")
        for name in ("first_head", "first_row", "n_rows", "slots", "entries", "sharing"):
            self.arguments.add(name, "i32")
        self.arguments.add("n_blocks", "i32")

    def write_head(self) -> None:
        """The head and the rows of the program; those of the launch count from its first one."""
        self.lines.add(
            "tiles = tl.cdiv(n_rows, BLOCK_M)",
            "local_head = tl.program_id(0) // tiles",
            "head = first_head + local_head",
            "local_rows = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)",
            f"{PLACES} = tl.where(local_rows < n_rows, first_row + local_rows, Nq)",
            "list_blocks = entry_blocks + (local_head // sharing).to(tl.int64) * entries",
        )

    def write_slots(self, body: Callable[[], None]) -> None:
        """The loop: `entry_at` are the numbers of entries of all heads, `is_entry` whether they are
        there. Nobody has written what belongs to others."""
        lines = self.lines
        lines.blank()
        with lines.block("for first_slot in range(0, slots, BLOCK_N):"):
            lines.add(
                *self._slot_lines(),
                "number = tl.load(list_blocks + entry, mask=is_slot, other=n_blocks)",
                "is_entry = number < n_blocks",
                "entry_at = local_head.to(tl.int64) * entries + entry",
            )
            body()
        lines.blank()

    def _slot_lines(self) -> list[str]:
        if not self.is_spread:
            return ["entry = local_rows * slots + first_slot", "is_slot = local_rows < n_rows"]
        return [
            "slot = first_slot + tl.arange(0, BLOCK_N)[None, :]",
            "entry = local_rows[:, None] * slots + slot",
            "is_slot = (local_rows < n_rows)[:, None] & (slot < slots)",
        ]

    def write_entry_loads(self, name: str, width: int) -> None:
        """Loads part_0, part_1, ... of a tensor with a row for each entry."""
        deep, flat = ("[:, :, None]", "[None, :, :]") if self.is_spread else ("[:, None]", "")
        chunks = self.plan.value_chunks if name == "entry_out" else self.plan.query_chunks
        for i, chunk in enumerate(chunks):
            address = f"{name} + entry_at{deep} * {width} + ({arange(chunk)}){flat}"
            tests = [f"is_entry{deep}", *(f"{test}{flat}" for test in width_test(chunk))]
            self.lines.add(f"part_{i} = {load(address, tests, '0.0')}")


class Merge(Slots, Forward):
    """Writes `routed_merge`, or `name`: the results of a tile of rows from its parts."""

    def __init__(self, plan: KernelPlan, is_spread: bool = False, name: str = "") -> None:
        width = plan.request.value_dim
        config = spread_config(width) if is_spread else slot_config(width)
        super().__init__(plan, name or few_name("routed_merge", is_spread), config)
        self.is_spread = is_spread
        self.is_whole = True
        self.has_base = not visits_nothing(plan)

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        has_dot = any(find(node, "dot") for node in self.row_roots)
        if has_dot:
            arguments.add_input("query")
        self._add_results()
        for name in ("base", "entry") if self.has_base else ("entry",):
            arguments.add_own(f"{name}_out", "float32")
            if plan.form != "elementwise":
                arguments.add_own(f"{name}_stat", "float32")
        self.add_slot_arguments()
        if has_dot:
            arguments.add_strides("query")
        arguments.add_call()
        arguments.add_leaves(self.row_roots)
        lines.add('"""The results of a tile of rows from those of its parts."""')
        self.write_place(self.row_roots)
        self.write_rows()
        if has_dot:
            self.write_base("query", "h")
            lines.add("query_rows = query_head + rows * query_n")
        self.values.define(lines, "row", self.row_roots)
        self._write_start()
        if self.has_base:
            self._write_base_part()
        self.write_slots(self._write_slot)
        self._write_end()
        return self.finish()

    def _write_base_part(self) -> None:
        lines, plan = self.lines, self.plan
        if plan.form != "elementwise":
            lines.add(
                "base_known = tl.load(base_stat + head.to(tl.int64) * Nq + row_places, "
                f"mask=row_places < Nq, other={self._no_stat})"
            )
        width = plan.request.value_dim
        self.write_own_base("base_out", width, "Nq")
        self.write_own_loads("base_out", width, PLACES, plan.value_chunks, "Nq")
        for i in range(len(plan.value_chunks)):
            lines.add(f"base_part_{i} = base_out_{i}")
        self._write_part("base_", is_spread=False)

    def _write_slot(self) -> None:
        plan = self.plan
        if plan.form != "elementwise":
            self.lines.add(
                f"known = tl.load(entry_stat + entry_at, mask=is_entry, other={self._no_stat})"
            )
        self.write_entry_loads("entry_out", plan.request.value_dim)
        self._write_part("", self.is_spread)

    @property
    def _no_stat(self) -> str:
        return NEGATIVE_INFINITY if self.plan.form == "softmax" else "0.0"

    def _write_part(self, of: str, is_spread: bool) -> None:
        """Adds the results part_0, ... and the statistics `known` of one part of each row, or of
        some; `of` stands before their names."""
        lines, plan = self.lines, self.plan
        chunks = range(len(plan.value_chunks))
        known, weight = f"{of}known", f"{of}weight"
        if plan.form == "normalize":
            lines.add(f"total += {summed(known, is_spread)}")
        if plan.form != "softmax":
            lines.add(*(f"sum_{i} += {summed(f'{of}part_{i}', is_spread)}" for i in chunks))
            return
        greatest = f"tl.max({known}, 1)" if is_spread else known
        lines.add(
            f"{known} = {known} * LOG2E",
            f"greatest = tl.maximum(most, {greatest})",
            f"base = tl.where(greatest == {NEGATIVE_INFINITY}, 0.0, greatest)",
            f"{weight} = tl.exp2({known} - base{'[:, None]' if is_spread else ''})",
            "rescale = tl.exp2(most - base)",
            f"total = total * rescale + {summed(weight, is_spread)}",
            "most = greatest",
        )
        deep = "[:, :, None]" if is_spread else "[:, None]"
        for i in chunks:
            part = summed(f"{of}part_{i} * {weight}{deep}", is_spread)
            lines.add(f"sum_{i} = sum_{i} * rescale[:, None] + {part}")


class AddQuery(Slots):
    """Writes `routed_add_query`: adds what the entries of rows have to the gradient of query."""

    def __init__(self, plan: KernelPlan, is_spread: bool = False) -> None:
        width = plan.request.head_dim
        config = spread_config(width) if is_spread else slot_config(width)
        super().__init__(plan, few_name("routed_add_query", is_spread), config)
        self.is_spread = is_spread

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        width, chunks = plan.request.head_dim, plan.query_chunks
        arguments.add_own("grad_query", "float32")
        arguments.add_own("entry_grad_query", "float32")
        self.add_slot_arguments()
        arguments.add("Nq", "i32", "size_Nq")
        lines.add('"""Adds the gradients of the entries of a tile of rows, in their order."""')
        self.write_head()
        self.write_own_base("grad_query", width, "Nq")
        self.write_own_loads("grad_query", width, PLACES, chunks, "Nq")
        self.write_slots(self._write_slot)
        self.write_stores("grad_query", width, PLACES, chunks, "Nq", lambda i: f"grad_query_{i}")
        return self.finish()

    def _write_slot(self) -> None:
        self.write_entry_loads("entry_grad_query", self.plan.request.head_dim)
        for i in range(len(self.plan.query_chunks)):
            self.lines.add(f"grad_query_{i} += {summed(f'part_{i}', self.is_spread)}")
