"""Selects become tensors of a call: `chosen` leaves turn into lookups, or into lists of blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from attndsl.ir.nodes import (
    FALSE,
    TRUE,
    Node,
    chosen,
    constant,
    find,
    index,
    is_const,
    lookup,
    make,
    rebuild,
    size,
    substitute,
    topological,
    with_args,
)
from attndsl.ir.program import Counted, Program, Routed, Select, Tensor
from attndsl.transform.simplify import simplified

Form = Literal["lists", "table"]


def form_of(program: Program) -> Form:
    """What the choices of a program are best kept as.

    "lists"  the blocks of every row, where each row chooses for itself: attending gathers the rows
             that chose a block. The mask must name one select, and only have more pairs for it
    "table"  a bool for every pair of blocks: tiles are told apart by counts of rectangles
    """
    used = used_selects(program)
    if len(used) != 1 or not has_lists(used[0]):
        return "table"
    return "lists" if is_positive(program.mask, chosen(used[0].name)) else "table"


def used_selects(program: Program) -> list[Select]:
    """The selects that the mask names, in the order of the program."""
    names = {node.name for node in find(program.mask, "chosen")}
    return [select for select in program.selects if select.name in names]


def has_lists(select: Select) -> bool:
    """Whether every row chooses for itself, a number of blocks that is known when it is called."""
    if not is_const(select.rows, 1):
        return False
    if select.keep == "given":
        return True
    return select.keep == "top" and select.limit is not None and most_of(select.limit) is not None


def most_of(limit: Node) -> Node | None:
    """A number that sizes and scalars determine and that a limit never passes: the limit itself, or
    what bounds it, as in `min(budget[h], 8)`; None where there is none."""
    if not limit.varies and not find(limit, "lookup"):
        return limit
    bounds = [most_of(arg) for arg in limit.args if arg.kind == limit.kind]
    known = [bound for bound in bounds if bound is not None]
    if limit.op == "min" and known:
        return known[0] if len(known) == 1 else make("min", *known)
    if limit.op in ("max", "where") and len(known) == 2:
        return make("max", *known)
    return None


def is_positive(mask: Node, leaf: Node) -> bool:
    """Whether a pair that takes part where the leaf is false takes part where it is true: the leaf
    stands below `and`, `or` and branches of conditionals only."""
    for node in topological(mask):
        if node.op in ("and", "or"):
            continue
        below = node.args[:1] if node.op == "where" and node.kind == "bool" else node.args
        if any(leaf in topological(arg) for arg in below):
            return False
    return True


def route(program: Program, form: Form, shifted: Collection[str] = ()) -> Program:
    """The program without selects: what they choose is in tensors that a call adds to the user's.

    The tensors come behind the user's parameters, select by select, without those that the mask
    does not name. N stands for the name of the select; heads are H, or Hk per group.

    "lists"  N: int [B, heads, Nq, T], see `Routed`
    "table"  N: bool [B, heads, Ni, Nj] and N_sums: int [B, heads, Ni + 1, Nj + 1], see `Counted`;
             where `shifted` names the "q_offset", the "k_offset", for they may not be 0, also
             N_i0, N_j0: int [B], the index of the first block of queries, of keys
    """
    used = used_selects(program)
    if form == "lists":
        assert form_of(program) == "lists"
        return with_lists(program, used[0])
    parameters = list(program.parameters)
    names = Names(program)
    counted: list[Counted] = []
    values: dict[Node, Node] = {}
    for select in used:
        made, value = table_of(select, names, shifted)
        parameters += made
        values[chosen(select.name)] = value
        where = at_positions(select.where, select)
        counted.append(Counted(made[0].name, made[1].name, where))
    changed = replaced(program, program.mask, values)
    return replace(
        changed, parameters=tuple(parameters), selects=(), counted=tuple(counted), routed=None
    )


class Names:
    """Names for what is added to a program: those that it has itself get an underscore."""

    def __init__(self, program: Program) -> None:
        self._taken = {p.name for p in program.parameters} | set(program.bound_dims)

    def fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def with_lists(program: Program, select: Select) -> Program:
    """The program whose one select is a list of blocks for every row."""
    names = Names(program)
    heads = size("Hk" if select.per_group else "H")
    name = names.fresh(select.name)
    dims = (size("B"), heads, size("Nq"), size(names.fresh(f"{select.name}_T")))
    leaf = chosen(select.name)
    base = replaced(program, program.mask, {leaf: FALSE})
    rest = simplified(substitute(program.mask, {leaf: TRUE}))
    mask = simplified(make("and", rest, make("not", base.mask)))
    where = at_positions(select.where, select)
    routed = Routed(name, select.columns, mask, select.per_group, where)
    parameters = (*program.parameters, Tensor(name, "int", dims))
    origins = {**base.origins}
    if program.mask in program.origins:
        origins[mask] = program.origins[program.mask]
    return replace(base, parameters=parameters, selects=(), routed=routed, origins=origins)


def table_of(select: Select, names: Names, shifted: Collection[str]) -> tuple[list[Tensor], Node]:
    """The parameters of a select in form "table", and what it says of a pair."""
    name = names.fresh(select.name)
    batch, heads = size("B"), size("Hk" if select.per_group else "H")
    extents = [size(names.fresh(f"{name}_{letters}")) for letters in ("Ni", "Nj")]
    more = [make("add", extent, constant(1)) for extent in extents]
    made = [
        Tensor(name, "bool", (batch, heads, *extents)),
        Tensor(names.fresh(f"{name}_sums"), "int", (batch, heads, *more)),
    ]
    blocks = []
    for letter, offset, position, rows in (
        ("i", "q_offset", "q", select.rows),
        ("j", "k_offset", "k", select.columns),
    ):
        block = make("floordiv", index(position), rows)
        if offset in shifted:
            made.append(Tensor(names.fresh(f"{name}_{letter}0"), "int", (batch,)))
            block = make("sub", block, lookup(made[-1].name, "int", index("b")))
        blocks.append(block)
    head = index("h")
    if select.per_group:
        head = make("floordiv", head, size("G"))
    return made, simplified(lookup(name, "bool", index("b"), head, *blocks))


def at_positions(where: Node, select: Select) -> Node:
    """A condition on blocks as one on positions of their queries and keys."""
    return simplified(
        substitute(
            where,
            {
                index("i"): make("floordiv", index("q"), select.rows),
                index("j"): make("floordiv", index("k"), select.columns),
            },
        )
    )


def replaced(program: Program, mask: Node, values: dict[Node, Node]) -> Program:
    """The program with leaves of its mask replaced; origins follow their nodes."""
    origins = dict(program.origins)

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        new = values.get(node) or with_args(node, args)
        if node in program.origins and not is_const(new):
            origins.setdefault(new, program.origins[node])
        return new

    mapping: dict[Node, Node] = {}
    simple = simplified(rebuild(mask, change), mapping)
    for old, new in mapping.items():
        if old in origins and not is_const(new):
            origins.setdefault(new, origins[old])
    return replace(program, mask=simple, origins=origins)
