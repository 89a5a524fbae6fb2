"""Float functions over an interval, with room for rounding.

A pair may be computed with a contracted multiply-add, an approximate `exp`, or (for a table of
float64) in another width than the ends of the tile. So each result is widened by a relative and
an absolute margin that cover float32 and the fast functions of GPUs; nothing is claimed to the last
bit.
"""

from __future__ import annotations

from collections.abc import Callable

from attndsl.analysis.build import both, either
from attndsl.analysis.intervals import Ranges
from attndsl.analysis.values import UNKNOWN_FLOAT, Value
from attndsl.ir.nodes import FALSE, Node, constant, make

# Float32 rounds within 2**-24 of the value; a contracted or reordered operation within a few of it.
ROUNDING = 2.0**-20
TINY = 1e-30  # results below the least normal float32 may be flushed to 0
# tanh.approx has a relative error of 2**-11, exp of a rounded argument of 88 * 2**-24.
FUNCTION = 2.0**-9

INFINITY = constant(float("inf"))
INCREASING = frozenset(
    ("exp", "exp2", "log", "log2", "sqrt", "tanh", "erf", "sigmoid", "relu", "softplus")
)
WIDTHS: dict[str, tuple[float, float]] = {  # relative, absolute
    "sqrt": (ROUNDING, 0.0),
    "rsqrt": (2.0**-16, TINY),
    "exp": (FUNCTION, TINY),
    "exp2": (FUNCTION, TINY),
}
DEFAULT_WIDTH = (FUNCTION, FUNCTION)


def float_value(node: Node, values: Callable[[Node], Value], ranges: Ranges) -> Value:
    """The value of a float operation from those of its arguments."""
    args = [values(arg) for arg in node.args]
    if any(v.lo is None or v.hi is None for v in args if node.op not in ("min", "max")):
        return _of_unlimited(node, args)
    op = node.op
    if op == "to_float":
        ends = [make("to_float", end) for end in (args[0].lo, args[0].hi) if end is not None]
        return widened(ends[0], ends[-1], args[0].sound, ROUNDING, 0.0)
    if op == "neg":
        return Value(_negated(args[0].hi), _negated(args[0].lo), args[0].sound)
    if op == "abs":
        return _absolute(args[0])
    if op in ("min", "max"):
        return _extreme(op, *args)
    if op in ("add", "sub", "mul", "div"):
        finite = [is_finite(arg, value, ranges) for arg, value in zip(node.args, args, strict=True)]
        return _arithmetic(op, args[0], args[1], finite)
    if op in INCREASING or op == "rsqrt":
        return _function(node, args[0], ranges)
    if op in ("sin", "cos"):
        finite_arg = is_finite(node.args[0], args[0], ranges)
        return Value(constant(-1.001), constant(1.001), finite_arg)
    return UNKNOWN_FLOAT  # pow, floordiv_float, floormod_float


def _of_unlimited(node: Node, args: list[Value]) -> Value:
    """What is known of a function of an argument with no limit at some end."""
    value = args[0]
    if node.op == "to_float":
        lo = None if value.lo is None else lowered(make("to_float", value.lo), ROUNDING, 0.0)
        hi = None if value.hi is None else raised(make("to_float", value.hi), ROUNDING, 0.0)
        return Value(lo, hi, value.sound)
    if node.op == "neg":
        return Value(_negated(value.hi), _negated(value.lo), value.sound)
    return UNKNOWN_FLOAT


def lowered(node: Node, relative: float, absolute: float) -> Node:
    """A bound below `node` by the margins; infinities stay what they are."""
    low = _times_at_least(node, relative, "min")
    return make("sub", low, constant(absolute)) if absolute else low


def raised(node: Node, relative: float, absolute: float) -> Node:
    high = _times_at_least(node, relative, "max")
    return make("add", high, constant(absolute)) if absolute else high


def _times_at_least(node: Node, relative: float, extreme: str) -> Node:
    less = make("mul", node, constant(1.0 - relative))
    more = make("mul", node, constant(1.0 + relative))
    return make(extreme, less, more)


def widened(lo: Node, hi: Node, sound: Node, relative: float, absolute: float) -> Value:
    return Value(lowered(lo, relative, absolute), raised(hi, relative, absolute), sound)


def is_finite(node: Node, value: Value, ranges: Ranges) -> Node:
    """A condition under which the value is finite at every pair (and no NaN)."""
    low, high = ranges.of(node)
    if abs(low) < 1e37 and abs(high) < 1e37:
        return value.sound
    if value.lo is None or value.hi is None:
        return FALSE
    below, above = make("neg", INFINITY), INFINITY
    return both(value.sound, make("lt", below, value.lo), make("lt", value.hi, above))


def _negated(end: Node | None) -> Node | None:
    return None if end is None else make("neg", end)


def _absolute(x: Value) -> Value:
    assert x.lo is not None and x.hi is not None
    if x.lo is x.hi:
        return Value(make("abs", x.lo), make("abs", x.lo), x.sound)
    zero = constant(0.0)
    low = make("max", make("max", x.lo, make("neg", x.hi)), zero)
    return Value(low, make("max", x.hi, make("neg", x.lo)), x.sound)


def _extreme(op: str, x: Value, y: Value) -> Value:
    """min or max. A side without a limit leaves that of the other where the op allows it."""

    def end(a: Node | None, b: Node | None, one_is_enough: bool) -> Node | None:
        if a is not None and b is not None:
            return make(op, a, b)
        return (a or b) if one_is_enough else None

    return Value(end(x.lo, y.lo, op == "max"), end(x.hi, y.hi, op == "min"), both(x.sound, y.sound))


def _arithmetic(op: str, x: Value, y: Value, finite: list[Node]) -> Value:
    assert x.lo is not None and x.hi is not None and y.lo is not None and y.hi is not None
    sound = both(x.sound, y.sound)
    if op in ("add", "sub"):  # inf - inf is NaN
        lo, hi = (y.lo, y.hi) if op == "add" else (y.hi, y.lo)
        sound = both(sound, either(*finite))
        return widened(make(op, x.lo, lo), make(op, x.hi, hi), sound, ROUNDING, TINY)
    sound = both(sound, *finite)
    if op == "div":
        zero = constant(0.0)
        sound = both(sound, either(make("lt", zero, y.lo), make("lt", y.hi, zero)))
    corners = list(dict.fromkeys(make(op, a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi)))
    lo, hi = corners[0], corners[0]
    for corner in corners[1:]:
        lo, hi = make("min", lo, corner), make("max", hi, corner)
    return widened(lo, hi, sound, ROUNDING, TINY)


def _function(node: Node, x: Value, ranges: Ranges) -> Value:
    assert x.lo is not None and x.hi is not None
    op, lo, hi, sound = node.op, x.lo, x.hi, x.sound
    if op == "rsqrt":  # inf at 0, -inf at -0
        sound = both(sound, make("lt", constant(0.0), lo))
    if op in ("sqrt", "rsqrt", "log", "log2"):  # NaN below 0
        if ranges.of(node.args[0])[0] < 0:
            sound = both(sound, make("le", constant(0.0), lo))
        lo = make("max", lo, constant(0.0))
        hi = make("max", hi, constant(0.0))
    if op == "relu":
        return Value(make(op, lo), make(op, hi), sound)
    if op == "rsqrt":
        lo, hi = hi, lo
    relative, absolute = WIDTHS.get(op, DEFAULT_WIDTH)
    return widened(make(op, lo), make(op, hi), sound, relative, absolute)
