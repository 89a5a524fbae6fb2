"""How wide an integer of the IR is in a kernel: int32 where its range is proved to fit, else int64.

Triton wraps silently, so an operation whose result may leave int32 has an argument cast first.
"""

from __future__ import annotations

from attndsl.analysis.intervals import INT32, Ranges
from attndsl.ir.nodes import Node, topological
from attndsl.plan.kernel_plan import KernelPlan

# Results of these are int32 whatever the argument: the helpers for the first four saturate.
NARROW = ("floor", "ceil", "round", "trunc", "bool_to_int", "index", "size", "scalar", "bound")
CUTS = ("min", "max", "floormod")  # their ranges may be narrower than those of their arguments
WIDE_DTYPES = ("int64", "uint64", "uint32")
NARROW_DTYPES = ("uint8", "int8", "uint16", "int16")  # become int32 as they are loaded


class Integers:
    """Widths of the int nodes of one plan."""

    def __init__(self, plan: KernelPlan) -> None:
        names = [tensor.name for tensor in plan.program.tensors]
        self.dtypes = dict(zip(names, plan.request.tensor_dtypes, strict=True))
        self._ranges = Ranges(tables=self.dtypes)
        self._wide: dict[Node, bool] = {}

    def dtype(self, tensor: str) -> str:
        return self.dtypes[tensor]

    def is_wide(self, node: Node) -> bool:
        """Whether the node's text is an int64 in the kernel."""
        if node not in self._wide:
            for below in topological(node):
                if below.kind == "int" and below not in self._wide:
                    self._wide[below] = self._decide(below)
        return self._wide[node]

    def must_be_cast(self, node: Node) -> bool:
        """Whether the operation needs an argument cast to int64 so that its result fits."""
        return self.is_wide(node) and not any(self.is_wide(a) for a in node.args if a.kind == "int")

    def is_cut(self, node: Node) -> bool:
        """Whether the operation brings ints of 64 bits to a range that 32 hold, so that its result
        is cast to int32: what follows is computed per pair, in half of the registers."""
        return node.op in CUTS and self._fits(node) and any(map(self.is_wide, node.args))

    def is_nonnegative(self, node: Node) -> bool:
        return self._ranges.of(node)[0] >= 0

    def _decide(self, node: Node) -> bool:
        if node.op in NARROW:
            return False
        if node.op == "lookup":
            return self.dtypes[node.name] in WIDE_DTYPES
        if not self._fits(node):
            return True
        return node.op not in CUTS and any(self._wide[a] for a in node.args if a.kind == "int")

    def _fits(self, node: Node) -> bool:
        low, high = self._ranges.of(node)
        return INT32[0] <= low and high <= INT32[1]
