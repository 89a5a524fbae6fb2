"""What a program means: dense, eager and differentiable, for any floating dtype.

A score is evaluated for the pairs that the mask keeps and for no other, and a branch of a
conditional on the elements that choose it: an infinity where nobody looks cannot become a NaN, in
a value or in a gradient. Memory is O(B * H * Nq * Nk).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attndsl.ir.nodes import Node
from attndsl.ir.ops import INT_OF_FLOAT
from attndsl.ir.program import Program

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
             and the ends and summaries of a tile, by name: tensors that broadcast against each
             other, or functions that give them when they are first needed
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


@dataclass(frozen=True)
class Call:
    """A checked call: what a program is evaluated on.

    query [B, H, Nq, D], key [B, Hk, Nk, D], value [B, Hk, Nk, Dv]; offsets are ints or int [B];
    k_len is None or int [B]. `sizes` has every size by name.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    q_offset: int | Tensor
    k_offset: int | Tensor
    k_len: Tensor | None
    sizes: Mapping[str, int]
    scalars: Mapping[str, Number]
    tensors: Mapping[str, Tensor]


def positions(length: int, offset: int | Tensor, device: torch.device) -> Tensor:
    """Positions along one axis: [1 or B, length]."""
    rows = torch.arange(length, device=device)[None]
    return rows + (offset.to(torch.int64)[:, None] if isinstance(offset, Tensor) else offset)


def keep_pairs(
    mask: Node, values: Values, q: Tensor, k: Tensor, columns: Tensor, k_len: Tensor | None
) -> Tensor:
    """The mask for positions q [1 or B, Nq] and k [1 or B, Nk]: bool, dimensions of 1 where it does
    not vary with b or h. `columns` [Nk] are the indices of the keys, which k_len counts."""
    heads, batches = values.sizes["H"], values.sizes["B"]
    values.leaves["b"] = torch.arange(batches, device=values.device)[:, None, None, None]
    values.leaves["h"] = torch.arange(heads, device=values.device)[:, None, None]
    values.leaves["q"] = q[:, None, :, None]
    values.leaves["k"] = k[:, None, None, :]
    kept = evaluate(mask, values)
    if k_len is not None:
        kept = kept & (columns < k_len.to(torch.int64)[:, None, None, None])
    kept = kept[(None,) * (4 - kept.dim())]
    return kept.expand(kept.shape[0], kept.shape[1], q.shape[1], k.shape[1])


def attend(program: Program, call: Call) -> tuple[Tensor, Tensor | None]:
    """Result [B, H, Nq, Dv] in query's dtype, and lse [B, H, Nq] where the weights are softmax.

    Computed in float32, or float64 for float64 inputs.
    """
    with torch.autocast(call.query.device.type, enabled=False):
        return Evaluation(program, call).run()


class Evaluation:
    """One evaluation of a program. Rows are numbered (b * H + h) * Nq + i, pairs row * Nk + j."""

    def __init__(self, program: Program, call: Call) -> None:
        self.program, self.call = program, call
        self.device = call.query.device
        self.dtype = torch.float64 if call.query.dtype == torch.float64 else torch.float32
        self.sizes = call.sizes
        self.q = positions(call.sizes["Nq"], call.q_offset, self.device)
        self.k = positions(call.sizes["Nk"], call.k_offset, self.device)
        self.shape = (call.sizes["B"], call.sizes["H"], call.sizes["Nq"], call.sizes["Nk"])
        self.rows = self.shape[0] * self.shape[1] * self.shape[2]

    def run(self) -> tuple[Tensor, Tensor | None]:
        batches, heads, queries, _ = self.shape
        pairs = self.kept().flatten().nonzero().squeeze(1)
        query, key, value = self.inputs(pairs)
        raw = (query @ key.transpose(-1, -2) * self.call.scale).flatten()[pairs]
        logit = evaluate(self.program.score, self.pair_values(pairs, raw, query)).expand(raw.shape)
        if bool((masked := logit.detach() == -torch.inf).any()):  # such pairs are masked
            left = (~masked).nonzero().squeeze(1)
            pairs, logit = pairs[left], logit[left]
        weight, lse = self.weigh(pairs, logit, query)
        dense = torch.zeros(self.rows * self.shape[3], dtype=self.dtype, device=self.device)
        dense = dense.index_copy(0, pairs, weight).view(self.shape)
        alive = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        alive[pairs // max(self.shape[3], 1)] = True
        alive = alive.view(self.shape[:3])[..., None]
        # However steep the epilogue is at 0, a row without a key passes nothing on.
        out = self.finish(torch.where(alive, dense @ value, 0)).to(self.call.query.dtype)
        return out, None if lse is None else lse.view(batches, heads, queries)

    def values(self, leaves: dict[str, Tensor | Callable[[], Tensor]]) -> Values:
        call = self.call
        return Values(
            self.dtype, self.device, call.sizes, call.scalars, call.tensors, leaves, lanes=True
        )

    def kept(self) -> Tensor:
        """The mask as bool [B, H, Nq, Nk]."""
        values = replace(self.values({}), lanes=False)
        columns = torch.arange(self.shape[3], device=self.device)
        with torch.no_grad():
            kept = keep_pairs(self.program.mask, values, self.q, self.k, columns, self.call.k_len)
        return kept.expand(self.shape)

    def inputs(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query, key and value per query head in the dtype of the computation.

        Rows that no pair reads are 0, whatever they hold: memory beyond k_len may be anything.
        """
        batches, heads, queries, keys = self.shape
        call, group = self.call, self.sizes["G"]
        taken = torch.zeros(self.rows * keys, dtype=torch.bool, device=self.device)
        taken[pairs] = True
        taken = taken.view(self.shape)
        read_query = taken.any(3)[..., None]
        read_key = taken.any(2).view(batches, heads // group, group, keys).any(2)[..., None]
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        query = torch.where(read_query, call.query.to(self.dtype), zero)
        key = torch.where(read_key, call.key.to(self.dtype), zero)
        value = torch.where(read_key, call.value.to(self.dtype), zero)
        return query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)

    def row_leaves(self, rows: Tensor) -> dict[str, Tensor | Callable[[], Tensor]]:
        """b, h, q and row for row numbers."""
        _, heads, queries, _ = self.shape
        return {
            "b": lambda: rows // (heads * queries),
            "h": lambda: rows // queries % heads,
            "row": lambda: rows % queries,
            "q": lambda: at_position(self.q, rows // (heads * queries), rows % queries),
        }

    def pair_values(self, pairs: Tensor, score: Tensor, query: Tensor) -> Values:
        keys = self.shape[3]
        leaves = self.row_leaves(pairs // keys) if keys else self.row_leaves(pairs)
        batch = leaves["b"]
        assert callable(batch)
        leaves["k"] = lambda: at_position(self.k, batch(), pairs % keys)
        leaves["score"] = score
        return replace(self.values(leaves), query=query)

    def row_values(self, leaves: dict[str, Tensor | Callable[[], Tensor]]) -> Values:
        """Values for a sink or an output, where a `dot` reads the query of every row."""
        return replace(self.values(leaves), query=self.call.query.to(self.dtype))

    def weigh(self, pairs: Tensor, logit: Tensor, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight of each pair, normalised, and lse [rows] where the weights are softmax."""
        rows = pairs // max(self.shape[3], 1)
        weights = self.program.weights
        if weights.form == "softmax":
            return self.softmax(rows, logit)
        assert weights.value is not None
        weight = evaluate(weights.value, self.pair_values(pairs, logit, query))
        weight = weight.expand(logit.shape)
        if weights.form == "elementwise":
            return weight, None
        total = self.sum_rows(rows, weight)
        nought = total == 0  # such rows give 0 and pass no gradient
        total = torch.where(nought, 1, total)
        weight = torch.where(nought[rows], torch.zeros_like(weight), weight)
        return weight / total[rows], None

    def sum_rows(self, rows: Tensor, value: Tensor) -> Tensor:
        zeros = torch.zeros(self.rows, dtype=self.dtype, device=self.device)
        return zeros.index_add(0, rows, value)

    def softmax(self, rows: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax over the pairs of each row; a row without pairs has lse -inf, sink or not."""
        top = torch.full((self.rows,), -torch.inf, dtype=self.dtype, device=self.device)
        top = top.scatter_reduce(0, rows, logit.detach(), "amax")
        filled = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        filled[rows] = True
        alive = filled.nonzero().squeeze(1)
        sink = self.program.weights.sink
        sinks = None
        if sink is not None:
            sinks = evaluate(sink, self.row_values(self.row_leaves(alive))).expand(alive.shape)
            top = top.index_copy(0, alive, torch.maximum(top[alive], sinks.detach()))
        exponential = torch.exp(logit - top[rows])
        total = self.sum_rows(rows, exponential)
        if sinks is not None:
            total = total.index_add(0, alive, torch.exp(sinks - top[alive]))
        lse = torch.full_like(top, -torch.inf)
        lse = lse.index_copy(0, alive, top[alive] + torch.log(total[alive]))
        return exponential / total[rows], lse

    def finish(self, out: Tensor) -> Tensor:
        """The epilogue, on every element of the result [B, H, Nq, Dv]."""
        if self.program.output is None:
            return out
        width = out.shape[-1]
        elements = torch.arange(out.numel(), device=self.device)
        leaves = self.row_leaves(elements // width)
        leaves["d"] = elements % width
        leaves["out"] = out.flatten()
        result = evaluate(self.program.output, self.row_values(leaves))
        return result.expand(elements.shape).view(out.shape)


def at_position(positions: Tensor, batch: Tensor, rows: Tensor) -> Tensor:
    """Positions [1 or B, N] of rows."""
    if positions.shape[0] == 1:
        return positions[0, rows]
    return positions[batch, rows]
