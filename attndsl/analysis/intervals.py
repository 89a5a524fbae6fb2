"""Ranges of values known before a program runs, as Python numbers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, MutableMapping

from attndsl.ir.nodes import Node, topological
from attndsl.ir.ops import INT_OF_FLOAT

Number = int | float
Range = tuple[Number, Number]  # both inclusive; an unlimited end is -inf or inf
Transfer = Callable[..., Range]

ALL: Range = (-math.inf, math.inf)
POSITION = 2**29  # positions lie within +-POSITION, sizes in 0 .. POSITION
TILE_SLACK = 2**16  # the last position of a tile may lie this far beyond the axis
SCALAR = 2**30 - 1  # int scalars lie within +-SCALAR
INT32: Range = (-(2**31), 2**31 - 1)
HUGE = 2**200  # beyond it an end counts as unlimited, which keeps ints convertible to floats
FLOAT32_MAX = 2.0**127
TO_INT = frozenset(("floor", "ceil", "round", "trunc"))
# Float ops that give a number for finite arguments, if their range is finite (of the functions with
# a pole or an edge those whose range then is not: div, log; sqrt and pow are left out).
NO_NAN = frozenset(
    "const scalar add sub mul div neg abs min max where exp exp2 rsqrt sin cos tanh erf sigmoid "
    "relu softplus to_float".split()
)
COMPARISONS = frozenset(("lt", "le", "eq", "ne"))

TABLE_RANGES: dict[str, Range] = {
    "bool": (0, 1),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": INT32,
    "int64": (-(2**63), 2**63 - 1),
}


def hull(*ranges: Range) -> Range:
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def _limit(value: Number) -> Number:
    if value > HUGE:
        return math.inf
    return -math.inf if value < -HUGE else value


def _times(a: Number, b: Number) -> Number:
    return 0 if a == 0 or b == 0 else a * b


def _corners(function: Callable[[Number, Number], Number], x: Range, y: Range) -> Range:
    values = [function(a, b) for a in x for b in y]
    return min(values), max(values)


def _floor_quotient(a: Number, b: Number) -> Number:
    """floor(a / b) at a corner, b not 0; at two unlimited ends any value between the corners."""
    if math.isinf(b):
        return 0 if math.isinf(a) or a == 0 or (a > 0) == (b > 0) else -1
    return a * (1 if b > 0 else -1) if math.isinf(a) else a // b


def _signed_parts(y: Range) -> list[Range]:
    """The positive and the negative ints of a range."""
    parts: list[Range] = [(max(1, y[0]), y[1]), (y[0], min(-1, y[1]))]
    return [part for part in parts if part[0] <= part[1]]


def _floordiv(x: Range, y: Range) -> Range:
    parts = [_corners(_floor_quotient, x, part) for part in _signed_parts(y)]
    return hull(*parts, *([(0, 0)] if y[0] <= 0 <= y[1] else []))


def _floormod(x: Range, y: Range) -> Range:
    parts: list[Range] = [(0, 0)] if y[0] <= 0 <= y[1] else []
    for low, high in _signed_parts(y):
        if low > 0:
            if x[0] >= 0 and x[1] < low:
                parts.append(x)
            else:
                parts.append((0, min(high - 1, x[1]) if x[0] >= 0 else high - 1))
        else:
            parts.append((low + 1, 0))
    return hull(*parts)


def _div(x: Range, y: Range) -> Range:
    if y[0] <= 0 <= y[1] or math.isinf(y[0]) or math.isinf(y[1]):
        return ALL
    return _corners(lambda a, b: a / b, x, y)


def _abs(x: Range) -> Range:
    return 0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1])), max(abs(x[0]), abs(x[1]))


def _power_of(base: float) -> Callable[[Number], Number]:
    def power(x: Number) -> Number:
        try:
            return float(base**x)
        except OverflowError:
            return math.inf

    return power


def _logarithm(x: Number) -> Number:
    return -math.inf if x <= 0 else math.log(x)


def _increasing(function: Callable[[Number], Number]) -> Transfer:
    return lambda x: (function(x[0]), function(x[1]))


def _whole(function: Callable[[Number], int]) -> Transfer:
    """An increasing function to ints; unlimited ends stay."""

    def end(x: Number) -> Number:
        return x if math.isinf(x) else function(x)

    return lambda x: (end(x[0]), end(x[1]))


def _root(x: Number) -> Number:
    return math.sqrt(x) if x > 0 else 0.0


def _rsqrt(x: Range) -> Range:
    return (1 / math.sqrt(x[1]) if x[1] > 0 else 0.0, 1 / math.sqrt(x[0]) if x[0] > 0 else math.inf)


def _less(x: Range, y: Range, equal_counts: bool) -> Range:
    if x[1] < y[0] or (equal_counts and x[1] == y[0]):
        return (1, 1)
    return (0, 0) if x[0] > y[1] or (not equal_counts and x[0] == y[1]) else (0, 1)


def _equal(x: Range, y: Range) -> Range:
    if x[1] < y[0] or y[1] < x[0]:
        return (0, 0)
    return (1, 1) if x == y and x[0] == x[1] else (0, 1)


def _not(x: Range) -> Range:
    return 1 - x[1], 1 - x[0]


def _where(c: Range, x: Range, y: Range) -> Range:
    return x if c[0] == 1 else y if c[1] == 0 else hull(x, y)


def _pairwise(function: Callable[[Number, Number], Number]) -> Transfer:
    return lambda x, y: (function(x[0], y[0]), function(x[1], y[1]))


# The range of each op from those of its arguments; bools are 0 and 1. Where an argument is NaN the
# range says nothing about the result, except for the functions below that give bounded results.
TRANSFER: dict[str, Transfer] = {
    "add": lambda x, y: (x[0] + y[0], x[1] + y[1]),
    "sub": lambda x, y: (x[0] - y[1], x[1] - y[0]),
    "mul": lambda x, y: _corners(_times, x, y),
    "div": _div,
    "floordiv": _floordiv,
    "floormod": _floormod,
    "floordiv_float": lambda x, y: ALL,
    "floormod_float": lambda x, y: ALL,
    "pow": lambda x, y: (0.0, math.inf) if x[0] >= 0 else ALL,
    "neg": lambda x: (-x[1], -x[0]),
    "abs": _abs,
    "min": _pairwise(min),
    "max": _pairwise(max),
    "lt": lambda x, y: _less(x, y, equal_counts=False),
    "le": lambda x, y: _less(x, y, equal_counts=True),
    "eq": _equal,
    "ne": lambda x, y: _not(_equal(x, y)),
    "and": _pairwise(min),
    "or": _pairwise(max),
    "not": _not,
    "where": _where,
    "exp": _increasing(_power_of(math.e)),
    "exp2": _increasing(_power_of(2.0)),
    "log": _increasing(_logarithm),
    "log2": _increasing(lambda x: _logarithm(x) / math.log(2)),
    "sqrt": _increasing(_root),
    "rsqrt": _rsqrt,
    "sin": lambda x: (-1.0, 1.0),
    "cos": lambda x: (-1.0, 1.0),
    "tanh": lambda x: (-1.0, 1.0),
    "erf": lambda x: (-1.0, 1.0),
    "sigmoid": lambda x: (0.0, 1.0),
    "relu": _increasing(lambda x: max(x, 0.0)),
    "softplus": lambda x: (0.0, max(x[1], 0.0) + 1.0),
    "floor": _whole(math.floor),
    "ceil": _whole(math.ceil),
    "round": _whole(round),
    "trunc": _whole(math.trunc),
    "to_float": lambda x: x,
    "bool_to_int": lambda x: x,
}


def _widen(x: Range) -> Range:
    """Room for the rounding of float32 and of approximate functions."""
    low, high = x
    return low - abs(low) * 2.0**-8 if math.isfinite(low) else low, (
        high + abs(high) * 2.0**-8 if math.isfinite(high) else high
    )


def leaf_range(node: Node, tables: Mapping[str, str]) -> Range:
    """What is known of a leaf whatever the call; `tables` gives dtypes of int tensors by name."""
    if node.op == "const":
        value = node.value
        return (
            ALL
            if math.isnan(value)
            else (int(value),) * 2
            if node.kind != "float"
            else (value,) * 2
        )
    if node.kind == "bool":
        return 0, 1
    if node.kind == "float":
        return ALL
    if node.op == "index":
        return (-POSITION, POSITION) if node.name in ("q", "k") else (0, POSITION - 1)
    if node.op == "size":
        return 0, POSITION
    if node.op == "scalar":
        return -SCALAR, SCALAR
    if node.op == "bound":
        return -POSITION - TILE_SLACK, POSITION + TILE_SLACK
    if node.op == "summary":  # of a table of any width
        return TABLE_RANGES["int64"]
    if node.op == "lookup":  # outside its tensor a lookup gives 0, which each dtype has
        return TABLE_RANGES.get(tables.get(node.name, "int64"), ALL)
    return ALL


class Ranges:
    """Ranges of nodes, each found once. `known` overrides those of whole nodes."""

    def __init__(
        self, known: Mapping[Node, Range] | None = None, tables: Mapping[str, str] | None = None
    ) -> None:
        self.found: MutableMapping[Node, Range] = weakref.WeakKeyDictionary(dict(known or {}))
        self.tables = {} if tables is None else tables
        self._finite: MutableMapping[Node, bool] = weakref.WeakKeyDictionary()

    def of(self, root: Node) -> Range:
        waiting = [root]  # a walk that goes no deeper than what is known
        while waiting:
            node = waiting[-1]
            unknown = [arg for arg in node.args if arg not in self.found]
            if unknown and node not in self.found:
                waiting += unknown
                continue
            waiting.pop()
            if node not in self.found:
                self.found[node] = self._range(node)
        return self.found[root]

    def _range(self, node: Node) -> Range:
        transfer = TRANSFER.get(node.op)
        if transfer is None:
            return leaf_range(node, self.tables)
        if node.op in COMPARISONS and node.args[0].kind == "float":
            return 0, 1  # one side may be NaN
        if node.op in TO_INT and not self._is_finite(node.args[0]):
            return -INT_OF_FLOAT, INT_OF_FLOAT
        if node.op == "mul" and node.args[0] is node.args[1]:
            x = _abs(self.found[node.args[0]])
            low, high = _times(x[0], x[0]), _times(x[1], x[1])
        else:
            low, high = transfer(*(self.found[arg] for arg in node.args))
        if math.isnan(low) or math.isnan(high):
            return ALL
        if node.op in TO_INT:
            low, high = max(low, -INT_OF_FLOAT), min(high, INT_OF_FLOAT)
        low, high = _limit(low), _limit(high)
        return _widen((low, high)) if node.kind == "float" else (low, high)

    def _is_finite(self, root: Node) -> bool:
        """Whether a float is surely a finite number: its range is finite, and NaN cannot arise."""
        for node in topological(root):
            if node.kind == "float" and node not in self._finite:
                low, high = self.found[node] if node in self.found else self._range(node)
                self._finite[node] = (
                    abs(low) < FLOAT32_MAX
                    and abs(high) < FLOAT32_MAX
                    and node.op in NO_NAN
                    and all(self._finite[arg] for arg in node.args if arg.kind == "float")
                )
        return self._finite[root]


_ANY_CALL = Ranges()


def range_of(root: Node) -> Range:
    """The range of a node, whatever the call; kept as long as the node."""
    return _ANY_CALL.of(root)


class _AnyTable(dict[str, str]):
    """Every table as one of int32."""

    def get(self, key: str, default: object = None) -> str:
        return "int32"


_USUAL_CALL = Ranges(tables=_AnyTable())
_WRAPS: MutableMapping[Node, bool] = weakref.WeakKeyDictionary()
_WRAPS_USUALLY: MutableMapping[Node, bool] = weakref.WeakKeyDictionary()


def may_wrap(root: Node) -> bool:
    """Whether an int below a node may leave 64 bits, where tensors go on with what remains of it.

    What the analysis concludes from exact numbers does not hold for such a node.
    """
    return _may_wrap(root, _ANY_CALL, _WRAPS)


def may_wrap_usually(root: Node) -> bool:
    """The same for tables whose entries fit 32 bits.

    >>> from attndsl.ir.nodes import constant, index, lookup, make
    >>> further = make("add", lookup("reach", "int", index("h")), constant(1))
    >>> may_wrap(further), may_wrap_usually(further)
    (True, False)
    """
    return _may_wrap(root, _USUAL_CALL, _WRAPS_USUALLY)


def _may_wrap(root: Node, ranges: Ranges, stored: MutableMapping[Node, bool]) -> bool:
    for node in topological(root) if root not in stored else ():
        if node not in stored:
            low, high = ranges.of(node) if node.kind == "int" else (0, 0)
            is_wide = low < -(2**63) or high >= 2**63
            stored[node] = is_wide or any(stored[arg] for arg in node.args)
    return stored[root]


def int_range(
    node: Node,
    ranges: Mapping[Node, Range] | None = None,
    tables: Mapping[str, str] | None = None,
) -> Range:
    """The least and greatest value of a node, whatever the call; -inf and inf where unlimited.

    >>> from attndsl.ir.nodes import constant, index, make
    >>> int_range(make("floormod", index("k"), constant(4)))
    (0, 3)
    """
    return Ranges(ranges, tables).of(node)


def fits_int32(
    node: Node,
    ranges: Mapping[Node, Range] | None = None,
    tables: Mapping[str, str] | None = None,
) -> bool:
    """Whether the node and every int on the way to it lies within 32 bits, so that int32 arithmetic
    gives the right value.

    >>> from attndsl.ir.nodes import index, make
    >>> fits_int32(make("sub", index("q"), index("k")))
    True
    >>> fits_int32(make("mul", index("q"), index("k")))
    False
    """
    known = Ranges(ranges, tables)
    known.of(node)
    for below in topological(node):
        low, high = known.of(below)
        if below.kind == "int" and not (INT32[0] <= low and high <= INT32[1]):
            return False
    return True


def is_nonnegative(
    node: Node,
    ranges: Mapping[Node, Range] | None = None,
    tables: Mapping[str, str] | None = None,
) -> bool:
    """Whether an int node is at least 0, whatever the call (of a float: or NaN)."""
    return int_range(node, ranges, tables)[0] >= 0
