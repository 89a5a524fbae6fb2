"""The text form of a program: one node a line, read back to the very same nodes.

    program causal
    scalar window int 4096
    tensor doc int %0 %1
    %0 = size B
    ...
    mask %9
    score %10
    weights softmax
    end

Values are written as Python writes them. It carries everything that the compiler needs after
lowering, so it is also the handle under which a program travels through torch's operators.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from attndsl.ir.nodes import Attribute, Node, make, topological
from attndsl.ir.ops import OPS, Kind
from attndsl.ir.program import (
    Counted,
    Grid,
    Program,
    Routed,
    Scalar,
    Select,
    Tensor,
    Weights,
)

HEADER = "attndsl-ir 1"


def roots(program: Program) -> list[Node]:
    """Every node that the program names, in a fixed order."""
    found: list[Node] = []
    for tensor in program.tensors:
        found += tensor.dims
    if program.grid is not None:
        found += [*program.grid.extents, program.grid.start]
    for select in program.selects:
        found += [select.rows, select.columns, select.where]
        found += [node for node in (select.rank, select.limit) if node]
    found += [counted.where for counted in program.counted]
    if program.routed is not None:
        found += [program.routed.columns, program.routed.mask, program.routed.where]
    found += [program.mask, program.score]
    found += [n for n in (program.weights.value, program.weights.sink, program.output) if n]
    return found


def dump(program: Program) -> str:
    """The program as text."""
    numbers: dict[Node, str] = {}
    rows = [HEADER, f"program {program.name}"]
    rows += [f"const {name} {value!r}" for name, value in program.consts]
    for node in topological(*roots(program)):
        numbers[node] = f"%{len(numbers)}"
        rows.append(f"{numbers[node]} = {describe(node, numbers)}")
    for parameter in program.parameters:
        if isinstance(parameter, Scalar):
            rows.append(f"scalar {parameter.name} {parameter.kind} {parameter.default!r}")
        else:
            dims = " ".join(numbers[d] for d in parameter.dims)
            rows.append(f"tensor {parameter.name} {parameter.kind} {dims}")
    if program.grid is not None:
        grid = program.grid
        axes = " ".join(f"{a} {numbers[e]}" for a, e in zip(grid.axes, grid.extents, strict=True))
        rows.append(f"grid {numbers[grid.start]} {axes}")
    for select in program.selects:
        nodes = (select.rows, select.columns, select.where, select.rank, select.limit)
        words = [numbers[node] if node else "-" for node in nodes]
        group = "group" if select.per_group else "head"
        ending = " ".join([*words, select.given or "-"])
        rows.append(f"select {select.name} {select.keep} {group} {ending}")
    for counted in program.counted:
        rows.append(f"counted {counted.table} {counted.sums} {numbers[counted.where]}")
    if program.routed is not None:
        routed = program.routed
        group = "group" if routed.per_group else "head"
        ending = " ".join(numbers[n] for n in (routed.columns, routed.mask, routed.where))
        rows.append(f"routed {routed.lists} {group} {ending}")
    rows += [f"mask {numbers[program.mask]}", f"score {numbers[program.score]}"]
    weights = program.weights
    operand = weights.value or weights.sink
    rows.append(f"weights {weights.form}" + (f" {numbers[operand]}" if operand else ""))
    if program.output is not None:
        rows.append(f"output {numbers[program.output]}")
    return "\n".join([*rows, "end", ""])


def describe(node: Node, numbers: dict[Node, str]) -> str:
    words = [node.op]
    if node.op == "const":
        words.append(repr(node.attr))
    elif node.attr is not None:
        words.append(str(node.attr))
    if OPS[node.op].is_leaf and node.op not in ("const", "index", "size", "bound"):
        words.append(node.kind)
    return " ".join([*words, *(numbers[arg] for arg in node.args)])


def parse(text: str) -> Program:
    """The program that `dump` wrote. A text that it did not write raises ValueError."""
    lines = iter(text.splitlines())
    if next(lines, "") != HEADER:
        raise ValueError(f"not a program: the first line is not {HEADER!r}")
    nodes: dict[str, Node] = {}
    fields: dict[str, list[str]] = {}
    parameters: list[Scalar | Tensor] = []
    consts: list[tuple[str, bool | int | float]] = []
    selects: list[Select] = []
    counted: list[Counted] = []
    routed: Routed | None = None
    for words in split(lines):
        match words:
            case [number, "=", *rest]:
                nodes[number] = read_node(rest, nodes)
            case ["const", name, value]:
                constant_value = read_value(value)
                assert constant_value is not None
                consts.append((name, constant_value))
            case ["scalar", name, kind, default]:
                parameters.append(Scalar(name, read_kind(kind), read_value(default)))
            case ["tensor", name, kind, *dims]:
                parameters.append(Tensor(name, read_kind(kind), tuple(nodes[d] for d in dims)))
            case ["select", *rest]:
                selects.append(read_select(rest, nodes))
            case ["counted", table, sums, where]:
                counted.append(Counted(table, sums, nodes[where]))
            case ["routed", lists, group, columns, mask, where]:
                parts = (nodes[columns], nodes[mask], group == "group", nodes[where])
                routed = Routed(lists, *parts)
            case [key, *rest] if key in ("program", "grid", "mask", "score", "weights", "output"):
                fields[key] = rest
            case _:
                raise ValueError(f"not a line of a program: {' '.join(words)}")
    program = assemble(nodes, fields, tuple(parameters), tuple(consts))
    return replace(program, selects=tuple(selects), counted=tuple(counted), routed=routed)


def split(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        if line == "end":
            return
        yield line.split(" ")
    raise ValueError("the program's text ends before `end`")


def assemble(
    nodes: dict[str, Node],
    fields: dict[str, list[str]],
    parameters: tuple[Scalar | Tensor, ...],
    consts: tuple[tuple[str, bool | int | float], ...],
) -> Program:
    form, *operand = fields["weights"]
    given = nodes[operand[0]] if operand else None
    grid = None
    if "grid" in fields:
        start, *axes = fields["grid"]
        grid = Grid(tuple(axes[::2]), tuple(nodes[e] for e in axes[1::2]), nodes[start])
    return Program(
        name=fields["program"][0],
        parameters=parameters,
        mask=nodes[fields["mask"][0]],
        score=nodes[fields["score"][0]],
        weights=Weights(form, sink=given) if form == "softmax" else Weights(form, value=given),
        output=nodes[fields["output"][0]] if "output" in fields else None,
        grid=grid,
        consts=consts,
    )


def read_select(words: list[str], nodes: dict[str, Node]) -> Select:
    name, keep, group, rows, columns, where, rank, limit, given = words
    if keep not in ("top", "above", "mass", "given"):
        raise ValueError(f"not a way to keep: {keep}")
    return Select(
        name,
        nodes[rows],
        nodes[columns],
        keep,  # type: ignore[arg-type]
        None if rank == "-" else nodes[rank],
        nodes[where],
        None if limit == "-" else nodes[limit],
        "" if given == "-" else given,
        group == "group",
    )


def read_node(words: list[str], nodes: dict[str, Node]) -> Node:
    op, *rest = words
    if op not in OPS:
        raise ValueError(f"not an operation: {op}")
    args = [nodes[word] for word in rest if word.startswith("%")]
    names = [word for word in rest if not word.startswith("%")]
    if op == "const":
        value = read_value(names[0])
        assert value is not None
        kind: Kind = (
            "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        )
        return make(op, attr=value, kind=kind)
    if op in ("index", "size", "bound"):
        return make(op, attr=names[0], kind="int")
    if OPS[op].is_leaf:
        attr: Attribute = names[0] if len(names) > 1 else None
        return make(op, *args, attr=attr, kind=read_kind(names[-1]))
    return make(op, *args)


def read_kind(word: str) -> Kind:
    if word == "bool" or word == "int" or word == "float":
        return word  # type: ignore[return-value]
    raise ValueError(f"not a kind: {word}")


def read_value(word: str) -> bool | int | float | None:
    if word in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[word]
    if word in ("inf", "-inf", "nan") or any(c in word for c in ".e"):
        return float(word)
    return int(json.loads(word))
