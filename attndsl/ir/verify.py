"""What must hold for a program in the IR; a violation is a bug of the compiler."""

from __future__ import annotations

from attndsl.ir.nodes import Node, make, topological
from attndsl.ir.program import INDICES, SIZES, Program, Scalar
from attndsl.ir.text import roots

Allowed = frozenset[str]
PAIR: Allowed = frozenset(("b", "h", "q", "k"))
ROW: Allowed = frozenset(("b", "h", "q"))


def verify(program: Program) -> Program:
    """The program itself, or AssertionError with what does not hold and the node."""
    scalars = {s.name: s for s in program.scalars}
    tensors = {t.name: t for t in program.tensors}
    sizes = {*SIZES, *program.bound_dims}
    for node in topological(*roots(program)):
        check_interned(node)
        if node.op == "scalar":
            require(node.name in scalars, node, "names no scalar parameter")
            require(scalars[node.name].kind == node.kind, node, "has another kind than declared")
        elif node.op == "size":
            require(node.name in sizes, node, "names no size")
        elif node.op == "index":
            require(node.name in (*INDICES, "d"), node, "names no index")
        elif node.op in ("lookup", "dot"):
            require(node.name in tensors, node, "names no tensor")
            tensor = tensors[node.name]
            rank = len(tensor.dims) - (node.op == "dot")
            require(len(node.args) == rank, node, "has another number of indices than dimensions")
            require(all(a.kind == "int" for a in node.args), node, "has an index that is no int")
            require(tensor.kind == node.kind, node, "has another kind than its tensor")
    check_places(program)
    return program


def check_places(program: Program) -> None:
    """Which indices each statement may vary with."""
    place(program.mask, "bool", PAIR, "mask")
    require(not any(n.op == "dot" for n in topological(program.mask)), program.mask, "uses dot")
    place(program.score, "float", PAIR | {"score"}, "score")
    weights = program.weights
    require((weights.value is None) == (weights.form == "softmax"), program.score, "weights form")
    if weights.value is not None:
        place(weights.value, "float", PAIR | {"score"}, "weights")
    if weights.sink is not None:
        place(weights.sink, "float", ROW, "sink")
    if program.output is not None:
        place(program.output, "float", ROW | {"d", "out"}, "output")
    for parameter in program.parameters:
        if isinstance(parameter, Scalar):
            continue
        for dim in parameter.dims:
            place(dim, "int", frozenset(), "dimension")


def place(node: Node, kind: str, allowed: Allowed, what: str) -> None:
    require(node.kind == kind, node, f"stands as {what} but is no {kind}")
    require(node.varies <= allowed, node, f"stands as {what} but varies with more than it may")


def check_interned(node: Node) -> None:
    again = make(node.op, *node.args, attr=node.attr, kind=node.kind)
    require(again is node, node, "is not interned")


def require(holds: bool, node: Node, what: str) -> None:
    if not holds:
        raise AssertionError(f"IR: {node!r} {what}")
