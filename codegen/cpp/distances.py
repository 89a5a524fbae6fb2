"""Values that depend on q and k by their difference only: torch computes each once per distance.

What is costly to compute (a logarithm, a power) or to look up pair by pair is then read from an
array [B or 1, H or 1, Nq + Nk - 1], the greatest distance first.
"""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.ir.nodes import Node
from attndsl.plan.kernel_plan import KernelPlan

from ..expressions import Printer
from ..lines import Lines
from ..runs import Distances, at_distance
from ..scope import Plainness, scope_printer
from .call import Fields

COUNT = "max(size_Nq + size_Nk - 1, 0)"


class Diagonals:
    """The arrays of one function, by the node that each holds."""

    def __init__(self, plan: KernelPlan, roots: Iterable[Node]) -> None:
        self.plan = plan
        self.distances = Distances(has_runs=True)
        self.nodes = tuple(self.distances.worthwhile(roots))

    def name(self, node: Node) -> str:
        return f"diagonal_{self.nodes.index(node)}"

    def is_of_distance(self, leaf: Node) -> bool:
        """Whether the indices of a lookup depend on the distance and on no other part of q or k."""
        return leaf.op == "lookup" and self.distances.has_distance_index(leaf)

    def add_fields(self, fields: Fields) -> None:
        for node in self.nodes:
            fields.add_shared_array(array_type(node), self.name(node), "bh")

    def write(self, lines: Lines, gathered: Iterable[Node] = ()) -> None:
        """The Python statements that make the arrays; `distance` too where leaves are gathered."""
        gathered = tuple(gathered)
        if not self.nodes and not gathered:
            return
        lines.add(f"distance = torch.arange({COUNT} - 1, -1, -1) - size_Nk + 1")
        batched = self.plan.request.per_batch
        for name, sign in (("q_offset", "+"), ("k_offset", "-")):
            shape = "[:, None, None]" if name in batched else ""
            lines.add(f"distance = distance {sign} {name}{shape}")
        printer = distance_printer(self.plan)
        moves = bool({"q_offset", "k_offset"} & set(batched))
        varies = frozenset[str]().union(
            *(n.varies for n in self.nodes), *(n.varies for n in gathered)
        )
        if "b" in varies:
            lines.add("b = torch.arange(size_B)[:, None, None]")
        if "h" in varies:
            lines.add("h = torch.arange(size_H)[:, None]")
        for node in self.nodes:
            lines.origin(self.plan.program, node)
            (text,) = printer.write(lines, at_distance(node))
            batch = "size_B" if "b" in node.varies or moves else "1"
            head = "size_H" if "h" in node.varies else "1"
            lines.add(f"{self.name(node)} = ({text}).expand({batch}, {head}, {COUNT}).contiguous()")


def distance_printer(plan: KernelPlan) -> Printer:
    """A printer of torch code over `distance`, `b` and `h`."""

    def refuse(node: Node, args: tuple[str, ...]) -> str:
        raise AssertionError("a dot reads a query: no distance alone gives it")

    leaves = {("index", "b"): "b", ("index", "h"): "h", ("index", "q"): "distance"}
    return scope_printer(plan, leaves, refuse, Plainness(), "distance_")


def array_type(node: Node) -> str:
    """The C++ type of an array's entries, as torch makes them."""
    return {"float": "A", "int": "int64_t", "bool": "uint8_t"}[node.kind]
