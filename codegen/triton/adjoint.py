"""What the backward kernels share: weights again, and adjoints of pairs and of leaves."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.nodes import SCORE, Node, is_const
from attndsl.plan.kernel_plan import Config, KernelPlan, Leaf

from .descriptors import describes_rows, rows_between_heads, write_row_descriptor
from .kernel import NEGATIVE_INFINITY, Kernel


@dataclass(frozen=True)
class NumberedLeaf:
    """A leaf and its place in `plan.leaves`: the number in the names of its buffers."""

    number: int
    leaf: Leaf


def numbered_leaves(plan: KernelPlan, *levels: str) -> list[NumberedLeaf]:
    """The leaves of the weight at some levels whose adjoint somebody wants."""
    return [
        NumberedLeaf(number, leaf)
        for number, leaf in enumerate(plan.leaves)
        if level_of_adjoint(leaf) in levels and not is_const(leaf.partial, 0.0)
    ]


def level_of_adjoint(leaf: Leaf) -> str:
    """Where the adjoint of a leaf can be summed: a dot with a query varies with it."""
    return "pair" if leaf.node.op == "dot" and leaf.level == "column" else leaf.level


class Adjoint(Kernel):
    """A kernel that computes the adjoints of pairs.

    leaves      the leaves whose adjoints it needs
    with_score  whether it needs the adjoint of the raw score
    every_row   whether rows beyond the last query must be left out in full tiles too
    """

    def __init__(
        self,
        plan: KernelPlan,
        name: str,
        config: Config,
        leaves: list[NumberedLeaf],
        columns_first: bool = False,
        with_score: bool = True,
        every_row: bool = False,
    ) -> None:
        super().__init__(plan, name, config, columns_first)
        self.leaves = leaves
        self.every_row = every_row
        self.describes_rows = describes_rows(name, config)
        self.is_plain = plan.form == "softmax" and plan.value is SCORE
        self.has_score_adjoint = with_score and not is_const(plan.raw_partial, 0.0)
        self.roots: list[Node] = [*self.mask_nodes, self.pair_value]
        if plan.may_be_masked_by_score and plan.form != "softmax":
            self.roots.append(plan.logit)
        if self.has_score_adjoint:
            self.roots.append(plan.raw_partial)
        self.roots += [item.leaf.partial for item in leaves]

    def add_input_arguments(self) -> None:
        arguments, plan = self.arguments, self.plan
        for name in ("query", "key", "value"):
            arguments.add_input(name)
        arguments.add_own("grad_raw", plan.request.dtype)
        if plan.form != "elementwise":
            arguments.add_own("base", "float32")
            arguments.add_own("delta", "float32")

    def add_other_arguments(self) -> None:
        self.add_tile_arguments()
        self.arguments.add_strides("query", "key", "value")
        self.arguments.add_call()
        mask = self.plan.program.mask
        self.arguments.add_leaves([*self.roots, mask, *self.segment_nodes()])

    def row_load(self, name: str, limited: bool, other: str) -> str:
        """The text of a load of one number per row of the tile, shaped along rows."""
        mask = f", mask=row < Nq, other={other}" if limited else ""
        between = rows_between_heads(self.plan)
        first = f"{self.row_head}.to(tl.int64) * {between if between == 'Nq' else f'({between})'}"
        return f"tl.load({name} + {first} + row{mask}){self.row}"

    def write_row_statistics(self, limited: bool = True) -> None:
        """base: of the exponent (infinite beyond the last row, for weight 0), or 1 / the sum."""
        if self.plan.form == "elementwise":
            return
        other = 'float("inf")' if self.plan.form == "softmax" else "0.0"
        if self.describes_rows:
            self.lines.add(f"base_row = base_tiles.load([start_m]){self.row}")
            return
        self.lines.add(
            f"row = {self.row_elements}",
            f"base_row = {self.row_load('base', limited, other)}",
        )

    def write_row_descriptors(self) -> None:
        """Before `write_row_statistics` and `write_delta`, where these read by descriptors."""
        if self.describes_rows and self.plan.form != "elementwise":
            for name in ("base", "delta"):
                write_row_descriptor(self.lines, self.plan, name)

    def write_delta(self, limited: bool = True) -> None:
        if self.plan.form == "elementwise":
            return
        if self.describes_rows:
            self.lines.add(f"delta_row = delta_tiles.load([start_m]){self.row}")
        else:
            self.lines.add(f"delta_row = {self.row_load('delta', limited, '0.0')}")

    def tile_roots(self, partial: bool) -> list[Node]:
        mask = self.plan.program.mask
        return [root for root in self.roots if partial or root is not mask]

    def write_weights(self, partial: bool) -> str:
        """score and weight; the text of the test that a pair takes part, "" where all do."""
        lines, plan = self.lines, self.plan
        if self.has_score:
            left, right = ("key", "query") if self.columns_first else ("query", "key")
            self.write_product("score", left, right, plan.query_chunks)
            if not self.is_plain:
                lines.add("score = score * scale")
        self.values.share(lines, self.tile_roots(partial))
        tests = self.mask_tests(partial, self.every_row)
        if plan.form == "softmax":
            return self._write_softmax(tests)
        if plan.may_be_masked_by_score:
            (text,) = self.values.write(lines, plan.logit)
            tests.append(f"attn_truth({text} != {NEGATIVE_INFINITY})")
        if tests:
            lines.add(f"keep = {' & '.join(tests)}")
        lines.origin(plan.program, plan.value)
        (text,) = self.values.write(lines, plan.value)
        lines.add(f"weight = {self.spread(plan.value, text)}")
        if plan.form == "normalize":
            lines.add("weight = weight * base_row")
        if tests:
            lines.add("weight = tl.where(keep, weight, 0.0)")
        return "keep" if tests else ""

    def _write_softmax(self, tests: list[str]) -> str:
        lines, plan = self.lines, self.plan
        lines.origin(plan.program, plan.value)
        if self.is_plain:
            lines.add("weight = tl.exp2(score * (scale * LOG2E) - base_row)")
        else:
            (text,) = self.values.write(lines, self.pair_value)
            logit, base = self.spread(self.pair_value, text), "base_row"
            if shift := self.shift_text():
                lines.add(f"base_tile = base_row - {shift}")
                base = "base_tile"
            lines.add(f"weight = tl.exp2({logit} * LOG2E - {base})")
        if tests:
            lines.add(f"weight = tl.where({' & '.join(tests)}, weight, 0.0)")
        # A weight of 0 has an adjoint of 0, however the weight came to be 0.
        return "(weight != 0.0)" if tests or plan.may_be_masked_by_score else ""

    def write_pair_adjoint(self, keep: str) -> None:
        """adjoint: of the logit where weights are softmax, else of the weight before the sum."""
        lines, plan = self.lines, self.plan
        left, right = ("value", "grad_raw") if self.columns_first else ("grad_raw", "value")
        self.write_product("adjoint", left, right, plan.value_chunks)
        if plan.form == "softmax":
            lines.add("adjoint = weight * (adjoint - delta_row)")
        elif plan.form == "normalize":
            lines.add("adjoint = (adjoint - delta_row) * base_row")
        if keep and plan.form != "softmax":
            lines.add("adjoint = tl.where(keep, adjoint, 0.0)")

    def leaf_adjoint(self, partial: Node, keep: str) -> str:
        """The text of adjoint * partial, 0 where the pair takes no part whatever the partial is."""
        if is_const(partial, 1.0):
            return "adjoint"
        (text,) = self.values.write(self.lines, partial)
        product = f"adjoint * ({text})"
        return f"tl.where({keep}, {product}, 0.0)" if keep else product

    def write_score_adjoint(self, own: str, other: str, keep: str) -> None:
        """Adds to the gradient of query or key (`own`) what comes through query times key."""
        lines, plan = self.lines, self.plan
        if not self.has_score_adjoint:
            return
        text = self.leaf_adjoint(plan.raw_partial, keep)
        if text != "adjoint":
            lines.add(f"adjoint = {text}")
        for i in range(len(plan.query_chunks)):
            lines.add(
                f"grad_{own}_{i} = tl.dot("
                f"adjoint.to({other}_{i}.dtype), {other}_{i}, grad_{own}_{i}{self.precision})"
            )

    def dot_indices(self, leaf: Leaf) -> list[str]:
        return self.values.write(self.lines, *self.values.indices(leaf.node))
