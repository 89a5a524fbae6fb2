"""Tables of blocks whose true entries are counted: what a rectangle of one holds, as nodes.

Positions of a tile lie in blocks of neighbouring indices: a rectangle of the table, whose true
entries are a difference of four counts. No entry is read, and no block of a tile is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from attndsl.analysis import build
from attndsl.analysis.values import MAYBE, Truth, Value
from attndsl.ir.nodes import TRUE, Node, constant, find, lookup, make, substitute, topological
from attndsl.ir.program import Program
from attndsl.transform.simplify import simplified

ZERO, ONE = constant(0), constant(1)


@dataclass(frozen=True)
class Table:
    """A counted table (`ir.program.Counted`): the name of its sums, how many rows and columns of
    blocks it has."""

    sums: str
    rows: Node
    columns: Node

    def truth(self, outer: Sequence[Node], i: Value, j: Value) -> Truth:
        """Of the entries [outer.., i, j] for indices in two intervals, neither of them empty.

        Beyond the table an entry is false. The count is all of them only if none lies there.
        """
        if i.lo is None or i.hi is None or j.lo is None or j.hi is None:
            return MAYBE
        i_lo, i_end = clipped(i.lo, i.hi, self.rows)
        j_lo, j_end = clipped(j.lo, j.hi, self.columns)

        def before(row: Node, column: Node) -> Node:
            return lookup(self.sums, "int", *outer, row, column)

        count = make(
            "sub",
            make("sub", before(i_end, j_end), before(i_lo, j_end)),
            make("sub", before(i_end, j_lo), before(i_lo, j_lo)),
        )
        extent = make("mul", width(i.lo, i.hi), width(j.lo, j.hi))
        sound = build.both(i.sound, j.sound)
        return Truth(
            build.either(build.negation(sound), make("lt", ZERO, count)),
            build.both(sound, make("eq", count, extent)),
        )


Tables = Mapping[str, Table]
NO_TABLES: Tables = MappingProxyType({})


def clipped(first: Node, last: Node, extent: Node) -> tuple[Node, Node]:
    """The indices first .. last that lie in 0 .. extent - 1: the first of them, and their end."""
    ends = (first, build.add(last, ONE))
    low, end = (make("min", make("max", index, ZERO), extent) for index in ends)
    return low, end


def width(first: Node, last: Node) -> Node:
    return build.add(build.sub(last, first), ONE)


def counted_tables(program: Program) -> Tables:
    """The counted tables of a program by name."""
    found = {}
    for counted in program.counted:
        rows, columns = program.tensor(counted.table).dims[-2:]
        found[counted.table] = Table(counted.sums, rows, columns)
    return found


def limited_mask(program: Program) -> Node:
    """The mask, each counted table in it joined with what is known of where it is true: the same
    for every pair. Segments, which know nothing of tables, are solved for it.

    What floats decide is left out: who made the table may have rounded otherwise.
    """
    values: dict[Node, Node] = {}
    wheres = {counted.table: exact_part(counted.where) for counted in program.counted}
    for node in find(program.mask, "lookup"):
        where = wheres.get(node.name, TRUE)
        if where is not TRUE:
            values[node] = make("and", node, where)
    return simplified(substitute(program.mask, values)) if values else program.mask


def exact_part(condition: Node) -> Node:
    """The conjuncts of a condition in which no float occurs."""
    if condition.op == "and":
        return build.both(*map(exact_part, condition.args))
    is_exact = all(node.kind != "float" for node in topological(condition))
    return condition if is_exact else TRUE
