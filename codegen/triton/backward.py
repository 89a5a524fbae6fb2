"""The backward kernels that own a tile of queries: delta, gradients of queries and of tables."""

from __future__ import annotations

from attndsl.ir.nodes import find
from attndsl.plan.kernel_plan import Config, KernelPlan

from .adjoint import Adjoint, NumberedLeaf, numbered_leaves
from .descriptors import pads_rows, rows_between_heads
from .kernel import NEGATIVE_INFINITY, Kernel, arange, width_test
from .routed import is_whole


class Delta(Kernel):
    """Writes `backward_delta`: sums of grad_raw * raw over a row, less the gradient of lse; and the
    row's statistic as the other kernels want it."""

    def __init__(self, plan: KernelPlan) -> None:
        config = plan.forward
        super().__init__(plan, "backward_delta", Config(config.block_m, config.block_n, 4, 1))

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        arguments.add_own("grad_raw", plan.request.dtype)
        arguments.add_own("raw", plan.request.dtype)
        has_lse = plan.form == "softmax"
        if has_lse:
            arguments.add_own("grad_lse", "float32")
            arguments.add("lse_rows", "i64")
        arguments.add_own("stat", "float32")
        arguments.add_own("delta", "float32")
        arguments.add_own("base", "float32")
        arguments.add("rows", "i64", "size_B * size_H * size_Nq")
        if pads_rows(plan):
            arguments.add("Nq", "i32", "size_Nq")
        less = " - grad_lse" if has_lse else ""
        lines.add(f'"""delta = sum(grad_raw * raw){less} for a tile of all rows of all heads."""')
        width = plan.request.value_dim
        lines.add(
            "row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)",
            "total = -tl.load(grad_lse + row, mask=row < lse_rows, other=0.0)"
            if has_lse
            else "total = tl.zeros([BLOCK_M], tl.float32)",
        )
        for chunk in plan.value_chunks:
            at = f"row[:, None] * {width} + {arange(chunk)}"
            tests = " & ".join(["(row[:, None] < rows)", *width_test(chunk)])
            lines.add(
                f"left = tl.load(grad_raw + {at}, mask={tests}, other=0.0).to(tl.float32)",
                f"right = tl.load(raw + {at}, mask={tests}, other=0.0).to(tl.float32)",
                "total += tl.sum(left * right, 1)",
            )
        place = "row"
        if pads_rows(plan):
            place = "place"
            lines.comment("Heads begin at multiples of 16 bytes.")
            lines.add(f"place = row // Nq * ({rows_between_heads(plan)}) + row % Nq")
        lines.add(
            f"tl.store(delta + {place}, total, mask=row < rows)",
            "known = tl.load(stat + row, mask=row < rows, other=0.0)",
        )
        if plan.form == "softmax":
            lines.comment(
                "The base of the exponent, in units of log2(e): rows without a key get weight 0."
            )
            lines.add(
                f'known = tl.where(known == {NEGATIVE_INFINITY}, float("inf"), known * LOG2E)'
            )
        else:
            lines.add(
                "known = tl.where(known == 0.0, 0.0, 1.0 / tl.where(known == 0.0, 1.0, known))"
            )
        lines.add(f"tl.store(base + {place}, known, mask=row < rows)")
        return self.finish()


class RowAdjoint(Adjoint):
    """A kernel that owns a tile of queries and loops over keys."""

    def write_inputs(self) -> None:
        """Everything of the tile's rows."""
        lines, plan = self.lines, self.plan
        self.write_place(self.roots)
        self.write_rows()
        self.write_query_base()
        if any(find(node, "dot") for node in self.roots) or any(
            item.leaf.node.op == "dot" for item in self.leaves
        ):
            self.write_query_rows()
        if self.has_score:
            self.write_loads("query", self.row_elements, plan.query_chunks, "Nq")
        width = plan.request.value_dim
        self.write_row_base("grad_raw", width)
        self.write_own_loads("grad_raw", width, self.row_elements, plan.value_chunks, "Nq")
        self.write_row_descriptors()
        self.write_row_statistics()
        self.write_delta()
        self.values.define(lines, "row", self.roots)
        for name in ("key", "value") if self.has_score else ("value",):
            self.write_base(name, self.key_head)

    def write_tile_adjoint(self, partial: bool) -> str:
        """The adjoints of a tile's pairs; the text of the test of its pairs or ""."""
        plan = self.plan
        limit = self.column_limit if partial else None
        self.write_columns(partial)
        self.values.define(self.lines, "column", self.tile_roots(partial))
        if self.has_score:
            self.write_loads("key", self.column_elements, plan.query_chunks, limit)
        keep = self.write_weights(partial)
        self.write_loads("value", self.column_elements, plan.value_chunks, limit)
        self.write_pair_adjoint(keep)
        return keep


class BackwardQuery(RowAdjoint):
    """Writes `backward_dq`: also adjoints of row-level leaves, the largest of pair-level ones."""

    def __init__(self, plan: KernelPlan) -> None:
        rows, tables = numbered_leaves(plan, "row"), table_leaves(plan)
        super().__init__(plan, "backward_dq", plan.backward_dq, [*rows, *tables])
        self.rows, self.tables = rows, tables

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        self.add_input_arguments()
        names = ["grad_query", *(f"row_adjoint_{item.number}" for item in self.rows)]
        names += [f"largest_{item.number}" for item in self.tables]
        for name in names:
            is_narrow = name == "grad_query" and not keeps_query_wide(plan)
            dtype = plan.request.dtype if is_narrow else "float32"
            arguments.add_own(name, dtype, f"entry_{name}" if self.is_gathered else name)
        self.add_other_arguments()
        lines.add('"""Gradients of a tile of queries, and what its rows contribute to tensors."""')
        self.write_inputs()
        for i, chunk in enumerate(plan.query_chunks):
            lines.add(f"grad_query_{i} = tl.zeros([BLOCK_M, {chunk.width}], tl.float32)")
        for item in self.rows:
            lines.add(f"row_sum_{item.number} = tl.zeros([BLOCK_M], tl.float32)")
        for item in self.tables:
            lines.add(f"greatest_{item.number} = tl.zeros([BLOCK_M], tl.float32)")
        self.write_tiles(self._write_tile)
        self._write_end()
        return self.finish()

    def _write_tile(self, partial: bool) -> None:
        lines, plan = self.lines, self.plan
        keep = self.write_tile_adjoint(partial)
        for item in self.leaves:
            lines.origin(plan.program, item.leaf.node)
            text = self.leaf_adjoint(item.leaf.partial, keep)
            number = item.number
            if item in self.rows:
                lines.add(f"row_sum_{number} += tl.sum({text}, 1)")
                continue
            lines.add(
                f"greatest_{number} = tl.maximum("
                f"greatest_{number}, tl.max(attn_finite_size({text}), 1))"
            )
        self.write_score_adjoint("query", "key", keep)

    def _write_end(self) -> None:
        lines, plan = self.lines, self.plan
        self.write_results(
            "grad_query",
            plan.request.head_dim,
            plan.query_chunks,
            lambda i: f"(grad_query_{i} * scale).to(grad_query.dtype.element_ty)",
        )
        owner, index, limit = self.results
        if self.rows or self.tables:
            lines.add(f"row = {index}")
        for item in self.rows:
            lines.add(
                f"tl.store(row_adjoint_{item.number} + {owner}.to(tl.int64) * {limit} + row, "
                f"row_sum_{item.number}, mask=row < {limit})"
            )
        for item in self.tables:
            name = f"greatest_{item.number}"
            lines.add(
                f"{name} = tl.where(row < {limit}, {name}, 0.0)",
                f"tl.store(largest_{item.number} + tl.program_id(0), tl.max({name}, 0))",
            )


class BackwardDots(RowAdjoint):
    """Writes `backward_dots`: what dots of queries with a vector for each pair add to their
    gradients. It is a kernel of its own because `backward_dq` has no registers left for it."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(
            plan, "backward_dots", plan.backward_dq, dot_leaves(plan), with_score=False
        )

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        self.add_input_arguments()
        arguments.add_own("dots", "float32", "entry_grad_query" if self.is_gathered else "dots")
        self.add_other_arguments()
        lines.add('"""What dots of queries with a vector for each pair add to their gradients."""')
        self.write_inputs()
        for i, chunk in enumerate(plan.query_chunks):
            lines.add(f"grad_query_{i} = tl.zeros([BLOCK_M, {chunk.width}], tl.float32)")
        self.write_tiles(self._write_tile)
        self.write_results(
            "dots", plan.request.head_dim, plan.query_chunks, lambda i: f"grad_query_{i}"
        )
        return self.finish()

    def _write_tile(self, partial: bool) -> None:
        keep = self.write_tile_adjoint(partial)
        for item in self.leaves:
            self.lines.origin(self.plan.program, item.leaf.node)
            text = self.leaf_adjoint(item.leaf.partial, keep)
            self.lines.add(f"adjoint_{item.number} = {text}")
            self._write_dot(item)

    def _write_dot(self, item: NumberedLeaf) -> None:
        """Adds adjoint * tensor[...] to the gradient of query, one element after the other."""
        lines, plan, node = self.lines, self.plan, item.leaf.node
        pattern = self.values.pattern(self.values.normal(node))
        indices = self.dot_indices(item.leaf)
        arguments = ", ".join([*self.values.tensor_arguments(node.name), *indices])
        with lines.block(f"for element in tl.range(0, {plan.request.head_dim}, num_stages=1):"):
            lines.add(
                f"vector = attn_part_{pattern}({arguments}, element)",
                f"part = tl.sum(adjoint_{item.number} * vector, 1)",
            )
            for i, chunk in enumerate(plan.query_chunks):
                lines.add(
                    f"grad_query_{i} += tl.where({arange(chunk)} == element, part[:, None], 0.0)"
                )


class BackwardTables(RowAdjoint):
    """Writes `backward_tables`: gradients of tensors looked up pair by pair.

    Sums of whole numbers do not depend on their order: each contribution is rounded to a multiple
    of a power of two that the host chose so that all of them fit into an int64.
    """

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(
            plan,
            "backward_tables",
            plan.backward_dq,
            table_leaves(plan),
            with_score=False,
            every_row=True,
        )

    def write(self) -> str:
        lines, plan, arguments = self.lines, self.plan, self.arguments
        names = table_names(plan)
        self.add_input_arguments()
        for name in names:
            arguments.add_own(f"sums_{name}", "int64")
            arguments.add_own(f"unit_{name}", "float32")
        self.add_other_arguments()
        lines.add(
            '"""Gradients of tensors that are looked up by query and key, as whole numbers."""'
        )
        self.write_inputs()
        for name in names:
            lines.add(f"scale_{name} = tl.load(unit_{name})")
        self.write_tiles(self._write_tile)
        return self.finish()

    def _write_tile(self, partial: bool) -> None:
        lines, plan = self.lines, self.plan
        keep = self.write_tile_adjoint(partial)
        for item in self.leaves:
            node = item.leaf.node
            lines.origin(plan.program, node)
            text = self.leaf_adjoint(item.leaf.partial, keep)
            lines.add(f"adjoint_{item.number} = {text}")
            indices = self.dot_indices(item.leaf)
            pattern = self.values.pattern(self.values.normal(node))
            extents = self.values.tensor_arguments(node.name, with_strides=False)
            if node.op == "lookup":
                arguments = ", ".join([f"sums_{node.name}", *extents, *indices])
                amount = f"attn_fixed(adjoint_{item.number}, scale_{node.name})"
                lines.add(f"attn_add_{pattern}({arguments}, {amount}, {keep})")
                continue
            arguments = ", ".join([f"sums_{node.name}", *extents, *indices, "element"])
            stride = "" if plan.request.unit_stride else " * query_stride_d"
            with lines.block(f"for element in tl.range(0, {plan.request.head_dim}, num_stages=1):"):
                lines.add(
                    f"part = tl.load(query_rows + element{stride}, mask=rows < Nq, other=0.0)",
                    f"part = adjoint_{item.number} * part.to(tl.float32)",
                    f"amount = attn_fixed(part, scale_{node.name})",
                    f"attn_add_{pattern}n({arguments}, amount, {keep})",
                )


def table_leaves(plan: KernelPlan) -> list[NumberedLeaf]:
    """The pair-level leaves of tensors that receive a gradient."""
    return [i for i in numbered_leaves(plan, "pair") if i.leaf.node.name in plan.request.grads]


def table_names(plan: KernelPlan) -> list[str]:
    """Their tensors, each once."""
    return list(dict.fromkeys(item.leaf.node.name for item in table_leaves(plan)))


def dot_leaves(plan: KernelPlan) -> list[NumberedLeaf]:
    """The dots of queries with a vector for each pair."""
    return [i for i in numbered_leaves(plan, "pair") if i.leaf.node.op == "dot"]


def adds_to_query_on_host(plan: KernelPlan) -> bool:
    """Whether a dot adds to the gradient of query on the host, where it must then be float32."""
    leaves = [*plan.sink_partials, *plan.output_partials, *plan.leaves]
    return any(leaf.node.op == "dot" for leaf in leaves)


def keeps_query_wide(plan: KernelPlan) -> bool:
    """Whether the gradient of query is float32 until all has been added to it."""
    return adds_to_query_on_host(plan) or not is_whole(plan)
