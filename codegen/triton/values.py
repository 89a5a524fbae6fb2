"""What names and operations of the IR look like in a kernel, and where each value is computed."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from attndsl.ir.nodes import Node, constant, find, is_const, make, rebuild
from attndsl.ir.ops import ATOM, PRODUCT, TEST, Spelling
from attndsl.plan.kernel_plan import KernelPlan

from ..expressions import Printer, hoist, table_spelling
from ..lines import Lines
from .integers import NARROW_DTYPES, WIDE_DTYPES, Integers

LEVELS = ("program", "row", "column", "pair")
COMPARISONS = ("lt", "le", "eq", "ne")
SMALLEST_NORMAL = 2.0**-126
LARGEST = (2.0 - 2.0**-23) * 2.0**127


def level_of(node: Node) -> str:
    """The outermost place where a value can be computed; `d` counts as a column of the output."""
    varies = node.varies
    if varies & {"score", "out"}:
        return "pair"
    row, column = "q" in varies, bool(varies & {"k", "d"})
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


def normalised(root: Node) -> Node:
    """The expression with constants that float32 can hold.

    >>> normalised(constant(1e-50))
    const(0.0)
    """

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "const":
            return constant(float32(node.value)) if node.kind == "float" else node
        if node.op == "score" or args == node.args:
            return node
        return make(node.op, *args, attr=node.attr, kind=node.kind)

    return rebuild(root, change)


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

    def normal(self, node: Node) -> Node:
        """The node with constants that float32 can hold."""
        if node not in self._normalised:
            self._normalised[node] = normalised(node)
        return self._normalised[node]

    def place(self, node: Node) -> int:
        """The depth at which a value is computed."""
        return self.order.index(level_of(node))

    def define(self, lines: Lines, level: str, roots: Iterable[Node]) -> None:
        """Assigns the values of a level that the roots need further in."""
        roots = tuple(self.normal(root) for root in roots)
        values = hoist(roots, self.place, len(self.order))
        self.printer.define(lines, values[self.order.index(level)])

    def inner(self) -> Values:
        """The values of an inner block: what it names is not seen outside."""
        copy = object.__new__(Values)
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
                return node.name
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
            case "lookup":
                return self._lookup(node, args)
            case "dot":
                return self._dot(node, args)
        raise ValueError(f"a kernel has no text for {node.op}")

    def _size(self, name: str) -> str:
        if name == "D":
            return str(self.plan.request.head_dim)
        return f"size_{name}" if name in self.plan.program.bound_dims else name

    def _lookup(self, node: Node, args: tuple[str, ...]) -> str:
        rank = len(args)
        text = f"attn_lookup{rank}({', '.join((*tensor_arguments(node.name, rank), *args))})"
        if node.kind == "float":
            return f"{text}.to(tl.float32)"
        if node.kind == "int" and self.integers.dtype(node.name) in NARROW_DTYPES:
            return f"{text}.to(tl.int32)"
        if node.kind == "int" and self.integers.dtype(node.name) in WIDE_DTYPES:
            return f"{text}.to(tl.int64)"
        return text

    def _dot(self, node: Node, args: tuple[str, ...]) -> str:
        rank = len(args) + 1
        tensor = (*tensor_arguments(node.name, rank), *args)
        stride = "1" if self.plan.request.unit_stride else "query_stride_d"
        rest = ", ".join((*tensor, str(self.plan.request.head_dim)))
        return f"attn_dot{rank}(query_rows, {stride}, rows < Nq, {rest})"

    def _spell(self, node: Node) -> Spelling:
        if node.op in ("floordiv", "floormod"):
            x, y = node.args
            plain = self.integers.is_nonnegative(x) and y.op == "const" and y.value > 0
            if plain:
                symbol = "//" if node.op == "floordiv" else "%"
                return Spelling(f"{{0}} {symbol} {{1}}", PRODUCT, (PRODUCT, PRODUCT + 1))
        if node.op == "pow" and is_const(node.args[1], 2.0):
            return Spelling("attn_square({0})", ATOM, (TEST, TEST))
        spelling = table_spelling("triton", node)
        if node.op in COMPARISONS and level_of(node) == "program":
            return Spelling(f"attn_truth({spelling.template})", ATOM, spelling.slots)
        if node.kind == "int" and node.op != "bool_to_int" and self.integers.must_be_cast(node):
            first = 1 if node.op == "where" else 0
            wide = f"tl.cast({{{first}}}, tl.int64)"
            slots = tuple(TEST if at == first else s for at, s in enumerate(spelling.slots))
            template = spelling.template.replace(f"{{{first}}}", wide)
            return Spelling(template, spelling.precedence, slots)
        return spelling


def tensor_arguments(name: str, rank: int) -> list[str]:
    """The kernel's names for a tensor: pointer, extents, strides."""
    extents = [f"d{axis}_{name}" for axis in range(rank)]
    return [f"t_{name}", *extents, *(f"s{axis}_{name}" for axis in range(rank - 1))]


def uses_score(*roots: Node) -> bool:
    """Whether any of the expressions needs query times key."""
    return any(find(root, "score") for root in roots)

