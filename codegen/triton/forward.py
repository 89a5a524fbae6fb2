"""The forward kernel: online softmax, or sums of another weight, over the tiles of keys."""

from __future__ import annotations

from attndsl.ir.nodes import SCORE, Node, find
from attndsl.plan.kernel_plan import Config, KernelPlan

from .kernel import NEGATIVE_INFINITY, Kernel
from .routed import is_whole, own_name
from .values import Values


class Forward(Kernel):
    """Writes `forward`; `is_plain` where the logit is the raw score itself.

    Where the results are only a part, they are float32, without sink and epilogue, and their sums
    are not divided by those of `normalize`.
    """

    def __init__(
        self, plan: KernelPlan, name: str = "forward", config: Config | None = None
    ) -> None:
        super().__init__(plan, name, config or plan.forward)
        self.is_plain = plan.form == "softmax" and plan.value is SCORE
        self.is_whole = is_whole(plan)
        self.roots: list[Node] = [self.pair_value, plan.logit, *self.mask_nodes]

    @property
    def row_roots(self) -> list[Node]:
        """What is computed at the end: the sink and the epilogue."""
        if not self.is_whole:
            return []
        program = self.plan.program
        return [node for node in (program.weights.sink, program.output) if node]

    def write(self) -> str:
        plan, lines = self.plan, self.lines
        self._add_arguments()
        lines.add(f'"""{DOCUMENTATION[plan.form]}"""')
        roots = [*self.roots, *self.row_roots]
        self.write_place(roots)
        self.write_rows()
        self._write_query()
        self.values.define(lines, "row", roots)
        self.write_base("value", self.key_head)
        self._write_start()
        self.write_tiles(self._write_tile)
        self._write_end()
        return self.finish()

    def _add_arguments(self) -> None:
        arguments = self.arguments
        for name in ("query", "key", "value"):
            arguments.add_input(name)
        self._add_results()
        self.add_tile_arguments()
        arguments.add_strides("query", "key", "value")
        arguments.add_call()
        mask = self.plan.program.mask
        arguments.add_leaves([*self.roots, mask, *self.row_roots, *self.segment_nodes()])

    def _add_results(self) -> None:
        arguments, plan = self.arguments, self.plan
        dtype = plan.request.dtype
        if not self.is_whole:
            arguments.add_own("out", "float32", own_name(plan, "out"))
        else:
            arguments.add_own("out", dtype)
            if plan.program.output is not None:
                arguments.add_own("raw", dtype)
        if plan.form != "elementwise":
            name = "stat" if self.is_whole else own_name(plan, "stat")
            arguments.add_own("stat", "float32", name)

    def _write_query(self) -> None:
        lines, plan = self.lines, self.plan
        self.write_query_base()
        if any(find(node, "dot") for node in [*self.roots, *self.row_roots]):
            self.write_query_rows()
        if not self.has_score:
            return
        self.write_loads("query", self.row_elements, plan.query_chunks, "Nq")
        self.write_base("key", self.key_head)
        if self.is_plain:
            lines.comment(
                "Logits in units of log2(e). The host moves the sign of the scale into query, so",
                "that the maximum of a row can be taken before it is scaled.",
            )
            lines.add("slope = tl.maximum(scale * LOG2E, 1e-30)")

    def _write_start(self) -> None:
        lines, form = self.lines, self.plan.form
        if form == "softmax":
            lines.add(f"most = tl.full([BLOCK_M], {NEGATIVE_INFINITY}, tl.float32)")
        if form != "elementwise":
            lines.add("total = tl.zeros([BLOCK_M], tl.float32)")
        for i, chunk in enumerate(self.plan.value_chunks):
            lines.add(f"sum_{i} = tl.zeros([BLOCK_M, {chunk.width}], tl.float32)")

    # -- one tile ------------------------------------------------------------------------------

    def _write_tile(self, partial: bool) -> None:
        lines, plan = self.lines, self.plan
        limit = self.column_limit if partial else None
        roots = [self.pair_value, plan.logit, *(self.mask_nodes if partial else [])]
        self.write_columns(partial)
        tests = None
        if partial and self.span is None and looks_up_pairs(plan.program.mask, self.values):
            # Before the product: the loop would otherwise take the layout of what is loaded, and
            # compute every weight a second time for it.
            self.values.define(lines, "column", roots)
            lines.add(f"keep = {' & '.join(self.mask_tests(partial))}")
            tests = ["keep"]
        if self.has_score:
            self.write_loads("key", self.column_elements, plan.query_chunks, limit)
            self.write_product("score", "query", "key", plan.query_chunks)
            if not self.is_plain:
                lines.add("score = score * scale")
        if tests is None:
            self.values.define(lines, "column", roots)
            tests = self.mask_tests(partial)
        if plan.form == "softmax":
            self._write_softmax(partial, tests)
        else:
            self._write_weight(tests)
        self.write_loads("value", self.column_elements, plan.value_chunks, limit)
        for i in range(len(plan.value_chunks)):
            if plan.form == "softmax":
                lines.add(f"sum_{i} = sum_{i} * rescale[:, None]")
            lines.add(
                f"sum_{i} = tl.dot(weight.to(value_{i}.dtype), value_{i}, sum_{i}{self.precision})"
            )

    def _write_softmax(self, partial: bool, tests: list[str]) -> None:
        lines, plan = self.lines, self.plan
        # What multiplies the greatest logit once may multiply all of them with the subtraction.
        logit, slope = "score", " * slope"
        if not self.is_plain:
            lines.origin(plan.program, plan.logit)
            (text,) = self.values.write(lines, self.pair_value)
            lines.add(f"logit = {self.spread(self.pair_value, text)}")
            logit, slope = "logit", " * LOG2E"
        if tests:
            lines.add(f"{logit} = tl.where({' & '.join(tests)}, {logit}, {NEGATIVE_INFINITY})")
        # Of rows: what is subtracted from all logits of the tile.
        plus, base = "", "base"
        if plan.shift is not None:
            lines.add(f"shift = ({self.row_vector(plan.shift.rows)}) * LOG2E")
            plus, base = " + shift", "(base - shift)"
        lines.add(f"greatest = tl.maximum(most, tl.max({logit}, 1){slope}{plus})")
        if partial or plan.may_be_masked_by_score:
            lines.comment("A row without a key so far has no maximum to subtract.")
            lines.add(f"base = tl.where(greatest == {NEGATIVE_INFINITY}, 0.0, greatest)")
        else:
            lines.add("base = greatest")
        lines.add(
            f"weight = tl.exp2({logit}{slope} - {base}[:, None])",
            "rescale = tl.exp2(most - base)",
            "total = total * rescale + tl.sum(weight, 1)",
            "most = greatest",
        )

    def _write_weight(self, tests: list[str]) -> None:
        lines, plan = self.lines, self.plan
        if plan.may_be_masked_by_score:
            (text,) = self.values.write(lines, plan.logit)
            tests = [*tests, f"attn_truth({text} != {NEGATIVE_INFINITY})"]
        lines.origin(plan.program, plan.value)
        (text,) = self.values.write(lines, plan.value)
        lines.add(f"weight = {self.spread(plan.value, text)}")
        if tests:
            lines.add(f"weight = tl.where({' & '.join(tests)}, weight, 0.0)")
        if plan.form == "normalize":
            lines.add("total += tl.sum(weight, 1)")

    # -- the end ---------------------------------------------------------------------------------

    def _write_end(self) -> None:
        lines, plan = self.lines, self.plan
        if plan.form == "softmax":
            self._write_denominator()
        elif plan.form == "normalize" and self.is_whole:
            lines.add(
                "inverse = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))"
            )
        if plan.form != "elementwise":
            self.write_row_store("stat", "lse" if plan.form == "softmax" else "total")
        if plan.form == "softmax" or (plan.form == "normalize" and self.is_whole):
            for i in range(len(plan.value_chunks)):
                lines.add(f"sum_{i} = sum_{i} * inverse[:, None]")
        output = plan.program.output if self.is_whole else None
        name = "raw" if output is not None else "out"
        self._write_result(name, [f"sum_{i}" for i in range(len(plan.value_chunks))])
        if output is not None:
            self._write_output(output)

    def _write_denominator(self) -> None:
        lines, plan = self.lines, self.plan
        # NaN is no maximum, but shows in the sum.
        lines.add(f"empty = (most == {NEGATIVE_INFINITY}) & (total == 0.0)")
        sink = plan.program.weights.sink if self.is_whole else None
        if sink is not None:
            lines.origin(plan.program, sink)
            lines.add(
                f"sink = ({self.row_vector(sink)}) * LOG2E",
                "greatest = tl.maximum(most, sink)",
                f"greatest = tl.where(greatest == {NEGATIVE_INFINITY}, 0.0, greatest)",
                "rescale = tl.exp2(most - greatest)",
                "total = total * rescale + tl.exp2(sink - greatest)",
                "most = greatest",
            )
            for i in range(len(plan.value_chunks)):
                lines.add(f"sum_{i} = sum_{i} * rescale[:, None]")
        lines.add(
            "total = tl.where(empty, 1.0, total)",
            f"lse = tl.where(empty, {NEGATIVE_INFINITY}, (most + tl.log2(total)) * LN2)",
            "inverse = 1.0 / total",
        )

    def _write_result(self, name: str, texts: list[str]) -> None:
        dtype = f"{name}.dtype.element_ty"
        self.write_results(
            name,
            self.plan.request.value_dim,
            self.plan.value_chunks,
            lambda i: f"{texts[i]}.to({dtype})",
        )

    def row_vector(self, node: Node) -> str:
        """The text of a value of rows as [BLOCK_M]."""
        (text,) = self.values.write(self.lines, node)
        return f"tl.reshape(tl.zeros([BLOCK_M, 1], tl.float32) + {text}, [BLOCK_M])"

    def _write_output(self, output: Node) -> None:
        """The epilogue, chunk by chunk of the head dimension."""
        lines, plan = self.lines, self.plan
        lines.blank()
        outer, texts = self.values, []
        for i, chunk in enumerate(plan.value_chunks):
            self.values = outer.inner()
            lines.origin(plan.program, output)
            lines.add(
                f"d = {chunk.start} + tl.arange(0, {chunk.width})[None, :]", f"normal = sum_{i}"
            )
            self.values.define(lines, "column", [output])
            (text,) = self.values.write(lines, output)
            lines.add(f"result_{i} = tl.zeros([BLOCK_M, {chunk.width}], tl.float32) + ({text})")
            texts.append(f"result_{i}")
            self.values = outer
        self._write_result("out", texts)


def looks_up_pairs(mask: Node, values: Values) -> bool:
    """Whether a mask looks something up for every pair."""
    return any(values.level(node) == "pair" for node in find(mask, "lookup"))


DOCUMENTATION = {
    "softmax": "A tile of rows of softmax(logits) @ value, and the logarithms of its denominators.",
    "normalize": "A tile of rows of (weights / their sums) @ value, and the sums.",
    "elementwise": "A tile of rows of weights @ value.",
}
