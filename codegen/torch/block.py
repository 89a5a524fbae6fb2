"""What forward and backward share: the loops over parts, blocks of queries and chunks of keys.

Shapes in the loops: scores are [b1 - b0, j1 - j0, g1 - g0, rows, columns] (batch, key heads, query
heads of a group); for matrix products the group is packed with the rows, so that keys and values
are never repeated. Index arrays broadcast to that shape: b [., 1, 1, 1, 1], h [., ., 1, 1],
q [rows, 1], k [columns]. Where tiles are boxes of a grid, columns are in the order of the boxes,
and `order` says which position each has (`boxes.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from attndsl.ir.nodes import Node, find, is_const, topological
from attndsl.ir.ops import OPS
from attndsl.plan.kernel_plan import KernelPlan

from ..expressions import LeafText, Printer, hoist
from ..lines import Lines
from ..runs import Distances, at_distance, is_window
from ..scope import (
    Plainness,
    conversion_text,
    lookup_text,
    scope_printer,
    tensor_name,
    tuple_text,
)
from .boxes import is_cut, write_order
from .spans import ARGUMENTS

CALL, PART, ROW, PAIR = range(4)
PAIR_INDICES = frozenset(("k", "score"))
ROW_INDICES = frozenset(("q",))
# Ops that give no NaN for finite arguments, and none for a raw score that is not NaN.
CALM = frozenset("const index size score to_float add sub mul neg abs min max tanh sigmoid".split())


def level_of(node: Node) -> int:
    """The outermost loop in which a value can be computed."""
    if node.varies & PAIR_INDICES:
        return PAIR
    if node.varies & ROW_INDICES:
        return ROW
    return PART if node.varies else CALL


def is_fresh(node: Node, printer: Printer) -> bool:
    """Whether the text of a float node makes a new tensor of the scores' shape, which may be
    changed in place."""
    return (
        "score" in node.varies
        and not OPS[node.op].is_leaf
        and node.op != "where"
        and node not in printer.names
    )


def is_calm(value: Node) -> bool:
    """Whether a value is never NaN, so that a minimum with -inf masks it."""
    return all(n.op in CALM or n.kind != "float" for n in topological(value)) and all(
        abs(n.value) < float("inf") for n in topological(value) if n.op == "const"
    )


class Block:
    """Writes the loops of one function, with every value at the outermost place possible."""

    parts_text = f"(b0, b1, j0, j1, g0, g1), spans in run_spans(query, key, value, {ARGUMENTS})"
    chunks_text = "attn_chunks(span, columns, LEAST_COLUMNS)"
    products_texts: tuple[str, ...] = (
        "logits = buffer[: math.prod(shape)].view(shape)",
        "attn_products(packed, keys[n0:n1, first:end].transpose(1, 2), logits)",
    )
    values_text = "values[n0:n1, first:end]"

    def __init__(
        self,
        lines: Lines,
        plan: KernelPlan,
        roots: Iterable[Node],
        gradients: Iterable[Node] = (),
        scale: str = "scale",
    ) -> None:
        """`roots` are what pairs are computed from, besides the mask; `gradients` the lookups and
        dots that receive gradients pair by pair; `scale` is the text of what the products of
        queries and keys are multiplied with."""
        self.scale = scale
        self.lines, self.plan, self.gradients = lines, plan, tuple(gradients)
        self.has_boxes, self.is_cut = plan.grid is not None, is_cut(plan)
        self.has_mask = self.is_cut or not is_const(plan.program.mask, True)
        self.roots = tuple(roots)
        self._plainness = Plainness()
        leaves = {("index", name): name for name in "bhqk"} | {("score", ""): "score"}
        self.call = scope_printer(
            plan, leaves, self._dot, self._plainness, "call_", self._lookup("k_range")
        )
        self._distances = Distances(self.has_runs)
        self.part = self.row = self.pair = self.call
        used = frozenset[str]().union(*(root.varies for root in self.roots))
        self.used = used | plan.program.mask.varies
        self.used_outside_mask = used
        everything = topological(*self.roots, *self.gradients, plan.program.mask)
        windows = [node for node in everything if self.is_window(node)]
        self.windows = frozenset[str]().union(*(node.varies for node in windows))
        mask = plan.program.mask
        self._has_mask_of_distance = not mask.varies & {"b", "h"} and self._distances.is_distance(
            mask
        )
        self._hoisted = hoist((*self.roots, plan.program.mask), level_of, 4)

    def _dot(self, node: Node, args: tuple[str, ...]) -> str:
        """A dot of the block's queries, for each row or each pair."""
        table, indices = tensor_name(node.name), tuple_text(args)
        if "k" not in frozenset[str]().union(*(arg.varies for arg in node.args)):
            return f"attn_dot_row(query_block[..., None, :], {table}, {indices})"
        return f"attn_dot_pair(query_block, {table}, {indices})"

    def _lookup(self, columns: str) -> LeafText:
        """Writes lookups of a block; `columns` names the range of key positions."""

        def text(node: Node, args: tuple[str, ...]) -> str:
            if not self.is_window(node):
                return lookup_text(self.plan, node, args)
            window = f"attn_window({tensor_name(node.name)}, {ranges_text(node, columns)}, g1 - g0)"
            return window + conversion_text(self.plan, node)

        return text

    @property
    def has_runs(self) -> bool:
        """Whether rows and columns are runs of positions, so that results of rows are views."""
        return not self.has_boxes

    def is_window(self, node: Node) -> bool:
        """Whether a lookup is read as a slice."""
        return self.has_runs and is_window(node)

    def is_distance_leaf(self, leaf: Node) -> bool:
        """Whether a lookup or dot is read once for each distance."""
        return self._distances.has_distance_index(leaf)

    def is_plain(self, node: Node) -> bool:
        """Whether a node is a Python number in the generated code."""
        return self._plainness.is_plain(node)

    def write_queries(self) -> None:
        """Sets `queries`, and where tiles are boxes their order."""
        if self.has_boxes:
            write_order(self.lines, self.plan)
        self.lines.add("queries = query.to(ACCUMULATOR).unflatten(1, (size_Hk, size_G))")

    def write_keys(self) -> None:
        """Sets `keys` and `values`."""
        columns = ".index_select(1, order)" if self.has_boxes else ""
        self.lines.add(
            f"keys = key.to(ACCUMULATOR).flatten(0, 1){columns}",
            f"values = value.to(ACCUMULATOR).flatten(0, 1){columns}",
        )

    def write_call(self) -> None:
        """Values that vary with nothing."""
        lines = self.lines
        if self._has_mask_of_distance:
            lines.add("masks = {}  # by rows, distance of the first pair, and columns")
        self.call.define(lines, self._hoisted[CALL])

    @contextmanager
    def parts(self) -> Iterator[None]:
        """The loop over parts of batch and heads."""
        lines = self.lines
        if not self.plan.request.per_batch:
            self.write_shifts()
        with lines.block(f"for {self.parts_text}:"):
            lines.add("n0, n1 = b0 * size_Hk + j0, (b1 - 1) * size_Hk + j1")
            if self.plan.request.per_batch:
                self.write_shifts()
            if "b" in self.windows:
                lines.add("b_range = (b0, b1)")
            if "h" in self.windows:
                lines.add("h_range = (j0 * size_G + g0, (j1 - 1) * size_G + g1)")
            if "b" in self.used:
                lines.add(
                    "b = torch.arange(b0, b1, device=query.device)[:, None, None, None, None]"
                )
            if "h" in self.used:
                lines.add(
                    "h = torch.arange(j0, j1, device=query.device)[:, None] * size_G",
                    "h = (h + torch.arange(g0, g1, device=query.device))[..., None, None]",
                )
            self.part = self.call.inner(prefix="part_")
            self.part.define(lines, self._hoisted[PART])
            self.write_part_end()
            yield

    def write_part_end(self) -> None:
        """What a part needs besides its indices: room for scores."""
        self.lines.add(
            "scored = (n1 - n0) * (g1 - g0) * max(1, min(ROWS, size_Nq))",
            "columns = min(ROOM // scored, size_Nk + LEAST_COLUMNS - 1)",
            "columns = max(columns // LEAST_COLUMNS, 1) * LEAST_COLUMNS",
            "buffer = torch.empty(scored * columns, dtype=ACCUMULATOR, device=query.device)",
        )

    def write_shifts(self) -> None:
        """The positions of row 0 and column 0; in boxes, what `k_len` says instead."""
        if self.has_boxes:
            if self.is_cut:
                self.lines.add("limit = int(k_len[b0])")
            return
        for name in ("q", "k"):
            offset = f"{name}_offset"
            batched = offset in self.plan.request.per_batch
            self.lines.add(f"{name}_shift = " + (f"int({offset}[b0])" if batched else offset))

    def positions(self, first: str, end: str, axis: str, subscript: str = "") -> str:
        """The positions of queries ("q") or keys ("k") in a range of rows or columns."""
        if not self.has_boxes:
            return f"torch.arange({first}, {end}, device=query.device){subscript} + {axis}_shift"
        return f"rows{subscript}" if axis == "q" else f"order[{first}:{end}]"

    @contextmanager
    def blocks(self) -> Iterator[None]:
        """The loop over blocks of queries."""
        lines = self.lines
        with lines.block("for block, span in enumerate(spans):"):
            with lines.block("if not span[0]:"):
                lines.add("continue")
            if self.has_boxes:
                lines.add("rows = order[starts[block] : starts[block + 1]]")
            else:
                lines.add("start, stop = block * ROWS, min((block + 1) * ROWS, size_Nq)")
            rows = "rows" if self.has_boxes else "slice(start, stop)"
            lines.add(
                f"here = (slice(b0, b1), slice(j0, j1), slice(g0, g1), {rows})",
                "query_block = queries[here]",
            )
            self.write_rows()
            yield

    def write_rows(self) -> None:
        """The values of a block's rows, from `query_block`."""
        lines = self.lines
        lines.add(f"packed = (query_block * {self.scale}).flatten(2, 3).flatten(0, 1)")
        if "q" in self.windows:
            lines.add("q_range = (start + q_shift, stop + q_shift)")
        if "q" in self.used:
            lines.add(f"q = {self.positions('start', 'stop', 'q', '[:, None]')}")
        self.row = self.part.inner(prefix="row_")
        self.row.define(lines, self._hoisted[ROW])

    def packed_rows(self, name: str) -> str:
        """The text of a block's rows of an array [.., Nq, elements], packed like its queries."""
        return f"{name}_parts[here].flatten(2, 3).flatten(0, 1)"

    def add_rows(self, name: str, text: str) -> None:
        """Adds elements of the block's rows (of any shape) to rows of an array [.., Nq, D]."""
        self.lines.add(f"{name}_parts[here] += {text}.view(*query_block.shape[:4], size_D)")

    @contextmanager
    def chunks(self) -> Iterator[None]:
        """The loop over chunks of keys: sets score (and `logits`, the same packed)."""
        lines = self.lines
        with lines.block(f"for first, end, masked in {self.chunks_text}:"):
            if "k" in self.windows:
                lines.add("k_range = (first + k_shift, end + k_shift)")
            if "k" in self.used_outside_mask:
                lines.add(f"k = {self.positions('first', 'end', 'k')}")
            lines.add(
                "shape = (*packed.shape[:2], end - first)",
                *self.products_texts,
                "score = logits.view(*query_block.shape[:4], end - first)",
            )
            self.pair = self.row.inner(prefix="pair_")
            self._write_distances()
            yield

    def _write_distances(self) -> None:
        """Values that depend on q and k by their difference, one for each distance of the block."""
        lines = self.lines
        costly = self._distances.worthwhile(self.roots)
        dots = [n for n in find_dots(self.roots) if self.is_distance_leaf(n)]
        gathered = [n for n in self.gradients if self.is_distance_leaf(n)]
        if not (costly or dots or gathered):
            return
        lines.add(
            "count = stop - start + end - first - 1  # of distances",
            "distance = attn_distances(stop - 1 + q_shift, first + k_shift, count, query)",
        )
        leaves = {("index", "b"): "b", ("index", "h"): "h", ("index", "q"): "distance"}
        self.distance = scope_printer(self.plan, leaves, self._dot, self._plainness, "distance_")
        rowless = {n: t for n, t in self.part.names.items() if "q" not in n.varies}
        self.distance.names.update(rowless)
        for node in costly:
            (text,) = self.distance.write(lines, at_distance(node))
            name = f"diagonal_{len(self.pair.names)}"
            lines.add(f"{name} = attn_diagonals({text}, stop - start)")
            self.pair.names[node] = name
        for node in dots:
            name = f"diagonal_{len(self.pair.names)}"
            indices = self.distance_indices(node)
            table = tensor_name(node.name)
            lines.add(f"{name} = attn_dot_diagonals(query_block, {table}, {indices})")
            self.pair.names[node] = name

    def distance_indices(self, node: Node) -> str:
        """The indices of a lookup or dot by distance, as a tuple."""
        args = [at_distance(arg) for arg in node.args]
        return tuple_text(tuple(self.distance.write(self.lines, *args)))

    def write_mask(self, wrap: Callable[[str], str]) -> str:
        """Inside `for lo, hi in masked:`, the text of what `wrap` makes of the text of which pairs
        of these columns take part. A mask that depends on the distance only is the same for many
        blocks: the last few are kept."""
        lines = self.lines
        if not self._has_mask_of_distance:
            return wrap(self.write_kept())
        lines.add("place = (stop - start, start + q_shift - lo - k_shift, hi - lo)")
        with lines.block("if place not in masks:"):
            with lines.block("if len(masks) == MOST_MASKS:"):
                lines.add("masks.clear()")
            lines.add(f"masks[place] = {wrap(self.write_kept())}")
        return "masks[place]"

    def write_kept(self) -> str:
        """The text of which pairs take part."""
        lines, mask = self.lines, self.plan.program.mask
        lines.origin(self.plan.program, mask)
        leaves = {("index", name): name for name in "bhq"} | {("index", "k"): "k_masked"}
        lookups = [node for node in find(mask, "lookup") if self.is_window(node)]
        if any("k" in node.varies for node in lookups):
            lines.add("k_open = (lo + k_shift, hi + k_shift)")
        if self.is_cut or "k" in mask.varies:
            lines.add(f"k_masked = {self.positions('lo', 'hi', 'k')}")
        lookup = self._lookup("k_open")
        printer = scope_printer(self.plan, leaves, self._dot, self._plainness, "mask_", lookup)
        printer.names.update(self.row.names)
        (text,) = printer.write(lines, mask)
        if self.is_cut:
            return f"({text}) & (k_masked < limit)"
        return f"attn_tensor({text})" if self._plainness.is_plain(mask) else text


def ranges_text(node: Node, columns: str) -> str:
    """The ranges of a window's indices, by name, in the order of the tensor's axes."""
    names = {"b": "b_range", "h": "h_range", "q": "q_range", "k": columns}
    return "{" + ", ".join(f'"{arg.name}": {names[arg.name]}' for arg in node.args) + "}"


def find_dots(roots: Iterable[Node]) -> list[Node]:
    """The dots below the roots, each once."""
    return [node for node in topological(*roots) if node.op == "dot"]
