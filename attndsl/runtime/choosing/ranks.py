"""Expressions over blocks of queries and of keys, evaluated for a rectangle of them.

Values have the dimensions [B, Hk, G, I, J] (1 where they do not vary), and below a `total` one more
for d. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.ir.nodes import Node
from attndsl.reference import Number, Values, evaluate
from attndsl.runtime.blocks import part
from attndsl.runtime.choosing.blocks import Axis, pool
from attndsl.runtime.choosing.totals import Product, products_of

MOST_TERMS = 1 << 25  # of a sum over d that is no product of matrices, at once
MOST_TERMS_CPU = 1 << 22  # there they should stay in a cache
AS_FLOAT32 = (torch.float16, torch.bfloat16, torch.float32)  # what is read as such, unrounded
FAST_FLOAT64 = ((8, 0), (9, 0), (10, 0))  # compute capabilities


@dataclass(frozen=True)
class Inputs:
    """A checked call, as far as choosing needs it: query [B, H, Nq, D], key [B, Hk, Nk, D]; offsets
    are ints or int [B], k_len is None or int [B]; everything else by name."""

    query: Tensor
    key: Tensor
    q_offset: int | Tensor
    k_offset: int | Tensor
    k_len: Tensor | None
    sizes: Mapping[str, int]
    scalars: Mapping[str, Number]
    tensors: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        return self.query.device


class DeviceValues(Values):
    """Values whose numbers are made on the device: copying one there would wait for it."""

    def number(self, value: Number, kind: str) -> Tensor:
        dtypes = {"bool": torch.bool, "int": torch.int64, "float": self.dtype}
        if kind == "int":
            value = (int(value) + 2**63) % 2**64 - 2**63
        return torch.full((), value, dtype=dtypes[kind], device=self.device)


def product_dtype(device: torch.device) -> torch.dtype:
    """In what products of matrices are computed: float64 where it is not slow, so that equal
    vectors have equal ranks in whatever order a library adds."""
    if device.type != "cuda" or torch.version.hip:
        return torch.float64
    if torch.cuda.get_device_capability(device) in FAST_FLOAT64:
        return torch.float64
    # float32 must not be rounded to less.
    is_rounded = torch.backends.cuda.matmul.fp32_precision not in ("none", "ieee")
    return torch.float64 if is_rounded else torch.float32


class Evaluation:
    """Evaluates expressions of a select over b, h, i and j.

    `rows` and `columns` below are slices with both ends: numbers of blocks within the call.
    """

    def __init__(self, inputs: Inputs, rows: Axis, columns: Axis) -> None:
        self.inputs, self.rows, self.columns = inputs, rows, columns
        self.dtype = product_dtype(inputs.device)
        self._pools: dict[str, Tensor] = {}
        self._sides: dict[Node, Tensor] = {}

    @property
    def heads(self) -> tuple[int, int]:
        """Key heads, and query heads of each."""
        return self.inputs.sizes["Hk"], self.inputs.sizes["G"]

    def rank(self, node: Node, per_group: bool, rows: slice, columns: slice) -> Tensor:
        """float32 [B, Hk, G, I, J]; per group the sum over G, in order of heads."""
        key_heads, group = self.heads
        shape = (
            self.inputs.sizes["B"],
            key_heads,
            group,
            rows.stop - rows.start,
            columns.stop - columns.start,
        )
        found = self.value(node, rows, columns).expand(shape)
        if not per_group or group == 1:
            return found
        first, second, *others = found.unbind(2)
        summed = first + second
        for other in others:
            summed += other
        return summed[:, :, None]

    def value(self, node: Node, rows: slice, columns: slice, per_group: bool = False) -> Tensor:
        """Of a node that has d only below totals; with per_group `h` is the first of its group."""
        return evaluate(node, self._values(node, rows, columns, per_group=per_group))

    def at_blocks(self, node: Node, rows: slice, numbers: Tensor, per_group: bool) -> Tensor:
        """A condition for listed blocks, numbers [B, Hk, G or 1, I, T]."""
        values = self._values(node, rows, slice(0, 0), per_group=per_group, is_sliced=False)
        first = self.columns.first
        if isinstance(first, Tensor):
            first = first.view(-1, 1, 1, 1, 1)
        values.leaves["j"] = numbers + first
        return evaluate(node, values)

    def _values(
        self,
        root: Node,
        rows: slice,
        columns: slice,
        *,
        is_wide: bool = False,
        per_group: bool = False,
        is_sliced: bool = True,
    ) -> Values:
        inputs, sizes, device = self.inputs, self.inputs.sizes, self.inputs.device
        key_heads, group = self.heads
        tail = (1,) * is_wide

        def heads() -> Tensor:
            h = torch.arange(key_heads, device=device)[:, None] * group
            if not per_group:
                h = h + torch.arange(group, device=device)
            return h.view(key_heads, -1, 1, 1, *tail)

        def blocks(axis: Axis, taken: slice, *shape: int) -> Tensor:
            found = axis.indices(taken)
            return found.view(found.shape[0], 1, 1, *shape, *tail)

        # Made where they are read: each is a launch or more.
        leaves: dict[str, Tensor | Callable[[], Tensor]] = {
            "b": lambda: torch.arange(sizes["B"], device=device).view(-1, 1, 1, 1, 1, *tail),
            "h": heads,
            "i": lambda: blocks(self.rows, rows, -1, 1),
            "j": lambda: blocks(self.columns, columns, 1, -1),
            "d": lambda: torch.arange(sizes["D"], device=device),
        }
        values = DeviceValues(torch.float32, device, sizes, inputs.scalars, inputs.tensors, leaves)
        for node in outermost(root):
            if node.op == "total":
                found = self.total(node, rows, columns)
                values.done[node] = found[..., None] if is_wide else found
            elif node.op == "pooled":
                values.done[node] = self.pooled(node.name, rows, columns)
            elif is_sliced:
                view = self.sliced(node, rows, columns, per_group)
                if view is not None:
                    values.done[node] = view if is_wide else view[..., 0]
        return values

    def pooled(self, name: str, rows: slice, columns: slice) -> Tensor:
        """A pooled vector: float32 [B, Hk, G or 1, I or 1, J or 1, D]."""
        side, _, how = name.partition("_")
        of_query = side == "query"
        axis, taken = (self.rows, rows) if of_query else (self.columns, columns)
        source = self.inputs.query if of_query else self.inputs.key
        if axis.block == 1:  # then there are as many blocks as rows, whatever the offset
            found = source[:, :, taken].to(torch.float32)
        else:
            if name not in self._pools:
                self._pools[name] = pool(source, axis, how)
            found = self._pools[name][:, :, taken]
        if of_query:
            return torch.unflatten(found, 1, self.heads).unsqueeze(4)
        return found[:, :, None, None]

    def in_place(self, node: Node) -> Tensor | None:
        """The queries or keys [B, H or Hk, N, D] that a node is, row by row; None where it is none,
        or where they have to be converted to be read as float32."""
        if node.op != "pooled":
            return None
        of_query = node.name.startswith("query")
        axis = self.rows if of_query else self.columns
        source = self.inputs.query if of_query else self.inputs.key
        return source if axis.block == 1 and source.dtype in AS_FLOAT32 else None

    def vectors(self, node: Node, rows: slice, columns: slice) -> Tensor:
        """A vector of rows or of columns: [B, Hk, G, I, J, D], dimensions of 1 where it does not
        vary, but the last one is D; float32, or queries or keys in place as they are."""
        source = self.in_place(node)
        if source is None:
            return self._wide(node, rows, columns).to(torch.float32)
        if node.name.startswith("query"):
            return torch.unflatten(source[:, :, rows], 1, self.heads).unsqueeze(4)
        return source[:, :, None, None, columns]

    # Tables

    def sliced(self, node: Node, rows: slice, columns: slice, per_group: bool) -> Tensor | None:
        """A lookup with bare indices, each another one, as a part of the table: [B or 1, Hk or 1,
        G or 1, I or 1, J or 1, D or 1]."""
        names = [bare_index(arg) for arg in node.args]
        offsets = {"i": self.rows.first, "j": self.columns.first}
        if None in names or len(set(names)) < len(names) or {"h", "h // G"} <= set(names):
            return None
        if any(isinstance(offsets.get(str(name)), Tensor) for name in names):
            return None
        key_heads, group = self.heads
        if per_group and "h" in names:
            return None
        sizes = self.inputs.sizes
        ends = {
            "b": (0, sizes["B"]),
            "h": (0, sizes["H"]),
            "h // G": (0, key_heads),
            "i": (offsets["i"] + rows.start, rows.stop - rows.start),
            "j": (offsets["j"] + columns.start, columns.stop - columns.start),
            "d": (0, sizes["D"]),
        }
        table = self.inputs.tensors[node.name].detach()
        for dim, name in enumerate(names):
            start, length = ends[str(name)]
            table = part(table, dim, start, length)
        order = ("b", "h" if "h" in names else "h // G", "i", "j", "d")
        table = table.permute([names.index(name) for name in order if name in names])
        for dim, name in enumerate(order):
            if name not in names:
                table = table.unsqueeze(dim)
        table = torch.unflatten(table, 1, self.heads) if "h" in names else table.unsqueeze(2)
        dtypes = {"bool": torch.bool, "int": torch.int64, "float": torch.float32}
        return table.to(dtypes[node.kind])

    # Sums over d

    def total(self, node: Node, rows: slice, columns: slice) -> Tensor:
        """The sum over d: float32 [B, Hk, G, I, J], dimensions of 1 where it does not vary."""
        body = node.args[0]
        products = products_of(body)
        if products is not None:
            found = self._products(products, rows, columns)
            if found is not None:
                return found.to(torch.float32)
        if "i" not in body.varies or "j" not in body.varies:
            return self._summed(body, rows, columns)
        return self._summed_by_parts(body, rows, columns)

    def _products(
        self, products: tuple[Product, ...], rows: slice, columns: slice
    ) -> Tensor | None:
        """The sum of products, in the dtype of products; None where they do not hold."""
        total: Tensor | None = None
        for product in products:
            x = self._row_side(product.x, rows, columns)
            y = self._column_side(product.y)[..., columns, :]
            if product.is_bounded and not (is_finite(x) and is_finite(y)):
                return None
            found = multiply(x, y)
            if product.sign < 0:
                found = -found
            total = found if total is None else total + found
        return total

    def _row_side(self, node: Node, rows: slice, columns: slice) -> Tensor:
        found = self._wide(node, rows, slice(columns.start, columns.start + 1))
        return found.to(self.dtype)

    def _column_side(self, node: Node) -> Tensor:
        """For all columns of the call, found once."""
        if node not in self._sides:
            found = self._wide(node, slice(0, 1), slice(0, self.columns.count))
            self._sides[node] = found.to(self.dtype)
        return self._sides[node]

    def _wide(self, node: Node, rows: slice, columns: slice) -> Tensor:
        """A value below a total: [B, Hk, G, I, J, D], dimensions of 1 where it does not vary; but
        the last one is D."""
        found = evaluate(node, self._values(node, rows, columns, is_wide=True))
        found = found[(None,) * (6 - found.dim())]
        return found.expand(*found.shape[:5], self.inputs.sizes["D"])

    def _summed(self, node: Node, rows: slice, columns: slice) -> Tensor:
        return self._wide(node, rows, columns).sum(5, dtype=torch.float64).to(torch.float32)

    def _summed_by_parts(self, node: Node, rows: slice, columns: slice) -> Tensor:
        sizes = self.inputs.sizes
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        most = MOST_TERMS_CPU if self.inputs.device.type == "cpu" else MOST_TERMS
        area = max(1, most // (sizes["B"] * sizes["H"] * sizes["D"]))
        step = min(wide, area)
        parts = [
            torch.cat([self._summed(node, down, across) for across in cut(columns, step)], 4)
            for down in cut(rows, max(1, min(tall, area // step)))
        ]
        return torch.cat(parts, 3) if len(parts) > 1 else parts[0]


def outermost(root: Node) -> Iterator[Node]:
    """Totals, pooled vectors and lookups of an expression; none from below a total."""
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        if node.op in ("total", "pooled", "lookup"):
            yield node
        if node.op != "total":
            fresh = [arg for arg in node.args if arg not in seen]
            seen.update(fresh)
            stack += fresh


def bare_index(node: Node) -> str | None:
    """The index that a node is, or "h // G"."""
    if node.op == "index":
        return node.name
    if node.op == "floordiv":
        head, group = node.args
        if (head.op, head.attr, group.op, group.attr) == ("index", "h", "size", "G"):
            return "h // G"
    return None


def cut(whole: slice, step: int) -> Iterator[slice]:
    """Slices of at most `step`, one behind the other."""
    for start in range(whole.start, whole.stop, step):
        yield slice(start, min(start + step, whole.stop))


def is_finite(value: Tensor) -> bool:
    """Whether all entries are finite. Nobody waits for a device to know: where its inputs are not,
    ranks there are NaN, and such blocks are not chosen."""
    return value.device.type != "cpu" or bool(value.isfinite().all())


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """The product of x [B, Hk, G, I, 1, D] and y [B, Hk, G, 1, J, D] over d: [B, Hk, G, I, J]; any
    other dimension may be 1."""
    x, y = x.squeeze(4), y.squeeze(3)
    group, rows = x.shape[2:4]
    if y.shape[2] == 1:  # heads of a group read the same keys
        found = torch.matmul(x.flatten(2, 3), y.squeeze(2).transpose(-1, -2))
        return torch.unflatten(found, 2, (group, rows))
    return torch.matmul(x, y.transpose(-1, -2))
