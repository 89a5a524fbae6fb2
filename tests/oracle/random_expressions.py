"""Random expressions of the language, each with a bound on what it can be.

Bounds keep programs tame: ints below 2**14, floats below 8, arguments of exp and log in a safe
range, and comparisons or roundings of floats only where float32 and float64 agree exactly (raw
tensor elements, scalars and dyadic numbers). So a difference between two evaluations is an error,
not noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

T = TypeVar("T")
Pick = Callable[[int, int], int]  # an int between two, both inclusive


@dataclass(frozen=True)
class Int:
    text: str
    low: int
    high: int


@dataclass(frozen=True)
class Float:
    text: str
    bound: float


@dataclass(frozen=True)
class Dimension:
    """One dimension of a tensor: how it is declared, its size, an index that fits (or empty)."""

    declared: str
    size: int
    index: str = ""
    needs: str = ""  # the name that `index` uses: q, k or d


@dataclass(frozen=True)
class Table:
    name: str
    kind: str
    dims: tuple[Dimension, ...]
    low: int = 0
    high: int = 1


@dataclass
class Context:
    """What an expression may use where it stands."""

    names: tuple[str, ...]  # of b h q k d
    ints: list[Int] = field(default_factory=list)
    bools: list[str] = field(default_factory=list)
    floats: list[Float] = field(default_factory=list)
    tables: bool = True
    query: bool = False  # whether dot(query, ...) may be used


@dataclass
class Expressions:
    """Draws expressions; `new_scalar` and `new_table` declare parameters as they are needed."""

    pick: Pick
    new_scalar: Callable[[str], Int | Float | str]
    new_table: Callable[[str, int], Table]
    functions: list[tuple[str, str, int]] = field(default_factory=list)  # name, kind, arguments
    scalars: dict[str, list[Int | Float | str]] = field(default_factory=dict)
    tables: dict[str, list[Table]] = field(default_factory=dict)

    def choose(self, options: Sequence[T]) -> T:
        return options[self.pick(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.pick(1, 100) <= percent

    # -- parameters -------------------------------------------------------------------------

    def scalar(self, kind: str) -> Int | Float | str:
        known = self.scalars.setdefault(kind, [])
        if known and (len(known) >= 3 or self.chance(60)):
            return self.choose(known)
        known.append(self.new_scalar(kind))
        return known[-1]

    def table(self, kind: str) -> Table:
        known = self.tables.setdefault(kind, [])
        if known and (len(known) >= 3 or self.chance(50)):
            return self.choose(known)
        known.append(self.new_table(kind, self.choose((1, 1, 2, 2, 3, 4))))
        return known[-1]

    def lookup(self, table: Table, context: Context, depth: int) -> str:
        return f"{table.name}[{', '.join(self.indices(table.dims, context, depth))}]"

    def indices(self, dims: Sequence[Dimension], context: Context, depth: int) -> list[str]:
        result = []
        for dim in dims:
            allowed = all(name in context.names for name in dim.needs)
            if dim.index and allowed and self.chance(75):
                result.append(dim.index)
                continue
            inner = self.integer(replace(context, tables=False), min(depth, 1)).text
            shapes = (inner, f"{inner} % {max(dim.size, 1)}", f"abs({inner})")
            result.append(self.choose(shapes))
        return result

    # -- ints -------------------------------------------------------------------------------

    def integer(self, context: Context, depth: int) -> Int:
        drawn = self._integer(context, depth)
        if max(abs(drawn.low), abs(drawn.high)) > 2**14:
            return Int(f"({drawn.text} % 97)", 0, 96)
        return drawn

    def _integer(self, context: Context, depth: int) -> Int:
        if depth <= 0:
            return self._int_leaf(context)
        a = self.integer(context, depth - 1)
        form = self.pick(0, 15)
        reach = max(abs(a.low), abs(a.high))
        if form <= 3:
            b = self.integer(context, depth - 1)
            if form <= 1:
                return Int(f"({a.text} + {b.text})", a.low + b.low, a.high + b.high)
            return Int(f"({a.text} - {b.text})", a.low - b.high, a.high - b.low)
        if form == 4:
            n = self.choose((-2, -1, 2, 3))
            ends = (a.low * n, a.high * n)
            return Int(f"({a.text} * {n})", min(ends), max(ends))
        if form == 5:
            n = self.choose((-3, 1, 2, 3, 4, 7, 16))
            return Int(f"({a.text} // {n})", -reach - 1, reach + 1)
        if form == 6:
            n = self.choose((-3, 1, 2, 3, 4, 7, 16))
            return Int(f"({a.text} % {n})", min(0, n + 1), max(0, n - 1))
        if form == 7:
            s = self.scalar("int")
            assert isinstance(s, Int)
            reach = max(reach, abs(s.low), abs(s.high))
            return Int(f"({a.text} {self.choose(('//', '%'))} {s.text})", -reach - 1, reach + 1)
        if form == 8:
            return Int(f"abs({a.text})", 0, reach)
        if form in (9, 10):
            b = self.integer(context, depth - 1)
            name = "min" if form == 9 else "max"
            return Int(f"{name}({a.text}, {b.text})", min(a.low, b.low), max(a.high, b.high))
        if form == 11:
            low, high = self.pick(-6, 3), self.pick(4, 20)
            return Int(f"clamp({a.text}, {low}, {high})", low, high)
        if form == 12:
            b = self.integer(context, depth - 1)
            condition = self.boolean(context, depth - 1)
            text = f"({a.text} if {condition} else {b.text})"
            return Int(text, min(a.low, b.low), max(a.high, b.high))
        if form == 13 and reach <= 100:
            return Int(f"({a.text} ** 2)", 0, reach**2)
        if form == 14:
            name = self.choose(("floor", "ceil", "round", "int"))
            return Int(f"{name}({a.text} / {self.choose((2, 4))})", -reach - 1, reach + 1)
        if form == 15:
            return Int(f"int({self.boolean(context, depth - 1)})", 0, 1)
        return self._int_leaf(context)

    def _int_leaf(self, context: Context) -> Int:
        form = self.pick(0, 9)
        if form <= 5 and context.ints:
            return self.choose(context.ints)
        if form == 6:
            s = self.scalar("int")
            assert isinstance(s, Int)
            return s
        if form == 7 and context.tables:
            table = self.table("int")
            low, high = min(table.low, 0), max(table.high, 0)
            return Int(self.lookup(table, context, 1), low, high)
        if form == 8 and context.tables and self.chance(40):
            raw = self.raw(context)
            name = self.choose(("floor", "ceil", "round", "int"))
            return Int(f"{name}({raw.text} * 2.0)", -8, 8)
        n = self.pick(-4, 8)
        return Int(f"({n})" if n < 0 else str(n), n, n)

    # -- bools ------------------------------------------------------------------------------

    def boolean(self, context: Context, depth: int) -> str:
        if depth <= 0:
            return self._bool_leaf(context)
        form = self.pick(0, 9)
        if form == 0:
            return f"(not {self.boolean(context, depth - 1)})"
        if form <= 3:
            word = self.choose(("and", "or"))
            a, b = self.boolean(context, depth - 1), self.boolean(context, depth - 1)
            return f"({a} {word} {b})"
        if form == 4:
            condition = self.boolean(context, depth - 1)
            a, b = self.boolean(context, depth - 1), self.boolean(context, depth - 1)
            return f"({a} if {condition} else {b})"
        if form == 5:
            a, b = (self.integer(context, depth - 1).text for _ in range(2))
            c = self.integer(context, 0).text
            return f"({a} {self.choose(('<', '<='))} {b} {self.choose(('<', '<=', '!='))} {c})"
        return self._compare(context, depth)

    def _compare(self, context: Context, depth: int) -> str:
        operator = self.choose(("<", "<=", ">", ">=", "<=", ">=", "==", "!="))
        a, b = (self.integer(context, depth - 1).text for _ in range(2))
        return f"({a} {operator} {b})"

    def _bool_leaf(self, context: Context) -> str:
        form = self.pick(0, 9)
        if form <= 2 and context.bools:
            return self.choose(context.bools)
        if form == 3:
            s = self.scalar("bool")
            assert isinstance(s, str)
            return s
        if form <= 5 and context.tables:
            return self.lookup(self.table("bool"), context, 1)
        if form == 6 and context.tables:
            operator = self.choose(("<", ">="))
            return f"({self.raw(context).text} {operator} {self.choose(('0.25', '-0.5', '1.0'))})"
        return self._compare(context, 1)

    # -- floats -----------------------------------------------------------------------------

    def raw(self, context: Context) -> Float:
        """A tensor's element or a scalar as it is: the same in float32 and in float64."""
        if context.tables and self.chance(80):
            return Float(self.lookup(self.table("float"), context, 1), 3.0)
        s = self.scalar("float")
        assert isinstance(s, Float)
        return s

    def real(self, context: Context, depth: int) -> Float:
        drawn = self._real(context, depth)
        if drawn.bound > 8:
            if self.chance(50):
                return Float(f"(4.0 * tanh({drawn.text} / 4.0))", 4.0)
            return Float(f"clamp({drawn.text}, -3.7, 4.1)", 4.1)
        return drawn

    def _real(self, context: Context, depth: int) -> Float:
        if depth <= 0:
            return self._float_leaf(context)
        a = self.real(context, depth - 1)
        x = a.text
        form = self.pick(0, 21)
        if form <= 2:
            b = self.real(context, depth - 1)
            return Float(f"({x} {self.choose(('+', '-'))} {b.text})", a.bound + b.bound)
        if form <= 4:
            b = self.real(context, depth - 1)
            return Float(f"({x} * {b.text})", a.bound * b.bound)
        if form == 5:
            b = self.real(context, depth - 1)
            return Float(f"({x} / (1.5 + abs({b.text})))", a.bound)
        if form == 6:
            b = self.real(context, depth - 1)
            name = self.choose(("min", "max"))
            return Float(f"{name}({x}, {b.text})", max(a.bound, b.bound))
        if form == 7:
            b = self.real(context, depth - 1)
            condition = self.boolean(context, depth - 1)
            return Float(f"({x} if {condition} else {b.text})", max(a.bound, b.bound))
        if form == 8:
            name = self.choose(("sin", "cos", "tanh", "erf", "sigmoid"))
            return Float(f"{name}({x})", 1.0)
        if form == 9:
            return Float(f"{self.choose(('relu', 'abs'))}({x})", a.bound)
        if form == 10:
            return Float(f"softplus({x})", a.bound + 1)
        if form == 11:
            return Float(f"exp(min({x}, 1.25))", 3.5)
        if form == 12:
            return Float(f"exp2(clamp({x}, -3.3, 2.2))", 4.6)
        if form == 13:
            name = self.choose(("log", "log2"))
            return Float(f"{name}(0.5 + abs({x}))", 4.0)
        if form == 14:
            name = self.choose(("sqrt", "rsqrt"))
            return Float(f"{name}(0.5 + {x} * {x})", a.bound + 1.5)
        if form == 15:
            n = self.choose((2, 3))
            return Float(f"({x} ** {n})", a.bound**n)
        if form == 16:
            exponent = self.choose(("0.5", "1.5", "(-1)"))
            return Float(f"((0.5 + abs({x})) ** {exponent})", max(2.0, (a.bound + 0.5) ** 1.5))
        if form == 17:
            i = self.integer(context, depth - 1)
            return Float(f"(0.9 ** abs({i.text}))", 1.0)
        if form == 18:
            i = self.integer(context, depth - 1)
            return Float(f"((0.5 + sigmoid({x})) ** clamp({i.text}, -3, 3))", 8.0)
        if form == 19:
            operator = self.choose(("//", "%"))
            return Float(f"({self.raw(context).text} {operator} {self.choose(('0.5', '0.75'))})", 7)
        if form == 20:
            return Float(f"(-{x})", a.bound)
        return Float(f"clamp({x}, -1.3, 1.6)", 1.6)

    def _float_leaf(self, context: Context) -> Float:
        form = self.pick(0, 11)
        if form <= 3 and context.floats:
            return self.choose(context.floats)
        if form <= 5:
            return self.raw(context)
        if form == 6:
            i = self.integer(context, 1)
            reach = max(abs(i.low), abs(i.high), 1)
            return Float(f"({i.text} / {2 * reach})", 0.5)
        if form == 7:
            return Float(f"sin(0.3 * clamp({self.integer(context, 1).text}, -50, 50))", 1.0)
        if form == 8:
            return Float(f"float({self.boolean(context, 1)})", 1.0)
        if form == 9 and context.query and context.tables:
            rows = self.table("rows")
            indices = ", ".join(self.indices(rows.dims[:-1], context, 1))
            return Float(f"(dot(query, {rows.name}[{indices}]) / sqrt(D))", 4.0)
        if form == 10 and self.functions:
            name, kind, count = self.choose(self.functions)
            if kind == "float":
                given = [f"clamp({self.integer(context, 1).text}, -90, 90)" for _ in range(count)]
                return Float(f"{name}({', '.join(given)})", 8.0)
        n = self.choose(("0.5", "1.25", "(-0.75)", "2.0", "1.1", "pi / 4"))
        return Float(f"({n})" if "/" in n else n, 2.0)
