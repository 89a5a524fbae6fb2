"""Numbers that a call gives to expressions of its sizes and scalars, on the host."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import Node, find, topological
from attndsl.ir.program import Select
from attndsl.transform.fold import FOLD, Value
from attndsl.transform.route import most_of


def is_number(node: Node) -> bool:
    """Whether sizes and scalars alone determine a value."""
    return not node.varies and all(n.op != "lookup" for n in topological(node))


def number_of(
    node: Node,
    sizes: Mapping[str, int],
    scalars: Mapping[str, Value],
    bounds: Mapping[str, int] | None = None,
) -> Value:
    """The value of an expression without lookups; floats are rounded to float32 at every step.

    Raises ArithmeticError or ValueError where Python has no such number.
    """
    found: dict[Node, Value] = {}
    for item in topological(node):
        match item.op:
            case "const":
                value = item.value
            case "size":
                value = sizes[item.name]
            case "scalar":
                value = scalars[item.name]
            case "bound":
                assert bounds is not None
                value = bounds[item.name]
            case op:
                value = FOLD[op](*(found[arg] for arg in item.args))
        found[item] = ctypes.c_float(value).value if item.kind == "float" else value
    return found[node]


def block_sizes(
    select: Select, sizes: Mapping[str, int], scalars: Mapping[str, Value]
) -> tuple[int, int]:
    """Rows and columns of the blocks of a select; ArgumentError below 1."""
    extents = []
    for node in (select.rows, select.columns):
        extent = checked(node, select, sizes, scalars)
        if extent < 1:
            raise ArgumentError(
                f"the blocks of `{select.name}` have {extent} positions; they need at least 1"
            )
        extents.append(extent)
    return extents[0], extents[1]


def most_kept(select: Select, sizes: Mapping[str, int], scalars: Mapping[str, Value]) -> int | None:
    """n of `keep top n`, 0 or more; None where it is no number for the whole call."""
    if select.keep != "top" or select.limit is None or not is_number(select.limit):
        return None
    if any(node.kind == "float" for node in find(select.limit, "scalar")):
        return None  # a traced graph may compute it
    limit = checked(select.limit, select, sizes, scalars)
    return max(limit, 0) if type(limit) is int else limit


def list_room(select: Select, sizes: Mapping[str, int], scalars: Mapping[str, Value]) -> int | None:
    """The most blocks that `keep top` keeps of any row; None where nothing bounds it."""
    bound = None if select.limit is None else most_of(select.limit)
    return most_kept(replace(select, limit=bound), sizes, scalars)


def checked(
    node: Node, select: Select, sizes: Mapping[str, int], scalars: Mapping[str, Value]
) -> int:
    try:
        value = number_of(node, sizes, scalars)
    except (ArithmeticError, ValueError) as error:
        raise ArgumentError(f"a number of `{select.name}` has no value here: {error}") from error
    assert not isinstance(value, float)
    return value
