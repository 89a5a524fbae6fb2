"""Plain Python values of nodes, for tests: indices and sizes by name, tables as functions."""

from collections.abc import Callable

from attndsl.ir.nodes import Node, topological
from attndsl.transform.fold import FOLD

Value = bool | int | float


def evaluate(
    root: Node, tables: dict[str, Callable[..., Value]] | None = None, **values: Value
) -> Value:
    done: dict[Node, Value] = {}
    for node in topological(root):
        args = [done[arg] for arg in node.args]
        if node.op == "const":
            done[node] = node.value
        elif node.op in ("index", "size", "scalar"):
            done[node] = values[node.name]
        elif node.op in ("score", "out"):
            done[node] = values[node.op]
        elif node.op == "lookup":
            assert tables is not None
            done[node] = tables[node.name](*args)
        else:
            done[node] = FOLD[node.op](*args)
    return done[root]
