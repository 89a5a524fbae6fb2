"""The PyTorch parts that every generator's host code shares: sizes, row-level values and gradients.

The functions write statements for the body of `run_forward` or `run_backward`. Names that they read
or set (arrays are in the accumulator's dtype unless said otherwise):

    query, key, value, q_offset, k_offset, k_len, tensors, scalars    the arguments of the contract
    size_B ... size_D, size_Dv   ints    set by write_arguments
    dim_*                        ints    likewise: the program's own dimensions
    t_*, p_*                     parameters     set by write_arguments
    raw        [B, H, Nq, Dv]            the result before the epilogue
    stat       [B, H, Nq]                see attndsl.backend
    grad_raw   [B, H, Nq, Dv]            set by write_output_backward
    delta      [B, H, Nq]                set by write_delta
    grad_query [B, H, Nq, D]             added to by dots
    grad_t_*                             contiguous, set by write_gradients
"""

from __future__ import annotations

from attndsl.ir.nodes import Node, find, is_const
from attndsl.ir.program import SIZES
from attndsl.plan.kernel_plan import KernelPlan, Leaf

from .expressions import Printer
from .lines import Lines
from .scope import (
    Plainness,
    gradient_name,
    scalar_name,
    scope_printer,
    size_name,
    tensor_name,
    tuple_text,
)

# Layout -> the subscript that gives each index its axis.
LAYOUTS: dict[str, dict[str, str]] = {
    "row": {"b": "[:, None, None]", "h": "[:, None]", "q": ""},  # [B, H, Nq]
    "column": {"b": "[:, None, None]", "h": "[:, None]", "k": ""},  # [B, H, Nk]
    "element": {  # [B, H, Nq, Dv]
        "b": "[:, None, None, None]",
        "h": "[:, None, None]",
        "q": "[:, None]",
        "d": "",
    },
}
EXTENT = {"b": "size_B", "h": "size_H", "q": "size_Nq", "k": "size_Nk", "d": "size_Dv"}


def write_arguments(lines: Lines, plan: KernelPlan) -> None:
    """Unpacks sizes, tensors and scalars."""
    lines.add("size_B, size_H, size_Nq, size_D = query.shape")
    lines.add("size_Hk, size_Nk, size_Dv = value.shape[1:]")
    lines.add("size_G = size_H // max(size_Hk, 1)")
    for at, tensor in enumerate(plan.program.tensors):
        lines.add(f"{tensor_name(tensor.name)} = tensors[{at}]")
    for at, scalar in enumerate(plan.program.scalars):
        lines.add(f"{scalar_name(scalar.name)} = scalars[{at}]")
    bound: set[str] = set(SIZES)
    for tensor in plan.program.tensors:
        for axis, dim in enumerate(tensor.dims):
            if dim.op == "size" and dim.name not in bound:
                bound.add(dim.name)
                lines.add(f"{size_name(dim.name)} = {tensor_name(tensor.name)}.shape[{axis}]")
    for name in plan.request.per_batch:
        lines.add(f"{name} = {name}.long()")


def write_grid(lines: Lines, plan: KernelPlan) -> None:
    """Sets `grid`, the extents of the plan's grid as ints; after `write_arguments`."""
    assert plan.grid is not None
    scope = HostScope(plan, "row")
    texts = scope.printer.write(lines, *plan.grid.extents)
    lines.add(f"grid = {tuple_text(tuple(f'int({text})' for text in texts))}")


class HostScope:
    """Values on whole arrays of one layout: "row" [B, H, Nq], "column" [B, H, Nk] or "element"
    [B, H, Nq, Dv]. `out` is the text of the output before its epilogue."""

    def __init__(self, plan: KernelPlan, layout: str, out: str = "raw") -> None:
        self.plan, self.layout = plan, layout
        leaves = {("index", name): f"{name}_{layout}" for name in LAYOUTS[layout]}
        leaves["out", ""] = out
        self._rows = HostScope(plan, "row") if layout == "element" else None
        self._written: set[str] = set()
        self.printer: Printer = scope_printer(
            plan, leaves, self._dot, Plainness(), prefix=f"{layout}_"
        )

    def write_indices(self, lines: Lines, *nodes: Node) -> None:
        """Sets the index arrays of this layout that the nodes use."""
        varies = frozenset[str]().union(*(node.varies for node in nodes))
        for name, subscript in LAYOUTS[self.layout].items():
            if name not in varies or name in self._written:
                continue
            self._written.add(name)
            text = f"torch.arange({EXTENT[name]}, device=query.device)"
            if name in ("q", "k"):
                batched = f"{name}_offset" in self.plan.request.per_batch
                text += f"{subscript} + {name}_offset"
                text += LAYOUTS[self.layout]["b"] if batched else ""
            else:
                text += subscript
            lines.add(f"{name}_{self.layout} = {text}")
        if self._rows is not None:
            dots = [dot for node in nodes for dot in find(node, "dot")]
            self._rows.write_indices(lines, *(arg for dot in dots for arg in dot.args))

    def _dot(self, node: Node, args: tuple[str, ...]) -> str:
        if self._rows is not None:
            return f"{self._rows.printer.text(node)}[..., None]"
        table = tensor_name(node.name)
        return f"attn_dot_row(query.to(ACCUMULATOR), {table}, {tuple_text(args)})"

    def write_leaf(self, lines: Lines, leaf: Leaf, adjoint: str) -> None:
        """Adds the adjoint of a leaf (an array of this layout) to the gradients of its inputs."""
        node = leaf.node
        wanted = node.name in self.plan.request.grads
        if node.op == "dot" and self._rows is not None:
            self._rows.write_leaf(lines, leaf, f"({adjoint}).sum(-1)")
            return
        self.write_indices(lines, *node.args)
        indices = tuple_text(tuple(self.printer.write(lines, *node.args)))
        gradient = gradient_name(node.name) if wanted else "None"
        if node.op == "dot":
            lines.add(
                f"attn_dot_row_backward(grad_query, {gradient}, {adjoint}, "
                f"query.to(ACCUMULATOR), {tensor_name(node.name)}, {indices})"
            )
        else:
            lines.add(f"attn_scatter({gradient}, {adjoint}, {indices})")


def times(adjoint: str, printer: Printer, partial: Node) -> str:
    """The text of adjoint * partial."""
    if is_const(partial, 1.0):
        return adjoint
    return f"{adjoint} * {printer.text(partial, 11)}"


def write_output(lines: Lines, plan: KernelPlan) -> None:
    """out = the epilogue of `raw`, [B, H, Nq, Dv]; or `raw` itself where there is none."""
    output = plan.program.output
    if output is None:
        lines.add("out = raw")
        return
    scope = HostScope(plan, "element")
    lines.origin(plan.program, output)
    scope.write_indices(lines, output)
    (text,) = scope.printer.write(lines, output)
    if "out" not in output.varies:
        text = f"torch.zeros_like(raw) + {scope.printer.text(output, 10)}"
    lines.add(f"out = {text}")


def write_gradients(lines: Lines, plan: KernelPlan) -> None:
    """Sets the accumulator of every wanted tensor gradient to zero."""
    for name in plan.request.grads:
        lines.add(
            f"{gradient_name(name)} = torch.zeros("
            f"{tensor_name(name)}.shape, dtype=ACCUMULATOR, device=query.device)"
        )


def write_output_backward(lines: Lines, plan: KernelPlan) -> None:
    """grad_raw, and the gradients of the tensors of the epilogue, from grad_out and raw."""
    output, by_out = plan.program.output, plan.output_by_out
    if output is None or by_out is None:
        lines.add("grad_raw = grad_out.to(ACCUMULATOR)")
        return
    scope = HostScope(plan, "element")
    lines.origin(plan.program, output)
    lines.add("grad_out = grad_out.to(ACCUMULATOR)")
    partials = [by_out, *(leaf.partial for leaf in plan.output_partials)]
    scope.write_indices(lines, *partials)
    scope.printer.share(lines, partials)
    lines.add(f"grad_raw = {times('grad_out', scope.printer, by_out)}")
    if plan.form != "elementwise":
        # A row without a key passes nothing on, however steep the epilogue is at 0.
        nothing = 'float("-inf")' if plan.form == "softmax" else "0.0"
        lines.add(f"grad_raw = torch.where((stat == {nothing})[..., None], 0.0, grad_raw)")
    for leaf in plan.output_partials:
        scope.write_leaf(lines, leaf, times("grad_out", scope.printer, leaf.partial))


def write_delta(lines: Lines, plan: KernelPlan) -> None:
    """delta [B, H, Nq]: what the adjoint of every weight of a row is lowered by."""
    lines.add("delta = (grad_raw * raw).sum(-1)")
    if plan.form == "softmax":
        with lines.block("if grad_lse is not None:"):
            lines.add("delta = delta - grad_lse")


def write_sink(lines: Lines, plan: KernelPlan) -> None:
    """Adds the sink to the denominators: changes raw [B, H, Nq, Dv] and stat [B, H, Nq]."""
    sink = plan.program.weights.sink
    if sink is None:
        return
    scope = HostScope(plan, "row")
    lines.origin(plan.program, sink)
    scope.write_indices(lines, sink)
    scope.printer.write(lines, sink)
    lines.add(
        "without_sink = stat",
        f"stat = torch.logaddexp(stat, torch.zeros_like(stat) + {scope.printer.text(sink, 10)})",
        'empty = without_sink == float("-inf")',
        "stat = torch.where(empty, without_sink, stat)",
        "raw *= torch.where(empty, 0.0, torch.exp(without_sink - stat))[..., None]",
    )


def write_sink_backward(lines: Lines, plan: KernelPlan) -> None:
    """Adds the gradients of the tensors of the sink, from stat and delta."""
    sink = plan.program.weights.sink
    if sink is None or not plan.sink_partials:
        return
    scope = HostScope(plan, "row")
    lines.origin(plan.program, sink)
    partials = [leaf.partial for leaf in plan.sink_partials]
    scope.write_indices(lines, sink, *partials)
    texts = scope.printer.write(lines, sink, *partials)
    lines.add(
        f"adjoint_sink = -torch.exp({texts[0]} - stat) * delta",
        'adjoint_sink = torch.where(stat == float("-inf"), 0.0, adjoint_sink)',
    )
    for leaf in plan.sink_partials:
        scope.write_leaf(lines, leaf, times("adjoint_sink", scope.printer, leaf.partial))


def write_leaves(lines: Lines, plan: KernelPlan, layout: str, adjoints: dict[Node, str]) -> None:
    """Adds the gradients of the leaves of one level ("row" or "column") of the weight.

    adjoints  leaf -> text of its adjoint, [B, H, Nq] or [B, H, Nk]
    """
    scope = HostScope(plan, layout)
    for leaf in plan.leaves:
        if leaf.level == layout and leaf.node in adjoints:
            lines.origin(plan.program, leaf.node)
            scope.write_leaf(lines, leaf, adjoints[leaf.node])


def result_texts(plan: KernelPlan) -> list[str]:
    """The gradients of tensors in their dtypes, in the order of `request.grads`."""
    return [f"{gradient_name(n)}.to({tensor_name(n)}.dtype)" for n in plan.request.grads]
