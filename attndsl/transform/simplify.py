"""Rewrite a program's nodes to shorter ones of the same value.

Rules hold for every value of the arguments, infinities and NaN included where they are floats: so
`x * 0.0` stays. Each rule has its algebra beside it; tests prove the integer and boolean ones with
z3 and check all of them by evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from attndsl.ir.nodes import FALSE, OUT, TRUE, Node, constant, is_const, make, rebuild
from attndsl.ir.ops import OPS
from attndsl.ir.program import Program, Tensor
from attndsl.transform.fold import fold

Rule = Callable[..., Node | None]
ZERO, ONE = constant(0), constant(1)


def simplify(program: Program) -> Program:
    """The program with simplified nodes; origins follow their nodes."""
    mapping: dict[Node, Node] = {}

    def visit(node: Node) -> Node:
        return simplified(node, mapping)

    weights = program.weights
    parameters = tuple(
        dataclasses.replace(p, dims=tuple(visit(d) for d in p.dims)) if isinstance(p, Tensor) else p
        for p in program.parameters
    )
    grid = program.grid
    output = visit(program.output) if program.output else None
    result = dataclasses.replace(
        program,
        parameters=parameters,
        mask=visit(program.mask),
        score=visit(program.score),
        selects=tuple(
            dataclasses.replace(
                select,
                rows=visit(select.rows),
                columns=visit(select.columns),
                where=visit(select.where),
                rank=visit(select.rank) if select.rank else None,
                limit=visit(select.limit) if select.limit else None,
            )
            for select in program.selects
        ),
        weights=dataclasses.replace(
            weights,
            value=visit(weights.value) if weights.value else None,
            sink=visit(weights.sink) if weights.sink else None,
        ),
        output=None if output is OUT else output,  # `output out` says nothing
        grid=grid
        and dataclasses.replace(
            grid, extents=tuple(visit(e) for e in grid.extents), start=visit(grid.start)
        ),
    )
    origins = dict(program.origins)
    for old, spans in program.origins.items():
        new = mapping.get(old)
        if new is not None and not is_const(new):
            origins[new] = tuple(dict.fromkeys((*origins.get(new, ()), *spans)))
    return dataclasses.replace(result, origins=origins)


def simplified(root: Node, mapping: dict[Node, Node] | None = None) -> Node:
    """One expression, simplified; `mapping` collects old node -> new node.

    >>> from attndsl.ir.nodes import index
    >>> simplified(make("add", make("mul", index("q"), constant(1)), constant(0)))
    index('q')
    """
    done: dict[Node, Node] = {} if mapping is None else mapping

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        new = build(node.op, *args) if node.args and not OPS[node.op].is_leaf else node
        if OPS[node.op].is_leaf and args != node.args:
            new = make(node.op, *args, attr=node.attr, kind=node.kind)
        done[node] = new
        return new

    return rebuild(root, change)


def build(op: str, *args: Node) -> Node:
    """The simplest node known for an operation on arguments that are simple themselves."""
    if all(arg.op == "const" for arg in args):
        folded = fold(op, args)
        if folded is not None:
            return folded
    for rule in RULES.get(op, ()):
        found = rule(*args)
        if found is not None:
            return found
    return make(op, *args)


def number(value: int, like: Node) -> Node:
    """0 or 1 of the kind of another node."""
    return constant(float(value)) if like.kind == "float" else constant(value)


def is_number(node: Node, value: int) -> bool:
    return node.op == "const" and node.kind != "bool" and node.value == value


def add_zero(a: Node, b: Node) -> Node | None:
    # x + 0 -> x; 0 + x -> x  (-0.0 + 0.0 is 0.0: equal, and no op tells them apart but division)
    return a if is_number(b, 0) else b if is_number(a, 0) else None


def add_constants(a: Node, b: Node) -> Node | None:
    # (x + c) + d -> x + (c + d), ints only; c + x -> x + c
    if a.op == "const" and a.kind == "int":
        return build("add", b, a)
    if b.op == "const" and b.kind == "int" and a.op == "add" and a.args[1].op == "const":
        return build("add", a.args[0], build("add", a.args[1], b))
    return None


def sub_zero(a: Node, b: Node) -> Node | None:
    # x - 0 -> x; x - x -> 0 (ints); 0 - x -> -x
    if is_number(b, 0):
        return a
    if a is b and a.kind == "int":
        return ZERO
    return build("neg", b) if is_number(a, 0) and a.kind == "int" else None


def mul_one(a: Node, b: Node) -> Node | None:
    # x * 1 -> x; 1 * x -> x; x * 0 -> 0 (ints); x * -1 -> -x
    for x, c in ((a, b), (b, a)):
        if is_number(c, 1):
            return x
        if is_number(c, 0) and c.kind == "int":
            return ZERO
        if is_number(c, -1):
            return build("neg", x)
    return None


def div_one(a: Node, b: Node) -> Node | None:
    # x / 1 -> x
    return a if is_number(b, 1) else None


def floordiv_one(a: Node, b: Node) -> Node | None:
    # x // 1 -> x; 0 // x -> 0; x // 0 -> 0 (the language is total)
    if is_number(b, 1):
        return a
    return ZERO if is_number(a, 0) or is_number(b, 0) else None


def floordiv_twice(a: Node, b: Node) -> Node | None:
    # x // c // d -> x // (c * d) for constants c, d > 0
    if a.op == "floordiv" and b.op == "const" and a.args[1].op == "const":
        c, d = a.args[1], b
        if c.value > 0 and d.value > 0:
            product = build("mul", c, d)
            return build("floordiv", a.args[0], product) if product.op == "const" else None
    return None


def floormod_one(a: Node, b: Node) -> Node | None:
    # x % 1 -> 0; x % 0 -> 0; (x % c) % c -> x % c
    if is_number(b, 1) or is_number(b, 0) or is_number(a, 0):
        return ZERO
    return a if a.op == "floormod" and a.args[1] is b else None


def neg_neg(a: Node) -> Node | None:
    # --x -> x; -(x - y) -> y - x (ints)
    if a.op == "neg":
        return a.args[0]
    return build("sub", a.args[1], a.args[0]) if a.op == "sub" and a.kind == "int" else None


def abs_abs(a: Node) -> Node | None:
    # ||x|| -> |x|; |-x| -> |x|
    if a.op == "abs":
        return a
    return build("abs", a.args[0]) if a.op == "neg" else None


def same_argument(a: Node, b: Node) -> Node | None:
    # min(x, x) -> x; max(x, x) -> x; x and x -> x; x or x -> x
    return a if a is b else None


def equal_arguments_true(a: Node, b: Node) -> Node | None:
    # x <= x, x == x -> true (ints and bools: a float may be NaN)
    return TRUE if a is b and a.kind != "float" else None


def equal_arguments_false(a: Node, b: Node) -> Node | None:
    # x < x, x != x -> false (ints and bools)
    return FALSE if a is b and a.kind != "float" else None


def compare_bool(a: Node, b: Node) -> Node | None:
    # x == true -> x; x == false -> not x
    for x, c in ((a, b), (b, a)):
        if c.op == "const" and c.kind == "bool":
            return x if c.value else build("not", x)
    return None


def compare_bool_not(a: Node, b: Node) -> Node | None:
    # x != true -> not x; x != false -> x
    found = compare_bool(a, b)
    return build("not", found) if found is not None else None


def and_const(a: Node, b: Node) -> Node | None:
    # x and true -> x; x and false -> false
    for x, c in ((a, b), (b, a)):
        if c.op == "const":
            return x if c.value else FALSE
    return None


def or_const(a: Node, b: Node) -> Node | None:
    # x or false -> x; x or true -> true
    for x, c in ((a, b), (b, a)):
        if c.op == "const":
            return TRUE if c.value else x
    return None


def not_inner(a: Node) -> Node | None:
    # not not x -> x; not (x < y) -> y <= x, not (x <= y) -> y < x (ints); not (x == y) -> x != y
    if a.op == "not":
        return a.args[0]
    if a.op in ("eq", "ne"):
        return build("ne" if a.op == "eq" else "eq", *a.args)
    if a.op in ("lt", "le") and a.args[0].kind == "int":
        return build("le" if a.op == "lt" else "lt", a.args[1], a.args[0])
    return None


def where_const(c: Node, a: Node, b: Node) -> Node | None:
    # a if true else b -> a; a if c else a -> a; a if not c else b -> b if c else a
    if c.op == "const":
        return a if c.value else b
    if a is b:
        return a
    return build("where", c.args[0], b, a) if c.op == "not" else None


def where_bool(c: Node, a: Node, b: Node) -> Node | None:
    # true if c else b -> c or b; false if c else b -> not c and b;
    # a if c else true -> not c or a; a if c else false -> c and a
    if a.kind != "bool":
        return None
    if a.op == "const":
        return build("or", c, b) if a.value else build("and", build("not", c), b)
    if b.op == "const":
        return build("or", build("not", c), a) if b.value else build("and", c, a)
    return None


def float_of_float(a: Node) -> Node | None:
    # floor(float(i)) -> i, and so on: |i| < 2^24 need not hold, the int was there first
    return a.args[0] if a.op == "to_float" else None


def idempotent(name: str) -> Rule:
    return lambda a: a if a.op == name else None


RULES: dict[str, tuple[Rule, ...]] = {
    "add": (add_zero, add_constants),
    "sub": (sub_zero,),
    "mul": (mul_one,),
    "div": (div_one,),
    "floordiv": (floordiv_one, floordiv_twice),
    "floormod": (floormod_one,),
    "neg": (neg_neg,),
    "abs": (abs_abs,),
    "min": (same_argument,),
    "max": (same_argument,),
    "lt": (equal_arguments_false,),
    "le": (equal_arguments_true,),
    "eq": (equal_arguments_true, compare_bool),
    "ne": (equal_arguments_false, compare_bool_not),
    "and": (and_const, same_argument),
    "or": (or_const, same_argument),
    "not": (not_inner,),
    "where": (where_const, where_bool),
    "floor": (float_of_float,),
    "ceil": (float_of_float,),
    "round": (float_of_float,),
    "trunc": (float_of_float,),
    "relu": (idempotent("relu"),),
}
