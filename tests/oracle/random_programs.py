"""Random attention programs as text, with random inputs that fit them.

`random_case(pick)` composes a program from the whole language but `select`; `programs()` is the
same as a hypothesis strategy, `seeded(seed)` as a function of a number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.oracle.random_expressions import (
    Context,
    Dimension,
    Expressions,
    Float,
    Int,
    Pick,
    Table,
)

LENGTHS = (0, 1, 1, 2, 5, 7, 11, 15, 16, 17, 18, 24, 31, 32, 33, 34, 40)
WIDTHS = (1, 3, 4, 8, 13, 16, 17, 20)


@dataclass(frozen=True)
class Case:
    """A program and the inputs of one call. Floats are float32 numbers held in float64."""

    text: str
    query: Tensor
    key: Tensor
    value: Tensor
    consts: dict[str, bool | int | float]
    arguments: dict[str, Any]  # scalars and tensors
    call: dict[str, Any]  # scale, q_offset, k_offset, k_len

    def __repr__(self) -> str:
        """All that is needed to see what failed: the text, sizes and small values."""
        lines = [self.text, f"query {[*self.query.shape]} key {[*self.key.shape]}"]
        lines.append(f"value {[*self.value.shape]} consts {self.consts} call {self.call}")
        for name, given in self.arguments.items():
            is_large = isinstance(given, Tensor) and given.numel() > 16
            lines.append(f"{name} = {[*given.shape] if is_large else given}")
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints: without this, every number of every tensor."""
        printer.text("\n" + repr(self))


def programs() -> st.SearchStrategy[Case]:
    """Random cases as a hypothesis strategy; it shrinks towards short programs."""

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        return random_case(lambda low, high: draw(st.integers(low, high)))

    return draw_case()


def seeded(seed: int) -> Case:
    """The random case of a seed."""
    return random_case(random.Random(seed).randint)


def random_case(pick: Pick) -> Case:
    return _Composer(pick).compose()


@dataclass
class _Composer:
    pick: Pick
    declared: list[str] = field(default_factory=list)
    consts: dict[str, bool | int | float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)
    dims_bound: dict[str, int] = field(default_factory=dict)
    of_old_score: set[str] = field(default_factory=set)
    names: int = 0

    def __post_init__(self) -> None:
        self.make = Expressions(self.pick, self.new_scalar, self.new_table)
        choose = self.make.choose
        self.batch, self.key_heads, self.group = choose((1, 2, 3)), choose((1, 1, 2)), 1
        self.group = choose((1, 1, 2, 3))
        self.heads = self.key_heads * self.group
        self.rows, self.columns = choose(LENGTHS), choose(LENGTHS)
        self.width, self.value_width = choose(WIDTHS), choose(WIDTHS)
        self.torch_seed = torch.Generator().manual_seed(self.pick(0, 2**20))
        self.call: dict[str, Any] = {}
        if self.make.chance(30):
            self.call["scale"] = choose((0.25, 0.5, 1.0)) / self.width**0.5
        self.q_at = self.offset("q_offset")
        self.k_at = self.offset("k_offset")
        if self.make.chance(25):
            lengths = [self.pick(0, self.columns + 1) for _ in range(self.batch)]
            self.call["k_len"] = torch.tensor(lengths)

    def fresh(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def offset(self, name: str) -> tuple[int, int]:
        """Draw an offset; returns the range of positions that it gives."""
        length = self.rows if name == "q_offset" else self.columns
        near = (self.columns - self.rows, -3, 5, 40, 1000)
        if self.make.chance(50):
            return 0, max(length - 1, 0)
        if self.make.chance(50):
            at = self.make.choose(near)
            self.call[name] = at
            return at, at + max(length - 1, 0)
        each = [self.pick(-8, 40) for _ in range(self.batch)]
        self.call[name] = torch.tensor(each)
        return min(each), max(each) + max(length - 1, 0)

    # -- parameters -------------------------------------------------------------------------

    def new_scalar(self, kind: str) -> Int | Float | str:
        name = self.fresh({"int": "n", "float": "f", "bool": "on"}[kind])
        value: bool | int | float
        is_const = self.make.chance(25)
        if kind == "int":
            value = self.pick(-3, 12)
            if is_const and value == 0:  # a literal zero divisor would be an error
                value = 5
        elif kind == "bool":
            value = bool(self.pick(0, 1))
        else:
            value = self.pick(-12, 12) / 8
        shown = str(value).lower()
        default = f" = {shown}" if self.make.chance(50) else ""
        if is_const:
            self.consts[name] = value
        elif not default or self.make.chance(30):
            self.arguments[name] = value
        self.declared.append(f"{name}: {'const ' if is_const else ''}{kind}{default}")
        if kind == "int":
            return Int(name, -3, 12)
        return Float(name, 1.5) if kind == "float" else name

    def new_table(self, kind: str, rank: int) -> Table:
        """`rows` is a float table whose last dimension is D; `out` one with the width of `out`."""
        name = self.fresh({"int": "ids", "float": "t", "bool": "is", "rows": "e", "out": "o"}[kind])
        dims: list[Dimension] = []
        if rank == 4:
            dims = [self.dims()[key] for key in ("B", "H", "Nq", "Nk")]
        else:
            dims = [self.dimension() for _ in range(rank)]
        if kind == "rows":
            dims = dims[:2] + [Dimension("D", self.width)]
        if kind == "out":
            dims = dims[:1] + [Dimension("W", self.value_width, "d", "d")]
        shape = [dim.size for dim in dims]
        stored = "float" if kind in ("rows", "out") else kind
        self.declared.append(f"{name}: {stored}[{', '.join(dim.declared for dim in dims)}]")
        low, high = self.make.choose(((0, 3), (-2, 9), (0, 40)))
        self.arguments[name] = self.values(stored, shape, low, high)
        return Table(name, stored, tuple(dims), low, high)

    def values(self, kind: str, shape: list[int], low: int, high: int) -> Tensor:
        if kind == "float":
            drawn = torch.randn(shape, generator=self.torch_seed).clamp(-2.5, 2.5)
            return drawn.to(torch.float64)
        if kind == "bool":
            return torch.rand(shape, generator=self.torch_seed) < 0.6
        drawn = torch.randint(low, high + 1, shape, generator=self.torch_seed)
        if self.make.chance(30):
            drawn = drawn.sort(dim=-1).values
        return drawn.to(self.make.choose((torch.int64, torch.int32, torch.int16, torch.int8)))

    def dims(self) -> dict[str, Dimension]:
        q_index = "q" if self.q_at[0] == 0 else f"q - {self.q_at[0]}"
        k_index = "k" if self.k_at[0] == 0 else f"k - {self.k_at[0]}"
        return {
            "B": Dimension("B", self.batch, "b", "b"),
            "H": Dimension("H", self.heads, "h", "h"),
            "Hk": Dimension("Hk", self.key_heads, "h // G", "h"),
            "Nq": Dimension("Nq", self.rows, q_index.replace("- -", "+ "), "q"),
            "Nk": Dimension("Nk", self.columns, k_index.replace("- -", "+ "), "k"),
        }

    def dimension(self) -> Dimension:
        form = self.pick(0, 8)
        if form <= 4:
            return list(self.dims().values())[form]
        if form == 5:
            size = self.pick(1, 9)
            return Dimension(str(size), size)
        if form == 6:
            radius, size = self.fresh("r"), self.pick(0, 6)
            if self.make.chance(50):
                self.declared.append(f"{radius}: const int = {size}")
            else:
                self.declared.append(f"{radius}: int")
                self.arguments[radius] = size
            return Dimension(f"2 * {radius} + 1", 2 * size + 1, f"q - k + {radius}", "qk")
        known = list(self.dims_bound)
        if known and self.make.chance(50):
            name = self.make.choose(known)
        else:
            name = self.fresh("M")
            self.dims_bound[name] = self.pick(1, 12)
        return Dimension(name, self.dims_bound[name])

    # -- the program ------------------------------------------------------------------------

    def compose(self) -> Case:
        pairs = self.context("bhqk")
        definitions = self.definitions()
        if self.make.chance(30):
            pairs.ints += self.grid()
        rows = self.context("bhq")
        rows.ints += [i for i in pairs.ints if i.text.startswith("q.")]
        self.lets(rows, pairs)
        for _ in range(self.make.choose((0, 1, 1, 1, 2))):
            self.body.append(f"mask {self.mask(pairs)}")
        pairs.query = True
        pairs.floats.append(Float("score", 6.0))
        for _ in range(self.make.choose((0, 1, 1, 2))):
            if not self.body or "-inf" not in self.body[-1]:  # -inf - -inf is no number
                self.score(pairs)
        pairs.floats = [f for f in pairs.floats if f.text not in self.of_old_score]
        self.weights(pairs, rows)
        if self.make.chance(30):
            self.output(rows)
        parameters = f"({', '.join(self.declared)})" if self.declared else "()"
        lines = [*definitions, "", f"attention random{parameters}:"]
        lines += [f"    {line}" for line in self.body or ["mask true"]]
        group, width = (self.batch, self.key_heads), self.width
        return Case(
            "\n".join(lines).strip() + "\n",
            self.values("float", [self.batch, self.heads, self.rows, width], 0, 0),
            self.values("float", [*group, self.columns, width], 0, 0),
            self.values("float", [*group, self.columns, self.value_width], 0, 0),
            self.consts,
            self.arguments,
            self.call,
        )

    def context(self, names: str) -> Context:
        known = {
            "b": Int("b", 0, self.batch - 1),
            "h": Int("h", 0, self.heads - 1),
            "q": Int("q", *self.q_at),
            "k": Int("k", *self.k_at),
        }
        sizes = [Int("Nq", self.rows, self.rows), Int("Nk", self.columns, self.columns)]
        sizes += [Int("H", self.heads, self.heads), Int("G", self.group, self.group)]
        return Context(tuple(names), [known[name] for name in names] * 2 + sizes)

    def definitions(self) -> list[str]:
        """`def`s over ints; they use no parameter of the attention."""
        lines = []
        for _ in range(self.make.choose((0, 0, 1, 2))):
            count = self.pick(1, 2)
            names = ["x", "y"][:count]
            inner = Context((), [Int(name, -90, 90) for name in names], tables=False)
            make = Expressions(self.pick, lambda kind: _number(kind), self.new_table)
            kind = self.make.choose(("float", "bool"))
            body = make.real(inner, 2).text if kind == "float" else make.boolean(inner, 2)
            name = self.fresh("fn")
            lines.append(f"def {name}({', '.join(names)}) = {body}")
            self.make.functions.append((name, kind, count))
        return lines

    def grid(self) -> list[Int]:
        axes = ["t", "y", "x"][-self.pick(1, 3) :]
        extents = []
        for _ in axes:
            extents.append(str(self.pick(1, 9)))
        if self.make.chance(40):
            name = self.fresh("side")
            self.declared.append(f"{name}: int")
            self.arguments[name] = self.pick(1, 8)
            extents[self.pick(0, len(axes) - 1)] = name
        text = ", ".join(f"{axis} = {extent}" for axis, extent in zip(axes, extents, strict=True))
        if self.make.chance(40):
            start = self.make.scalar("int")
            assert isinstance(start, Int)
            text += f", start = {start.text}"
        self.body.append(f"grid {text}")
        low = min(self.q_at[0], self.k_at[0]) - 12
        high = max(self.q_at[1], self.k_at[1]) + 12
        return [Int(f"{n}.{axis}", low, high) for n in "qk" for axis in axes]

    def lets(self, rows: Context, pairs: Context) -> None:
        for _ in range(self.make.choose((0, 0, 1, 2))):
            context = self.make.choose((rows, pairs))
            targets = [rows, pairs] if context is rows else [pairs]
            name = self.fresh("v")
            form = self.pick(0, 2)
            if form == 0:
                drawn = self.make.integer(context, 2)
                self.body.append(f"let {name} = {drawn.text}")
                for target in targets:
                    target.ints.append(Int(name, drawn.low, drawn.high))
            elif form == 1:
                self.body.append(f"let {name} = {self.make.boolean(context, 2)}")
                for target in targets:
                    target.bools.append(name)
            else:
                real = self.make.real(context, 2)
                self.body.append(f"let {name} = {real.text}")
                for target in targets:
                    target.floats.append(Float(name, real.bound))

    def mask(self, pairs: Context) -> str:
        n = self.pick(1, 20)
        shift = self.q_at[0] - self.k_at[0]
        moved = "q" if shift == 0 or self.make.chance(40) else f"q + {-shift}"
        templates = (
            f"k <= {moved}",
            f"0 <= {moved} - k < {n}",
            f"abs({moved} - k) <= {n}",
            f"q // {n} == k // {n}",
            f"q // {n} >= k // {n}",
            f"k < {n} or {moved} - k < {n}",
            f"k % {n} == q % {n}",
        )
        form = self.pick(0, 5)
        if form <= 1:
            return self.make.choose(templates)
        if form == 2:
            word = self.make.choose(("and", "or"))
            return f"({self.make.choose(templates)}) {word} {self.make.boolean(pairs, 1)}"
        if form == 3 and self.make.functions:
            name, kind, count = self.make.choose(self.make.functions)
            if kind == "bool":
                given = ("q - k", "h")[:count]
                return f"{name}({', '.join(given)})"
        drawn = self.make.boolean(pairs, self.pick(0, 2))
        return drawn if form == 4 else f"{drawn} or {self.make.choose(templates)}"

    def score(self, pairs: Context) -> None:
        form = self.pick(0, 7)
        depth = self.pick(1, 3)
        if form <= 2:
            text = f"score + {self.make.real(pairs, depth).text}"
        elif form == 3:
            text = "1.5 * tanh(score / 1.5)"
        elif form == 4:
            text = f"score if {self.make.boolean(pairs, 1)} else -inf"
        elif form == 5:
            text = f"score * sigmoid({self.make.real(pairs, depth).text})"
        elif form == 6:
            then, other = self.make.real(pairs, 1), self.make.real(pairs, 1)
            text = f"{then.text} + score if {self.make.boolean(pairs, 1)} else {other.text}"
        else:
            text = self.make.real(pairs, depth + 1).text
        self.body.append(f"score {text}")
        # What names an earlier score may be used by scores only, not by the weights.
        self.of_old_score |= {
            f.text for f in pairs.floats if f.text.startswith("s") and f.text != "score"
        }
        if form != 4 and self.make.chance(25):
            name = self.fresh("s")
            self.body.append(f"let {name} = tanh(score)")
            pairs.floats.append(Float(name, 1.0))

    def weights(self, pairs: Context, rows: Context) -> None:
        form = self.pick(0, 9)
        if form <= 2:
            return
        if form == 3:
            self.body.append("weights softmax")
        elif form <= 5:
            sink = self.make.real(rows, self.pick(0, 2))
            self.body.append(f"weights softmax(sink = {sink.text})")
        elif form <= 7:
            x = self.make.real(pairs, self.pick(0, 2)).text
            y = "tanh(score)"
            positive = (
                f"1 + {y} + {y} ** 2 / 2",
                f"exp(tanh({x})) * (0.1 + sigmoid(score))",
                f"0.1 + softplus({x} + {y})",
                f"0.05 + relu({x} * {y})",
            )
            self.body.append(f"weights normalize({self.make.choose(positive)})")
        else:
            x = self.make.real(pairs, self.pick(1, 2)).text
            simple = ("sigmoid(score - log(Nk + 1))", "tanh(score) * 0.9 ** abs(q - k)", x)
            self.body.append(f"weights {self.make.choose(simple)}")

    def output(self, rows: Context) -> None:
        rows.names = ("b", "h", "q", "d")
        rows.ints.append(Int("d", 0, self.value_width - 1))
        rows.floats += [Float("out", 4.0), Float("out", 4.0)]
        if self.make.chance(40):
            table = self.new_table("out", 1)
            rows.floats.append(Float(self.make.lookup(table, rows, 0), 3.0))
        x = self.make.real(rows, self.pick(1, 2)).text
        forms = (f"out * sigmoid({x})", f"out * {x}", x, f"tanh(out) + {x}")
        self.body.append(f"output {self.make.choose(forms)}")


def _number(kind: str) -> Int | Float | str:
    """What stands for a scalar inside a `def`: a number."""
    if kind == "int":
        return Int("3", 3, 3)
    return Float("0.5", 0.5) if kind == "float" else "true"
