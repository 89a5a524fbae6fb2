"""What names and operations of the IR look like in a kernel, and where each value is computed."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from attndsl.analysis.grids import coordinated
from attndsl.analysis.intervals import INT32, POSITION, Range, Ranges
from attndsl.ir.nodes import Node, constant, find, is_const, make, rebuild, topological
from attndsl.ir.ops import ATOM, PRODUCT, TEST, Spelling, call
from attndsl.plan.kernel_plan import KernelPlan, decides_by_float

from ..expressions import Printer, hoist, table_spelling
from ..integers import NARROW_DTYPES, WIDE_DTYPES, Integers
from ..lines import Lines
from ..scope import size_name
from .boxes import coordinate_name

ROW_INDICES = frozenset("q")
LEVELS = ("program", "row", "column", "pair")
SUMS = ("add", "sub", "neg")
AXIS = POSITION  # no axis of a tensor is longer
TESTS = ("lt", "le", "eq", "ne", "not")
SMALLEST_NORMAL = 2.0**-126
LARGEST = (2.0 - 2.0**-23) * 2.0**127


def level_of(node: Node, rows: frozenset[str] = ROW_INDICES) -> str:
    """The outermost place where a value can be computed; `d` counts as a column of the output.
    `rows` are the indices that differ from row to row (`KernelPlan.row_indices`)."""
    varies = node.varies
    if varies & {"score", "out"}:
        return "pair"
    row, column = bool(varies & rows), bool(varies & {"k", "d"})
    if row and column:
        return "pair"
    return "row" if row else "column" if column else "program"


def float32(value: float) -> float:
    """A constant as float32 has it; what float32 cannot hold becomes 0 or infinity.

    Triton would otherwise compute with it in float64.
    """
    if value != value or value in (float("inf"), float("-inf"), 0.0):
        return value
    if abs(value) < SMALLEST_NORMAL:
        return 0.0
    if abs(value) > LARGEST:
        return float("inf") if value > 0 else float("-inf")
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    # The shortest text that rounds to the same float32 keeps `0.1` readable.
    return value if len(repr(value)) <= len(repr(rounded)) else rounded


def normalised(root: Node, ranges: Ranges, rows: frozenset[str] = ROW_INDICES) -> Node:
    """The expression with constants that float32 can hold, divisions of pairs by what they share as
    products, sums of ints with what varies with rows and what varies with columns added up apart,
    and indices that fit int32 where that can be.

    >>> normalised(constant(1e-50), Ranges())
    const(0.0)
    """
    exact = decisive(root)

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "const":
            return constant(float32(node.value)) if node.kind == "float" else node
        if node.op == "div" and node not in exact and level_of(node, rows) == "pair":
            if level_of(args[1], rows) == "program":
                return make("mul", args[0], inverse(args[1]))
        if node.op in ("lookup", "dot"):
            args = tuple(narrowed(arg, ranges, rows) for arg in args)
        if args != node.args:
            node = make(node.op, *args, attr=node.attr, kind=node.kind)
        if node.kind == "int" and node.op in SUMS and level_of(node, rows) == "pair":
            parts = [total(part) for part in parts_of_sum(node, rows)]
            return total([part for part in parts if part]) or node
        return node

    return rebuild(root, change)


def inverse(divisor: Node) -> Node:
    """1 / divisor: one division for all pairs, and a product for each."""
    if divisor.op == "const" and divisor.value != 0.0:
        return constant(float32(1.0 / float(divisor.value)))
    return make("div", constant(1.0), divisor)


def decisive(root: Node) -> set[Node]:
    """The quotients and roots below a comparison of floats or a rounding to int.

    A value that is off by a rounding error is as good as another; a decision is not.
    """
    tests = [node for node in topological(root) if decides_by_float(node)]
    return {node for node in topological(*tests) if node.op in ("div", "sqrt")}


Term = tuple[int, Node]  # a sign and what it stands before


def parts_of_sum(
    node: Node, rows: frozenset[str] = ROW_INDICES
) -> tuple[list[Term], list[Term], list[Term]]:
    """The terms of an int sum that do not vary with columns; with columns alone; with both."""
    parts: tuple[list[Term], list[Term], list[Term]] = ([], [], [])
    waiting = [(1, node)]
    while waiting:
        sign, term = waiting.pop()
        if term.op in SUMS and level_of(term, rows) == "pair":
            if term.op == "neg":
                waiting.append((-sign, term.args[0]))
            else:
                waiting.append((-sign if term.op == "sub" else sign, term.args[1]))
                waiting.append((sign, term.args[0]))
        else:
            parts[{"column": 1, "pair": 2}.get(level_of(term, rows), 0)].append((sign, term))
    return parts


def total(terms: Sequence[Term | Node]) -> Node | None:
    """The sum of signed terms, a positive one first; None for none."""
    signed = [term if isinstance(term, tuple) else (1, term) for term in terms]
    signed.sort(key=lambda term: -term[0])
    result: Node | None = None
    for sign, term in signed:
        if result is None:
            result = term if sign > 0 else make("neg", term)
        else:
            result = make("add" if sign > 0 else "sub", result, term)
    return result


def narrowed(index: Node, ranges: Ranges, rows: frozenset[str] = ROW_INDICES) -> Node:
    """An index that is the same within any axis and outside all of them elsewhere, and fits int32.

    Of X + Y with |Y| <= 2^29, X may be cut to -2^29 - 1 .. 2^30, as no axis is longer than 2^29.
    """
    if index.op not in SUMS or level_of(index, rows) != "pair":
        return index
    outer, columns, pairs = parts_of_sum(index, rows)
    if pairs or fits(ranges.of(index), INT32):
        return index
    # Where both parts have terms: the row part and the column part, each with its sign inside.
    x, y = total(outer), total(columns)
    if x is None or y is None:
        return index
    for cut, other in ((x, y), (y, x)):
        if fits(ranges.of(other), (-AXIS, AXIS)):
            held = make("max", make("min", cut, constant(2 * AXIS)), constant(-AXIS - 1))
            return make("add", held, other) if cut is x else make("add", other, held)
    return index


def held_in_int64(value: int) -> int:
    """The value, or the int64 that is nearest to it."""
    return min(max(value, -(2**63) + 1), 2**63 - 1)


def fits(inner: Range, outer: Range) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


class Values:
    """Writes the expressions of one kernel, each value at the outermost level where it can be.

    order  levels from the outermost; a kernel over key tiles has its columns outside its rows
    """

    def __init__(self, plan: KernelPlan, transposed: bool = False) -> None:
        self.plan = plan
        self.integers = Integers(plan)
        self.transposed = transposed
        middle = ("column", "row") if transposed else ("row", "column")
        self.order = ("program", *middle, "pair")
        self.printer = Printer("triton", self._leaf, spell=self._spell)
        self._normalised: dict[Node, Node] = {}
        self._exact: set[Node] = set()  # quotients and roots that a test or an int depends on
        self._ranges = Ranges(tables=self.integers.dtypes)

    def normal(self, node: Node) -> Node:
        """The node with constants that float32 can hold."""
        if node not in self._normalised:
            grid = self.plan.grid
            whole = node if grid is None else coordinated(grid, node, within_lookups=True)
            self._normalised[node] = normalised(whole, self._ranges, self.plan.row_indices)
            self._exact |= decisive(self._normalised[node])
        found = self._normalised[node]
        for below in find(found, "const"):
            if below.kind == "int" and not fits((below.value, below.value), INT32):
                # Beside an int32 a bare number of this size is an error in Triton.
                self.printer.names[below] = f"tl.cast({held_in_int64(int(below.value))}, tl.int64)"
        return found

    def level(self, node: Node) -> str:
        """The outermost place where a value can be computed."""
        return level_of(node, self.plan.row_indices)

    def place(self, node: Node) -> int:
        """The depth at which a value is computed."""
        return self.order.index(self.level(node))

    def define(self, lines: Lines, level: str, roots: Iterable[Node]) -> None:
        """Assigns the values of a level that the roots need further in."""
        roots = tuple(self.normal(root) for root in roots)
        values = hoist(roots, self.place, len(self.order))
        self.printer.define(lines, values[self.order.index(level)])

    def inner(self) -> Values:
        """The values of an inner block: what it names is not seen outside."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.printer = self.printer.inner()
        return copy

    def write(self, lines: Lines, *roots: Node) -> list[str]:
        """Assigns what the roots share and returns their texts."""
        return self.printer.write(lines, *(self.normal(root) for root in roots))

    def share(self, lines: Lines, roots: Iterable[Node]) -> None:
        """Assigns what the roots share to names."""
        self.printer.share(lines, [self.normal(root) for root in roots])

    def text(self, node: Node, slot: int = TEST) -> str:
        return self.printer.text(self.normal(node), slot)

    def _leaf(self, node: Node, args: tuple[str, ...]) -> str:
        match node.op:
            case "index":
                position, _, axis = node.name.partition(".")
                return coordinate_name(position, axis) if axis else position
            case "score":
                return "score"
            case "out":
                return "normal"
            case "size":
                return self._size(node.name)
            case "scalar":
                kind = next(s.kind for s in self.plan.program.scalars if s.name == node.name)
                return f"attn_truth(p_{node.name} != 0)" if kind == "bool" else f"p_{node.name}"
            case "bound":
                return f"tile_{node.name}"
            case "summary":
                return f"summary_{node.name}"
            case "lookup":
                return self._lookup(node, args)
            case "dot":
                return self._dot(node, args)
        raise ValueError(f"a kernel has no text for {node.op}")

    def _size(self, name: str) -> str:
        if name == "D":
            return str(self.plan.request.head_dim)
        return size_name(name) if name in self.plan.program.bound_dims else name

    def _lookup(self, node: Node, args: tuple[str, ...]) -> str:
        call = ", ".join((*self.tensor_arguments(node.name), *args))
        text = f"attn_lookup_{self.pattern(node)}({call})"
        if node.kind == "float":
            return f"{text}.to(tl.float32)"
        if node.kind == "bool" and self.level(node) == "program":
            return f"attn_truth({text})"
        if node.kind == "int" and self.integers.dtype(node.name) in NARROW_DTYPES:
            return f"{text}.to(tl.int32)"
        if node.kind == "int" and self.integers.dtype(node.name) in WIDE_DTYPES:
            return f"{text}.to(tl.int64)"
        return text

    def _dot(self, node: Node, args: tuple[str, ...]) -> str:
        stride = "1" if self.plan.request.unit_stride else "query_stride_d"
        width = str(self.plan.request.head_dim)
        rest = ", ".join((*self.tensor_arguments(node.name), *args, width))
        return f"attn_dot_{self.pattern(node)}(query_rows, {stride}, rows < Nq, {rest})"

    def pattern(self, node: Node) -> str:
        """How each index of a lookup or dot varies and is tested; see `library.py`."""
        letters = ""
        for index, dim in zip(node.args, self.plan.program.tensor(node.name).dims, strict=False):
            if (index.attr, dim.attr) in (("b", "B"), ("h", "H")) and index.op == "index":
                letters += "v" if index.attr in self.plan.row_indices else "u"
            elif self.level(index) == "program":
                letters += "p"
            else:
                letters += "w" if self.integers.is_wide(index) else "n"
        return letters

    def indices(self, node: Node) -> tuple[Node, ...]:
        """The indices of a lookup or dot as they are written."""
        return self.normal(node).args

    def tensor_arguments(self, name: str, with_strides: bool = True) -> list[str]:
        """The kernel's names for a tensor: pointer, extents, strides, and whether it is large."""
        rank = len(self.plan.program.tensor(name).dims)
        pointer = [f"t_{name}"] if with_strides else []
        strides = [f"s{axis}_{name}" for axis in range(rank - 1)] if with_strides else []
        return [*pointer, *(f"d{axis}_{name}" for axis in range(rank)), *strides, f"wide_{name}"]

    def _spell(self, node: Node) -> Spelling:
        found = self._spell_operation(node)
        if node.kind != "int" or not self.integers.is_cut(node):
            return found
        return Spelling(f"tl.cast({found.template}, tl.int32)", ATOM, found.slots)

    def _spell_operation(self, node: Node) -> Spelling:
        if node.op in ("floordiv", "floormod"):
            x, y = node.args
            plain = self.integers.is_nonnegative(x) and y.op == "const" and y.value > 0
            if plain:
                symbol = "//" if node.op == "floordiv" else "%"
                return Spelling(f"{{0}} {symbol} {{1}}", PRODUCT, (PRODUCT, PRODUCT + 1))
        if node in self._exact:
            return call("attn_divide", 2) if node.op == "div" else call("attn_root")
        if node.op == "tanh" and self.plan.request.dtype in ("float16", "bfloat16"):
            return call("attn_tanh_of_half")
        if node.op in ("min", "max") and node.kind == "float":  # as in torch, NaN wins
            name = "minimum" if node.op == "min" else "maximum"
            template = f"tl.{name}({{0}}, {{1}}, propagate_nan=tl.PropagateNan.ALL)"
            return Spelling(template, ATOM, (TEST, TEST))
        if node.op == "pow" and is_const(node.args[1], 2.0):
            return Spelling("attn_square({0})", ATOM, (TEST, TEST))
        spelling = table_spelling("triton", node)
        if node.op in TESTS and self.level(node) == "program":
            return Spelling(f"attn_truth({spelling.template})", ATOM, spelling.slots)
        if node.kind == "int" and node.op != "bool_to_int" and self.integers.must_be_cast(node):
            first = 1 if node.op == "where" else 0
            wide = f"tl.cast({{{first}}}, tl.int64)"
            slots = tuple(TEST if at == first else s for at, s in enumerate(spelling.slots))
            template = spelling.template.replace(f"{{{first}}}", wide)
            return Spelling(template, spelling.precedence, slots)
        return spelling


def uses_score(*roots: Node) -> bool:
    """Whether any of the expressions needs query times key."""
    return any(find(root, "score") for root in roots)
