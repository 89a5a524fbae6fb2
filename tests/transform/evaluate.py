"""A plain evaluator of nodes in Python numbers, for the tests of rewrites."""

import math

from attndsl.ir.nodes import Node, topological
from attndsl.ir.ops import OPS
from attndsl.transform.fold import FOLD

Value = bool | int | float


def apply(node: Node, args: list[Value]) -> Value:
    try:
        return FOLD[node.op](*args)
    except OverflowError:
        return math.inf
    except (ArithmeticError, ValueError):
        return math.nan


def evaluate(root: Node, values: dict[Node, Value]) -> Value:
    """The value of a node, given the values of its leaves."""
    done: dict[Node, Value] = dict(values)
    for node in topological(root):
        if node in done or OPS[node.op].is_leaf and node.op != "const":
            continue  # an index below a lookup whose value is given
        done[node] = node.value if node.op == "const" else apply(node, [done[a] for a in node.args])
    return done[root]
