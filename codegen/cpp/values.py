"""IR expressions as C++: typed names, widths of integers, lookups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attndsl.ir.nodes import Node
from attndsl.ir.ops import ATOM, OPS, PRODUCT, TEST, UNARY, Spelling
from attndsl.plan.kernel_plan import KernelPlan

from ..expressions import Printer, table_spelling
from ..integers import NARROW_DTYPES, Integers
from ..lines import Lines
from ..scope import guarded_axes, scalar_name, size_name, tensor_name
from .call import NARROW

LEVELS = ("program", "row", "column", "pair")
WIDE_INT, INT = "int64_t", "int32_t"
ROUNDING = ("floor", "ceil", "round", "trunc", "bool_to_int")  # their functions give 32 bits


def level_of(node: Node) -> str:
    """The outermost place where a value can be computed."""
    if "score" in node.varies or node.varies >= {"q", "k"}:
        return "pair"
    if "k" in node.varies:
        return "pair" if node.op == "dot" else "column"
    return "row" if "q" in node.varies else "program"


def place_of(node: Node) -> int:
    return LEVELS.index(level_of(node))


def literal(value: bool | int | float, accumulator: str) -> str:
    """A constant as C++ text.

    >>> literal(0.1, "float32"), literal(float("-inf"), "float64"), literal(2**40, "float32")
    ('0.1f', '-INFINITY', 'INT64_C(1099511627776)')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        held = min(max(value, -(2**63) + 1), 2**63 - 1)
        return str(held) if -(2**31) < held < 2**31 else f"INT64_C({held})"
    if math.isnan(value):
        return "NAN"
    largest = 3.4028235677973366e38 if accumulator == "float32" else math.inf  # rounds to infinity
    if abs(value) >= largest:
        return "INFINITY" if value > 0 else "-INFINITY"
    return repr(value) + ("f" if accumulator == "float32" else "")


@dataclass(frozen=True)
class Leaves:
    """Texts of the leaves of one scope: `names` by (op, name), "" for score and out."""

    names: Mapping[tuple[str, str], str]
    dot: Callable[[Node, tuple[str, ...]], str] | None = None


class Values(Printer):
    """A printer whose names are typed constants.

    is_wide  whether every int has 64 bits: where a value is computed once for a tile. Elsewhere an
             int has 32 bits where its range is proved to fit.
    """

    def __init__(self, plan: KernelPlan, leaves: Leaves, is_wide: bool, prefix: str = "v") -> None:
        super().__init__("cpp", self._text_of_leaf, spell=self._spelling, prefix=prefix)
        self.plan, self.leaves, self.is_wide = plan, leaves, is_wide
        self.integers = Integers(plan)

    def scope(self, prefix: str) -> Values:
        """A printer of an inner scope: sees the names so far, and its own do not come back."""
        inner = Values(self.plan, self.leaves, self.is_wide, prefix)
        inner.names.update(self.names)
        return inner

    def type_of(self, node: Node) -> str:
        """The C++ type of a node's text."""
        if node.kind == "bool":
            return "bool"
        if node.kind == "float":
            return "A"
        if node.op in ROUNDING:
            return INT
        return WIDE_INT if self.is_wide or self.integers.is_wide(node) else INT

    def text(self, node: Node, slot: int = TEST) -> str:
        if node.op != "const" or node in self.names:
            return super().text(node, slot)
        found = literal(node.value, self.plan.accumulator)
        return f"({found})" if found.startswith("-") and slot > UNARY else found

    def declare(self, lines: Lines, name: str, node: Node) -> None:
        """`name` as the node's value."""
        lines.add(f"const {self.type_of(node)} {name} = {self.text(node)};")

    def _assign(self, lines: Lines, node: Node) -> None:
        name = f"{self._prefix}{self._count}"
        self._count += 1
        self.declare(lines, name, node)
        self.names[node] = name

    def _text_of_leaf(self, node: Node, args: tuple[str, ...]) -> str:
        match node.op:
            case "size":
                return size_name(node.name) if self.is_wide else NARROW + size_name(node.name)
            case "scalar":
                name = scalar_name(node.name)
                return name if self.is_wide or node.kind != "int" else NARROW + name
            case "lookup":
                return self._lookup(node, args)
            case "dot":
                assert self.leaves.dot is not None, "no row here has a query"
                return self.leaves.dot(node, args)
        return self.leaves.names[node.op, node.name if isinstance(node.attr, str) else ""]

    def _lookup(self, node: Node, args: tuple[str, ...]) -> str:
        dtype = self.integers.dtype(node.name)
        place = place_text(node, args, len(args) - 1)
        element = f"attn_lookup<{guards(self.plan, node)}>({tensor_name(node.name)}, {place})"
        if node.kind == "float":
            return f"(A)wide({element})"
        if node.kind == "bool":
            return f"({element} != 0)"
        if self.is_wide:
            return f"(int64_t){element}"
        return f"(int32_t){element}" if dtype in NARROW_DTYPES else element

    def _spelling(self, node: Node) -> Spelling:
        spelling = table_spelling("cpp", node)
        if node.op in ("floordiv", "floormod"):
            x, y = node.args
            if self.integers.is_nonnegative(x) and y.op == "const" and y.value > 0:
                symbol = "/" if node.op == "floordiv" else "%"
                spelling = Spelling(f"{{0}} {symbol} {{1}}", PRODUCT, (PRODUCT, PRODUCT + 1))
                return self._cut(node, spelling)
        if node.kind != "int" or OPS[node.op].is_leaf or node.op in ROUNDING:
            return self._of_floats(node, spelling)
        if node.op in ("floordiv", "floormod", "min", "max", "abs"):
            # Arguments of one type: the widest of them all.
            wide = self.type_of(node) == WIDE_INT
            wide = wide or any(self.type_of(arg) == WIDE_INT for arg in node.args)
            name, rest = spelling.template.split("(")
            kind = WIDE_INT if wide else INT
            spelling = Spelling(f"{name}<{kind}>({rest}", ATOM, spelling.slots)
        elif not self.is_wide and self.integers.must_be_cast(node):
            first = 1 if node.op == "where" else 0
            slots = tuple(TEST if at == first else s for at, s in enumerate(spelling.slots))
            template = spelling.template.replace(f"{{{first}}}", f"(int64_t)({{{first}}})")
            spelling = Spelling(template, spelling.precedence, slots)
        return self._cut(node, spelling)

    def _of_floats(self, node: Node, spelling: Spelling) -> Spelling:
        if node.op in ("min", "max"):
            name, rest = spelling.template.split("(")
            return Spelling(f"{name}<A>({rest}", ATOM, spelling.slots)
        if node.op == "pow" and node.args[1].op == "const" and node.args[1].value == 2.0:
            return Spelling("attn_square({0})", ATOM, (TEST, TEST))
        return spelling

    def _cut(self, node: Node, spelling: Spelling) -> Spelling:
        """An int that is brought to 32 bits by its operation."""
        if self.is_wide or not self.integers.is_cut(node):
            return spelling
        return Spelling(f"(int32_t)({spelling.template})", UNARY, spelling.slots)


def guards(plan: KernelPlan, node: Node) -> int:
    """The axes of a lookup or dot whose index is tested, as bits."""
    return sum(1 << axis for axis in guarded_axes(plan.program, node))


def place_text(node: Node, args: tuple[str, ...], strides: int) -> str:
    """The arguments that say where an entry is: indices, extents, and the first `strides` strides;
    the last of a tensor is 1."""
    name, rank = node.name, len(args)
    extents = [f"d{axis}_{name}" for axis in range(rank)]
    return ", ".join([*args, *extents, *(f"s{axis}_{name}" for axis in range(strides))])


def lookup_function(rank: int) -> str:
    """C++ of a lookup with so many indices."""
    index = [f"int64_t i{axis}" for axis in range(rank)]
    extent = [f"int64_t d{axis}" for axis in range(rank)]
    stride = [f"int64_t s{axis}" for axis in range(rank - 1)]
    parameters = ", ".join(["const E *tensor", *index, *extent, *stride])
    tests = [
        f"(!(GUARDED >> {axis} & 1) || (uint64_t)i{axis} < (uint64_t)d{axis})"
        for axis in range(rank)
    ]
    place = " + ".join([*(f"i{axis} * s{axis}" for axis in range(rank - 1)), f"i{rank - 1}"])
    return f"""\
// An element; 0 where the index of a guarded axis lies outside.
template <int GUARDED, class E>
static inline E attn_lookup({parameters}) {{
    return {" && ".join(tests)} ? tensor[{place}] : E();
}}"""


def row_function(rank: int) -> str:
    """C++ of a dot's place, which has so many indices besides the element's."""
    index = [f"int64_t i{axis}" for axis in range(rank)]
    extent = [f"int64_t d{axis}" for axis in range(rank)]
    stride = [f"int64_t s{axis}" for axis in range(rank)]
    parameters = ", ".join([*index, *extent, *stride])
    tests = [
        f"(!(GUARDED >> {axis} & 1) || (uint64_t)i{axis} < (uint64_t)d{axis})"
        for axis in range(rank)
    ]
    place = " + ".join(f"i{axis} * s{axis}" for axis in range(rank))
    return f"""\
// The offset of a row of a tensor; -1 where the index of a guarded axis lies outside.
template <int GUARDED>
static inline int64_t attn_row({parameters}) {{
    return {" && ".join(tests)} ? {place} : -1;
}}"""


def place_function(rank: int) -> str:
    """C++ of the place of an element of a contiguous tensor."""
    return (
        row_function(rank)
        .replace("attn_row", "attn_place")
        .replace("a row of a", "an element of a")
    )
