"""Which lookups of a block need no gather: those along runs of indices, and those of a distance.

A *window* has bare indices, `pair[b, h, q, k]`: a block reads a slice. An expression of the
*distance* depends on q and k by their difference only: a block of rows x columns has no more than
rows + columns - 1 values of it. Both need rows and columns that are runs of positions: boxes of a
grid and rows that lists gather are none.
"""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.ir.nodes import Node, constant, index, substitute, topological
from attndsl.transform.simplify import simplified

PAIR = frozenset(("q", "k"))
# Ops for which a gather, or a value computed pair by pair, costs more than copying diagonals.
COSTLY = frozenset(
    "lookup floordiv floormod floordiv_float floormod_float pow exp exp2 log log2 sqrt rsqrt sin "
    "cos tanh erf sigmoid softplus floor ceil round trunc".split()
)


def is_window(node: Node) -> bool:
    """Whether every index of a lookup is a bare index, each another one."""
    names = [arg.attr for arg in node.args if arg.op == "index"]
    return node.op == "lookup" and len(names) == len(node.args) == len(set(names)) > 0


class Distances:
    """Which nodes depend on q and k by their difference only; none where rows and columns are no
    runs of positions."""

    def __init__(self, has_runs: bool) -> None:
        self._has_runs = has_runs
        self._coefficients: dict[Node, tuple[int, int] | None] = {}
        self._known: dict[Node, bool] = {}

    def _linear(self, node: Node) -> tuple[int, int] | None:
        """Factors of q and k in an int node that is linear in them."""
        if "score" in node.varies:
            return None
        if not node.varies & PAIR:
            return (0, 0)
        if node.op == "index":
            return (1, 0) if node.attr == "q" else (0, 1)
        below = [self._coefficients[arg] for arg in node.args]
        if node.op in ("add", "sub", "neg") and node.kind == "int":
            signs = {"add": (1, 1), "sub": (1, -1), "neg": (-1,)}[node.op]
            total = [0, 0]
            for sign, pair in zip(signs, below, strict=True):
                if pair is None:
                    return None
                total = [total[0] + sign * pair[0], total[1] + sign * pair[1]]
            return total[0], total[1]
        return None

    def is_distance(self, node: Node) -> bool:
        """Whether it varies with q and k, but only by their difference."""
        if not self._has_runs:
            return False
        for below in topological(node):
            if below in self._known:
                continue
            pair = self._linear(below)
            self._coefficients[below] = pair
            if pair is not None:
                self._known[below] = pair[0] == -pair[1] != 0
            else:
                varying = [arg for arg in below.args if arg.varies & PAIR]
                self._known[below] = (
                    below.op != "dot"
                    and "score" not in below.varies
                    and bool(varying)
                    and all(self._known[arg] for arg in varying)
                )
        return self._known[node]

    def has_distance_index(self, node: Node) -> bool:
        """Whether the indices of a lookup or dot vary with the distance and with no other part of
        q or k."""
        varying = [arg for arg in node.args if arg.varies & (PAIR | {"score"})]
        return bool(varying) and all(self.is_distance(arg) for arg in varying)

    def worthwhile(self, roots: Iterable[Node]) -> list[Node]:
        """The largest costly expressions of the distance below the roots, in order."""
        found: dict[Node, None] = {}
        roots = list(roots)
        users = [(node, arg) for node in topological(*roots) for arg in node.args]
        for user, node in [*users, *((None, root) for root in roots)]:
            if not self.is_distance(node) or (user is not None and self.is_distance(user)):
                continue
            if user is not None and user.op in ("lookup", "dot") and node.kind == "int":
                continue  # the index of a lookup that gets its own treatment, or stays a gather
            if any(below.op in COSTLY and below.varies & PAIR for below in topological(node)):
                found[node] = None
        return list(found)


def at_distance(node: Node) -> Node:
    """An expression of the distance with q in place of the distance."""
    return simplified(substitute(node, {index("k"): constant(0)}))
