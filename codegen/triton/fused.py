"""The backward kernel that owns a tile of keys and adds to the gradients of queries it meets."""

from __future__ import annotations

from attndsl.plan.backward import is_turned
from attndsl.plan.kernel_plan import Chunk, KernelPlan

from .adjoint import numbered_leaves
from .boxes import COLUMNS
from .columns import BackwardKeyValue
from .kernel import arange, width_test
from .lists import uses_lists
from .ranges import NO_LIMITS


class BackwardFused(BackwardKeyValue):
    """Writes `backward_fused`: what `backward_dkv` writes, and in the same loop what the pairs add
    to sums of their rows, by atomic additions in any order: the gradient of query (without the
    scale) and the adjoints of row-level leaves.

    A column that is not there may have any weight, an infinite one too. `backward_dkv` drops its
    sums at the end; here it must not reach the sums of rows. So a tile with such columns has no
    full tiles where ranges say which are full, and full tiles of lists test their columns.
    """

    also = ", and their part of those of queries"

    def __init__(self, plan: KernelPlan) -> None:
        assert plan.backward_fused is not None and plan.gathered is None
        super().__init__(plan, "backward_fused", plan.backward_fused)
        self.rows = numbered_leaves(plan, "row")
        self.roots += [item.leaf.partial for item in self.rows]

    def add_other_arguments(self) -> None:
        self.arguments.add_own("grad_query", "float32", "query_sums")
        for item in self.rows:
            self.arguments.add_own(f"row_adjoint_{item.number}", "float32")
        super().add_other_arguments()

    @property
    def whole_guard(self) -> str:
        return "start_n + BLOCK_N <= n_keys"

    @property
    def own_guard(self) -> str:
        return "columns < n_keys"

    def mask_tests(self, partial: bool, always_rows: bool = False) -> list[str]:
        tests = super().mask_tests(partial, always_rows)
        if uses_lists(self.plan) or (partial and not self._has_runs):
            tests = [*self.end_tests(COLUMNS), *tests]
        return tests

    @property
    def _has_runs(self) -> bool:
        """Whether the tests of pairs compare with runs of rows: columns that are not there have
        none."""
        return self.span is not None and not {self.span.lo, self.span.hi} <= set(NO_LIMITS)

    def write_row_bases(self) -> None:
        super().write_row_bases()
        self.write_row_base("grad_query", self.plan.request.head_dim)

    def write_pair_results(self, partial: bool, keep: str) -> None:
        lines, plan = self.lines, self.plan
        tests = [f"({self.row_elements} < Nq)"] if partial else []
        for item in self.rows:
            lines.origin(plan.program, item.leaf.node)
            text = self.leaf_adjoint(item.leaf.partial, keep)
            at = f"row_adjoint_{item.number} + {self.row_head}.to(tl.int64) * Nq"
            self._write_addition(f"{at} + {self.row_elements}", f"tl.sum({text}, 0)", tests)
        super().write_pair_results(partial, keep)
        for i, chunk in enumerate(plan.query_chunks):
            self._write_query_part(i, chunk, partial)

    def _write_query_part(self, i: int, chunk: Chunk, partial: bool) -> None:
        """Adds adjoint^T @ key to the rows of query; turned, with elements of the head as rows."""
        width, rows = self.plan.request.head_dim, f"({self.row_elements})"
        left, right, row = f"tl.trans(adjoint.to(key_{i}.dtype))", f"key_{i}", "[:, None]"
        elements, inside = arange(chunk), width_test(chunk)
        if is_turned(chunk):
            left, right, row = f"tl.trans(key_{i})", f"adjoint.to(key_{i}.dtype)", "[None, :]"
            elements = elements.replace("[None, :]", "[:, None]")
            inside = [test.replace("[None, :]", "[:, None]") for test in inside]
        self.lines.add(f"part = tl.dot({left}, {right}{self.precision})")
        at = f"grad_query_head + {rows}{row}.to(tl.int64) * {width} + {elements}"
        tests = [f"({rows}{row} < Nq)"] if partial else []
        self._write_addition(at, "part", tests + inside)

    def _write_addition(self, at: str, amount: str, tests: list[str]) -> None:
        mask = f", mask={' & '.join(tests)}" if tests else ""
        self.lines.add(f'tl.atomic_add({at}, {amount}{mask}, sem="relaxed")')
