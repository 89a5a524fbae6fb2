"""The backward kernel that owns a tile of keys: gradients of keys and of values."""

from __future__ import annotations

from attndsl.ir.nodes import find
from attndsl.plan.kernel_plan import Config, KernelPlan

from .adjoint import Adjoint, numbered_leaves
from .kernel import load, width_test
from .routed import is_whole


class BackwardKeyValue(Adjoint):
    """Writes `backward_dkv`: one query head of a tile of keys, or all of a group that shares tiles;
    adjoints of column-level leaves."""

    also = ""  # what else the kernel makes, for its docstring

    def __init__(
        self, plan: KernelPlan, name: str = "backward_dkv", config: Config | None = None
    ) -> None:
        leaves = numbered_leaves(plan, "column")
        super().__init__(plan, name, config or plan.backward_dkv, leaves, columns_first=True)

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        self.add_input_arguments()
        dtype = plan.request.dtype if is_whole(plan) else "float32"
        arguments.add_own("grad_key", dtype)
        arguments.add_own("grad_value", dtype)
        for item in self.leaves:
            arguments.add_own(f"column_adjoint_{item.number}", "float32")
        self.add_other_arguments()
        heads = "the query heads of a group" if plan.packs_heads else "one query head"
        lines.add(f'"""Gradients of a tile of keys and values from {heads}{self.also}."""')
        self._write_inputs()
        for i, chunk in enumerate(plan.query_chunks):
            lines.add(f"grad_key_{i} = tl.zeros([BLOCK_N, {chunk.width}], tl.float32)")
        for i, chunk in enumerate(plan.value_chunks):
            lines.add(f"grad_value_{i} = tl.zeros([BLOCK_N, {chunk.width}], tl.float32)")
        for item in self.leaves:
            lines.add(f"column_sum_{item.number} = tl.zeros([BLOCK_N], tl.float32)")
        self.write_tiles(self._write_tile)
        self._write_end()
        return self.finish()

    def _write_inputs(self) -> None:
        lines, plan = self.lines, self.plan
        self.write_place(self.roots)
        self.write_columns()
        for name, chunks in (("key", plan.query_chunks), ("value", plan.value_chunks)):
            if name == "value" or self.has_score:
                self.write_base(name, self.key_head)
                self.write_loads(name, self.column_elements, chunks, self.column_limit)
        self.values.define(lines, "column", self.roots)
        self.write_row_descriptors()
        if not plan.packs_heads:
            self.write_row_bases()

    def write_row_bases(self) -> None:
        self.write_query_base()
        self.write_row_base("grad_raw", self.plan.request.value_dim)

    def _write_tile(self, partial: bool) -> None:
        lines, plan = self.lines, self.plan
        limit = "Nq" if partial else None
        self.write_rows(partial)
        if plan.packs_heads:
            self.write_row_bases()
        roots = self.tile_roots(partial)
        if any(find(node, "dot") for node in roots):
            self.write_query_rows()
        if self.has_score:
            self.write_loads("query", self.row_elements, plan.query_chunks, limit)
        self.write_own_loads(
            "grad_raw", plan.request.value_dim, self.row_elements, plan.value_chunks, limit
        )
        self.write_row_statistics(partial)
        self.values.define(lines, "row", roots)
        keep = self.write_weights(partial)
        for i in range(len(plan.value_chunks)):
            lines.add(
                f"grad_value_{i} = tl.dot("
                f"weight.to(grad_raw_{i}.dtype), grad_raw_{i}, grad_value_{i}{self.precision})"
            )
        if not self.has_score_adjoint and not self.leaves:
            return
        # Loaded no earlier than it is used: it takes as many registers as rows of the tile.
        self.write_delta(partial)
        self.write_pair_adjoint(keep)
        self.write_pair_results(partial, keep)

    def write_pair_results(self, partial: bool, keep: str) -> None:
        """What the adjoints of a tile's pairs add to."""
        lines, plan = self.lines, self.plan
        for item in self.leaves:
            lines.origin(plan.program, item.leaf.node)
            text = self.leaf_adjoint(item.leaf.partial, keep)
            lines.add(f"column_sum_{item.number} += tl.sum({text}, 1)")
        self.write_score_adjoint("key", "query", keep)

    def _write_end(self) -> None:
        if self.is_gathered:
            self._write_sums()
            return
        lines, plan = self.lines, self.plan
        lines.comment("Columns beyond the last key took part in full tiles: they are 0.")
        lines.add(f"column = {self.column_elements}", "there = (column < n_keys)[:, None]")

        for name, width, chunks, scaled in (
            ("grad_key", plan.request.head_dim, plan.query_chunks, " * scale"),
            ("grad_value", plan.request.value_dim, plan.value_chunks, ""),
        ):
            self.write_own_stores(
                name, width, self.column_elements, chunks, "Nk", ChunkText(name, scaled)
            )
        for item in self.leaves:
            lines.add(
                f"tl.store(column_adjoint_{item.number} + head.to(tl.int64) * Nk + column, "
                f"tl.where(column < n_keys, column_sum_{item.number}, 0.0), mask=column < Nk)"
            )

    def _write_sums(self) -> None:
        """Adds to what the kernel of all other pairs has stored: a column has one program. What the
        heads that share tiles have together goes to the first of them."""
        lines, plan = self.lines, self.plan
        lines.add(f"column = {self.column_elements}")
        for name, width, chunks, scaled in (
            ("grad_key", plan.request.head_dim, plan.query_chunks, " * scale"),
            ("grad_value", plan.request.value_dim, plan.value_chunks, ""),
        ):
            self.write_own_base(name, width, "Nk")
            limit = self.column_limit
            for i, chunk in enumerate(chunks):
                tests = [f"(column[:, None] < {limit})", *width_test(chunk)]
                lines.add(
                    f"{name}_at = {self.own_address(name, width, 'column', chunk)}",
                    f"known = {load(f'{name}_at', tests, '0.0')}",
                    f"tl.store({name}_at, known + {name}_{i}{scaled}, mask={' & '.join(tests)})",
                )
        for item in self.leaves:
            lines.add(
                f"sum_at = column_adjoint_{item.number} + head.to(tl.int64) * Nk + column",
                f"known = tl.load(sum_at, mask=column < {self.column_limit}, other=0.0)",
                f"known += column_sum_{item.number}",
                f"tl.store(sum_at, known, mask=column < {self.column_limit})",
            )


class ChunkText:
    """The text of a chunk of a gradient, cut to the keys that are there."""

    def __init__(self, name: str, scaled: str) -> None:
        self.name, self.scaled = name, scaled

    def __call__(self, i: int) -> str:
        name = self.name
        return f"tl.where(there, {name}_{i}{self.scaled}, 0.0).to({name}.dtype.element_ty)"
