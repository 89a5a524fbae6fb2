"""The value of an expression, on leaves that are tensors.

A branch of a conditional is evaluated on the elements that choose it, and on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attndsl.ir.nodes import Node
from attndsl.ir.ops import INT_OF_FLOAT

Number = bool | int | float


def floordiv(a: Tensor, b: Tensor) -> Tensor:
    """Python's `//` on ints, with `x // 0 = 0`."""
    nought = b == 0
    quotient = torch.div(a, torch.where(nought, 1, b), rounding_mode="floor")
    return torch.where(nought, 0, quotient)


def floormod(a: Tensor, b: Tensor) -> Tensor:
    """Python's `%` on ints, with `x % 0 = 0`."""
    nought = b == 0
    return torch.where(nought, 0, torch.remainder(a, torch.where(nought, 1, b)))


def to_int(rounded: Tensor) -> Tensor:
    limited = torch.nan_to_num(rounded.detach(), nan=-torch.inf).clamp(-INT_OF_FLOAT, INT_OF_FLOAT)
    return limited.to(torch.int64)


# Ops whose result is a plain function of their arguments; `to_float` alone depends on the dtype.
MEANINGS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": floordiv,
    "floormod": floormod,
    "floordiv_float": lambda a, b: torch.floor(a / b),
    "floormod_float": lambda a, b: a - b * torch.floor(a / b),
    "pow": torch.pow,
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "where": torch.where,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
    "floor": lambda x: to_int(torch.floor(x)),
    "ceil": lambda x: to_int(torch.ceil(x)),
    "round": lambda x: to_int(torch.round(x)),
    "trunc": lambda x: to_int(torch.trunc(x)),
    "bool_to_int": lambda x: x.to(torch.int64),
}


@dataclass
class Values:
    """Where the leaves of an expression take their values.

    dtype    the float dtype of the computation
    sizes, scalars, tensors   by name
    leaves   "b", "h", "q", "k", "d", "score", "out", "row" (the row of the query that `dot` reads)
             and the ends and summaries of a tile, by name; "chosen NAME" of a select; in the rank
             of one "i", "j" and "pooled NAME", where "d" is the last dimension: tensors that
             broadcast against each other, or functions that give them when they are first needed
    query    [B, H, Nq, D], for `dot`
    lanes    whether every leaf is a vector of the same length (or has no dimension): conditionals
             then evaluate each branch on its own lanes only
    """

    dtype: torch.dtype
    device: torch.device
    sizes: Mapping[str, int]
    scalars: Mapping[str, Number]
    tensors: Mapping[str, Tensor]
    leaves: dict[str, Tensor | Callable[[], Tensor]]
    query: Tensor | None = None
    lanes: bool = False
    done: dict[Node, Tensor] = field(default_factory=dict)
    parent: Values | None = None
    chosen: Tensor | None = None  # the parent's lanes that this is about

    def leaf(self, name: str) -> Tensor:
        value = self.leaves.get(name)
        if value is None and self.parent is not None:
            value = self.at_chosen(self.parent.leaf(name))
        assert value is not None, f"{name} has no value here"
        if not isinstance(value, Tensor):
            value = value()
        self.leaves[name] = value
        return value

    def known(self, node: Node) -> Tensor | None:
        """The value of a node if it has been computed, here or for all lanes."""
        value = self.done.get(node)
        if value is None and self.parent is not None:
            value = self.parent.known(node)
            if value is not None:
                value = self.done[node] = self.at_chosen(value)
        return value

    def at_chosen(self, value: Tensor) -> Tensor:
        return value[self.chosen] if value.dim() else value

    def at(self, lanes: Tensor) -> Values:
        """The same on some lanes."""
        return replace(self, leaves={}, done={}, parent=self, chosen=lanes)

    def number(self, value: Number, kind: str) -> Tensor:
        if kind == "bool":
            return torch.tensor(bool(value), device=self.device)
        if kind == "int":
            wrapped = (int(value) + 2**63) % 2**64 - 2**63
            return torch.tensor(wrapped, dtype=torch.int64, device=self.device)
        return torch.tensor(float(value), dtype=self.dtype, device=self.device)


def evaluate(root: Node, values: Values) -> Tensor:
    """The value of an expression; it broadcasts to the shape of the leaves that it depends on."""
    stack = [root]
    while stack:
        node = stack[-1]
        if values.known(node) is not None:
            stack.pop()
            continue
        splits = node.op == "where" and node.kind == "float" and values.lanes
        needed = node.args[:1] if splits else node.args
        missing = [arg for arg in needed if values.known(arg) is None]
        if missing:
            stack += missing
            continue
        stack.pop()
        values.done[node] = branch(node, values) if splits else apply(node, values)
    return values.done[root]


def branch(node: Node, values: Values) -> Tensor:
    """`where(condition, a, b)`, each branch on the lanes that choose it."""
    condition, *branches = node.args
    choice = values.done[condition]
    if choice.dim() == 0:
        return evaluate(branches[0 if bool(choice) else 1], values)
    result = torch.zeros(choice.shape, dtype=values.dtype, device=values.device)
    for taken, value in zip((choice, ~choice), branches, strict=True):
        lanes = taken.nonzero().squeeze(1)
        if lanes.numel():
            part = evaluate(value, values.at(lanes))
            result = result.index_copy(0, lanes, part.expand(lanes.shape))
    return result


def apply(node: Node, values: Values) -> Tensor:
    """One operation on arguments that are known."""
    args = [values.done[arg] for arg in node.args]
    match node.op:
        case "const":
            return values.number(node.value, node.kind)
        case "index" | "bound" | "summary":
            return values.leaf(node.name)
        case "score" | "out":
            return values.leaf(node.op)
        case "chosen" | "pooled":
            return values.leaf(f"{node.op} {node.name}")
        case "size":
            return values.number(values.sizes[node.name], "int")
        case "scalar":
            return values.number(values.scalars[node.name], node.kind)
        case "lookup":
            table = values.tensors[node.name]
            found = read(table, args)
            if node.kind == "float":
                return found.to(values.dtype)
            return found.to(torch.int64 if node.kind == "int" else torch.bool)
        case "dot":
            return dot(values.tensors[node.name], args, values)
        case "total":
            return total(args[0], values)
        case "to_float":
            return args[0].to(values.dtype)
        case op:
            return MEANINGS[op](*args)


def read(table: Tensor, indices: list[Tensor]) -> Tensor:
    """`table[indices]`; 0 where an index is outside, and no gradient from there.

    Fewer indices than dimensions give rows.
    """
    shape = broadcast_shape(indices)
    inside = torch.ones(shape, dtype=torch.bool, device=table.device)
    for extent, i in zip(table.shape, indices, strict=False):
        inside = inside & (i >= 0) & (i < extent)
    rest = table.shape[len(indices) :]
    if table.numel() == 0:
        return table.new_zeros((*shape, *rest))
    if not indices:
        return table
    safe = tuple(torch.where(inside, i, 0) for i in indices)
    inside = inside.reshape((*shape, *(1 for _ in rest)))
    return torch.where(inside, table[safe], torch.zeros((), dtype=table.dtype, device=table.device))


def broadcast_shape(indices: list[Tensor]) -> tuple[int, ...]:
    rank = max((i.dim() for i in indices), default=0)
    shape = [1] * rank
    for i in indices:
        for axis, extent in enumerate(i.shape, start=rank - i.dim()):
            shape[axis] = extent if extent != 1 else shape[axis]
    return tuple(shape)


def dot(table: Tensor, indices: list[Tensor], values: Values) -> Tensor:
    """`dot(query, table[indices])` in the dtype of the computation."""
    assert values.query is not None, "dot is not for masks"
    rows = values.query[values.leaf("b"), values.leaf("h"), values.leaf("row")]
    return (rows * read(table, indices).to(values.dtype)).sum(-1)


def total(value: Tensor, values: Values) -> Tensor:
    """The sum over d, the last dimension, which stays as 1: in float64, then rounded."""
    whole = value.expand(*value.shape[:-1], values.sizes["D"])
    return whole.to(torch.float64).sum(-1, keepdim=True).to(values.dtype)
