"""Interned, immutable nodes of the IR and the one factory that makes them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator

from attndsl.ir.ops import KIND_OF_LETTER, OPS, Kind

Attribute = str | bool | int | float | None
NOTHING: frozenset[str] = frozenset()


class Node:
    """One value of the IR. Equal nodes are the same object: compare with `is`, never build by hand.

    op      a name of the op table
    args    argument nodes
    attr    what a leaf names: the constant, index, size, parameter or tensor
    kind    "bool", "int" or "float"
    varies  the indices that the value depends on: of "b", "h", "q", "k", "d", "score", "out", and
            of "i", "j" in a select
    """

    op: str
    args: tuple[Node, ...]
    attr: Attribute
    kind: Kind
    varies: frozenset[str]

    def __init__(
        self, op: str, args: tuple[Node, ...], attr: Attribute, kind: Kind, token: object
    ) -> None:
        if token is not _TOKEN:
            raise TypeError("nodes are built by attndsl.ir.nodes.make")
        self.op, self.args, self.attr, self.kind = op, args, attr, kind
        self.varies = indices_of(op, args, attr)

    @property
    def value(self) -> bool | int | float:
        """The value of a constant."""
        assert self.op == "const" and not isinstance(self.attr, str) and self.attr is not None
        return self.attr

    @property
    def name(self) -> str:
        """The name that a leaf stands for."""
        assert isinstance(self.attr, str)
        return self.attr

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: object) -> Node:
        return self

    def __reduce__(self) -> tuple[Callable[..., Node], tuple[object, ...]]:
        return restore, (self.op, self.args, self.attr, self.kind)

    def __repr__(self) -> str:
        inside = [] if self.attr is None else [repr(self.attr)]
        return f"{self.op}({', '.join(inside + [repr(arg) for arg in self.args])})"


def indices_of(op: str, args: tuple[Node, ...], attr: Attribute) -> frozenset[str]:
    if op == "index":  # a coordinate, "q.y", varies with its position
        return frozenset((str(attr).partition(".")[0],))
    if op in ("score", "out"):
        return frozenset((op,))
    found = NOTHING.union(*(arg.varies for arg in args))
    if op == "dot":  # the query itself differs by batch, head and row
        found |= {"b", "h", "q"}
    if op == "chosen":
        found |= {"b", "h", "q", "k"}
    if op == "pooled":
        found |= {"b", "h", "d", "i" if str(attr).startswith("query") else "j"}
    return found - {"d"} if op == "total" else found


_TOKEN = object()
_INTERNED: weakref.WeakValueDictionary[tuple[object, ...], Node] = weakref.WeakValueDictionary()


def make(op: str, *args: Node, attr: Attribute = None, kind: Kind | None = None) -> Node:
    """The node of an operation; its kind follows from the op table, or is given for a leaf.

    >>> make("add", index("q"), constant(1)) is make("add", index("q"), constant(1))
    True
    """
    entry = OPS[op]
    if not entry.is_leaf:
        letters = "".join(arg.kind[0] for arg in args)
        for signature in entry.signatures:
            takes, gives = signature.split("->")
            if takes == letters:
                kind = KIND_OF_LETTER[gives]
                break
        else:
            raise TypeError(f"{op} does not take {letters!r}: {entry.signatures}")
    assert kind is not None, op
    # repr tells 1, 1.0, True and -0.0 apart and finds nan again.
    key = (op, *(id(arg) for arg in args), repr(attr), kind)
    node = _INTERNED.get(key)
    if node is None:
        node = Node(op, args, attr, kind, _TOKEN)
        node = _INTERNED.setdefault(key, node)
    return node


def restore(op: str, args: tuple[Node, ...], attr: Attribute, kind: Kind) -> Node:
    """The interned node of a pickled one."""
    return make(op, *args, attr=attr, kind=kind)


def constant(value: bool | int | float) -> Node:
    if isinstance(value, bool):
        return make("const", attr=value, kind="bool")
    return make("const", attr=value, kind="int" if isinstance(value, int) else "float")


def index(name: str) -> Node:
    return make("index", attr=name, kind="int")


def size(name: str) -> Node:
    return make("size", attr=name, kind="int")


def bound(name: str) -> Node:
    return make("bound", attr=name, kind="int")


def scalar(name: str, kind: Kind) -> Node:
    return make("scalar", attr=name, kind=kind)


def lookup(tensor: str, kind: Kind, *indices: Node) -> Node:
    return make("lookup", *indices, attr=tensor, kind=kind)


def dot(tensor: str, *indices: Node) -> Node:
    return make("dot", *indices, attr=tensor, kind="float")


def chosen(select: str) -> Node:
    return make("chosen", attr=select, kind="bool")


def pooled(vector: str) -> Node:
    return make("pooled", attr=vector, kind="float")


def total(node: Node) -> Node:
    """The sum over the head dimension d."""
    return make("total", node, kind="float")


TRUE = constant(True)
FALSE = constant(False)
SCORE = make("score", kind="float")
OUT = make("out", kind="float")


def is_const(node: Node, value: bool | int | float | None = None) -> bool:
    """Whether the node is a constant (of that very value and kind, if one is given)."""
    if node.op != "const":
        return False
    return value is None or (type(node.attr) is type(value) and node.attr == value)


def topological(*roots: Node) -> list[Node]:
    """Every node below the roots once, arguments before users, in a stable order."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if id(root) in seen:
            continue
        seen.add(id(root))
        stack.append((root, iter(root.args)))
        while stack:
            node, rest = stack[-1]
            for arg in rest:
                if id(arg) not in seen:
                    seen.add(id(arg))
                    stack.append((arg, iter(arg.args)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def rebuild(root: Node, change: Callable[[Node, tuple[Node, ...]], Node]) -> Node:
    """The root with `change(node, new_args)` applied to every node, arguments first."""
    done: dict[Node, Node] = {}
    for node in topological(root):
        done[node] = change(node, tuple(done[arg] for arg in node.args))
    return done[root]


def with_args(node: Node, args: tuple[Node, ...]) -> Node:
    """The same operation on other arguments."""
    return node if args == node.args else make(node.op, *args, attr=node.attr, kind=node.kind)


def substitute(root: Node, values: dict[Node, Node]) -> Node:
    """The root with leaves (or whole nodes) replaced.

    >>> substitute(make("add", index("q"), constant(1)), {index("q"): index("k")})
    add(index('k'), const(1))
    """
    return rebuild(root, lambda node, args: values.get(node) or with_args(node, args))


def find(root: Node, *ops: str) -> list[Node]:
    """All nodes below the root with one of these ops, in topological order."""
    return [node for node in topological(root) if node.op in ops]


def is_finite(node: Node) -> bool:
    """Whether a constant is finite."""
    return math.isfinite(node.value)
