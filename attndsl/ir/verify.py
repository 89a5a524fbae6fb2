"""What must hold for a program in the IR; a violation is a bug of the compiler."""

from __future__ import annotations

from attndsl.ir.nodes import Node, make, topological
from attndsl.ir.program import INDICES, SIZES, Program, Scalar, Select
from attndsl.ir.text import roots

Allowed = frozenset[str]
PAIR: Allowed = frozenset(("b", "h", "q", "k"))
ROW: Allowed = frozenset(("b", "h", "q"))
BLOCKS: Allowed = frozenset(("b", "h", "i", "j"))
BLOCK_ROW: Allowed = frozenset(("b", "h", "i"))
NOWHERE: Allowed = frozenset()
VECTORS = frozenset(
    f"{of}{how}" for of in ("query", "key") for how in ("", "_mean", "_max", "_min")
)


def verify(program: Program) -> Program:
    """The program itself, or AssertionError with what does not hold and the node."""
    scalars = {s.name: s for s in program.scalars}
    tensors = {t.name: t for t in program.tensors}
    sizes = {*SIZES, *program.bound_dims}
    selects = {s.name for s in program.selects}
    require(len(selects) == len(program.selects), program.mask, "has two selects of one name")
    for node in topological(*roots(program)):
        check_interned(node)
        if node.op == "scalar":
            require(node.name in scalars, node, "names no scalar parameter")
            require(scalars[node.name].kind == node.kind, node, "has another kind than declared")
        elif node.op == "size":
            require(node.name in sizes, node, "names no size")
        elif node.op == "index":
            require(node.name in (*INDICES, "d", "i", "j"), node, "names no index")
        elif node.op == "chosen":
            require(node.name in selects, node, "names no select")
        elif node.op == "pooled":
            require(node.name in VECTORS, node, "names no vector")
        elif node.op == "total":
            require("d" in node.args[0].varies, node, "adds up what is no vector")
            require(node.args[0].kind == "float", node, "adds up what is no float")
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
            place(dim, "int", NOWHERE, "dimension")
    for select in program.selects:
        check_select(select, program)
    check_routes(program)
    ranks = {n for s in program.selects if s.rank for n in topological(s.rank)}
    for node in topological(*roots(program)):
        require(node.op not in ("pooled", "total") or node in ranks, node, "stands outside a rank")
    others = [root for root in roots(program) if root is not program.mask]
    for node in topological(*others):
        require(node.op != "chosen", node, "stands outside the mask")


def check_select(select: Select, program: Program) -> None:
    """What the parts of a select may vary with, and which of them there are."""
    place(select.rows, "int", NOWHERE, "length of a block")
    place(select.columns, "int", NOWHERE, "length of a block")
    place(select.where, "bool", BLOCKS, "where")
    is_given = select.keep == "given"
    require((select.rank is None) == is_given, select.where, "rank and keep do not fit")
    require((select.limit is None) == is_given, select.where, "limit and keep do not fit")
    require(bool(select.given) == is_given, select.where, "given and keep do not fit")
    if select.rank is not None and select.limit is not None:
        place(select.rank, "float", BLOCKS, "rank")
        place(select.limit, "int" if select.keep == "top" else "float", BLOCK_ROW, "limit")
    if is_given:
        found = [t for t in program.tensors if t.name == select.given]
        fits = len(found) == 1 and found[0].kind == "int" and len(found[0].dims) == 4
        require(fits, select.where, "given names no int tensor of 4 dimensions")


def check_routes(program: Program) -> None:
    """That what became of the selects names tensors, and may vary with."""
    kinds = {t.name: t.kind for t in program.tensors}
    for counted in program.counted:
        require(kinds.get(counted.table) == "bool", program.mask, f"no table {counted.table}")
        require(kinds.get(counted.sums) == "int", program.mask, f"no sums {counted.sums}")
    routed = program.routed
    if routed is not None:
        require(kinds.get(routed.lists) == "int", program.mask, f"no lists {routed.lists}")
        place(routed.columns, "int", NOWHERE, "length of a block")
        place(routed.mask, "bool", PAIR, "mask of lists")


def place(node: Node, kind: str, allowed: Allowed, what: str) -> None:
    require(node.kind == kind, node, f"stands as {what} but is no {kind}")
    require(node.varies <= allowed, node, f"stands as {what} but varies with more than it may")


def check_interned(node: Node) -> None:
    again = make(node.op, *node.args, attr=node.attr, kind=node.kind)
    require(again is node, node, "is not interned")


def require(holds: bool, node: Node, what: str) -> None:
    if not holds:
        raise AssertionError(f"IR: {node!r} {what}")
