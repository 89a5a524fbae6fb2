"""Random programs with selects, and inputs whose ranks are exact in float32.

Queries are multiples of 12 / 16 and keys of 840 / 512, so means over up to 4 queries or 8 keys have
few bits, and so has every sum of products: whatever order a rank is summed in, it is the same
number, and equal ranks are ties.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.oracle.random_programs import Case

LENGTHS = (1, 2, 5, 7, 9, 13, 16, 17, 23, 24, 31, 33)
GROUPS = (1, 1, 2, 3, 8)


def select_cases(count: int, seed: int) -> list[Case]:
    """Random cases; the same for the same numbers."""
    return [select_case(1000 * seed + n) for n in range(count)]


def select_case(seed: int) -> Case:
    """The random case of a seed."""
    return _Composer(random.Random(seed), torch.Generator().manual_seed(seed)).compose()


@dataclass
class _Composer:
    random: random.Random
    generator: torch.Generator
    declared: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    consts: dict[str, bool | int | float] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    names: int = 0

    def __post_init__(self) -> None:
        choose = self.random.choice
        self.batch, self.key_heads, self.group = choose((1, 2)), choose((1, 1, 2)), choose(GROUPS)
        self.heads = self.key_heads * self.group
        self.rows, self.columns = choose(LENGTHS), choose(LENGTHS)
        self.width, self.value_width = choose((1, 4, 5, 8)), choose((3, 8))
        self.q_first = self.offset("q_offset")
        self.k_first = self.offset("k_offset")
        if self.chance(30):
            lengths = [self.random.randint(0, self.columns) for _ in range(self.batch)]
            self.call["k_len"] = torch.tensor(lengths)
        if self.chance(30):
            self.call["scale"] = choose((0.25, 0.5))

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def fresh(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def offset(self, name: str) -> list[int]:
        """The offset of every sequence."""
        form = self.random.randrange(10)
        if form < 5:
            return [0] * self.batch
        if form < 8:
            self.call[name] = self.random.randint(-9, 20)
            return [self.call[name]] * self.batch
        drawn = [self.random.randint(-9, 20) for _ in range(self.batch)]
        self.call[name] = torch.tensor(drawn)
        return drawn

    def ints(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def floats(self, *shape: int) -> Tensor:
        """Normal numbers that float32 holds, in float64."""
        return torch.randn(shape, generator=self.generator).to(torch.float64)

    def number(self, value: int) -> str:
        """An int: a literal, a parameter or a const."""
        form = self.random.randrange(3)
        if form == 0:
            return str(value)
        name = self.fresh("m")
        self.declared.append(f"{name}: {'const int' if form == 1 else 'int'}")
        (self.consts if form == 1 else self.arguments)[name] = value
        return name

    def tensor(self, kind: str, dims: str, value: Tensor) -> str:
        name = self.fresh("t")
        self.declared.append(f"{name}: {kind}[{dims}]")
        self.arguments[name] = value
        return name

    # -- selects ----------------------------------------------------------------------------

    def select(self) -> tuple[str, int, int]:
        """Writes a select; its name and the sizes of its blocks."""
        name = self.fresh("picked")
        m, n = self.random.choice((1, 1, 1, 2, 3, 4)), self.random.choice((1, 2, 3, 4, 5, 8))
        row = "q" if m == 1 and self.chance(80) else f"q // {self.number(m)}"
        column = "k" if n == 1 and self.chance(50) else f"k // {self.number(n)}"
        i, j = ("i", "j") if self.chance(70) else ("block", "page")
        per_group = self.chance(40)
        clauses = []
        where = self.where(i, j, m, n)
        if self.chance(20):
            clauses.append(f"given {self.given(m, n, per_group)}")
        else:
            clauses.append(f"rank {self.rank(i, j, row == 'q', column == 'k')}")
            clauses.append(f"keep {self.keep(i, per_group)}")
        if where:
            clauses.insert(self.random.randrange(2), f"where {where}")
        group = " per group" if per_group else ""
        self.body.append(f"select {name}[{i} = {row}, {j} = {column}]{group}:")
        self.body += [f"    {clause}" for clause in clauses]
        return name, m, n

    def rank(self, i: str, j: str, single_row: bool, single_column: bool) -> str:
        queries = ["mean(query)", "max(query)", "min(query)"] + ["query"] * 3 * single_row
        keys = ["mean(key)", "mean(key)", "max(key)", "min(key)"] + ["key"] * 2 * single_column
        query, key = self.random.choice(queries), self.random.choice(keys)
        form = self.random.randrange(9)
        if form <= 2:
            text = f"dot({query}, {key})"
        elif form == 3:
            text = f"sum(max({query} * min(key), {query} * max(key)))"
        elif form == 4:
            text = f"sum(abs({query}) + {key} * 0.5)"
        elif form == 5:
            table = self.ints(-2, 2, self.heads, 5, self.width).to(torch.float64)
            name = self.tensor("float", f"H, {self.fresh('M')}, D", table)
            text = f"dot({query}, {name}[h, {j} % 6])"
        elif form == 6:
            text = f"float(({i} * 3 + {j} * 5 + h) % 4)"
        else:
            dims = f"B, H, {self.fresh('M')}, {self.fresh('M')}"
            shape = (self.batch, self.heads, self.random.randint(1, 12), self.random.randint(1, 12))
            gate = self.ints(-2, 2, *shape).to(torch.float64)
            if self.chance(40):
                odd = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0], dtype=torch.float64)
                drawn = odd[self.ints(0, 3, *shape)]
                gate = torch.where(self.ints(0, 3, *shape) == 0, drawn, gate)
            text = f"{self.tensor('float', dims, gate)}[b, h, {i}, {j}]"
        if self.chance(20):
            text = f"{text} if ({i} + {j}) % 3 else -inf"
            return text.replace("% 3 else", "% 3 != 0 else")
        return f"-({text})" if self.chance(15) else text

    def where(self, i: str, j: str, m: int, n: int) -> str:
        form = self.random.randrange(8)
        if form <= 2:
            return ""
        if form == 3:
            return f"{j} * {n} <= {i} * {m} + {m - 1}"
        if form == 4:
            return f"{j} < {i} * {m} // {n}"
        if form == 7 and self.chance(30):
            return f"{j} > {i} + 99"
        if form >= 6:
            allowed = self.ints(0, 1, self.batch, self.key_heads, 9) == 0
            name = self.tensor("bool", f"B, Hk, {self.fresh('M')}", allowed)
            return f"{name}[b, h // G, {j}]"
        return f"({i} + {j} + h // G) % 3 != 0"

    def keep(self, i: str, per_group: bool) -> str:
        form = self.random.randrange(7)
        if form <= 2:
            return f"top {self.number(self.random.choice((-1, 0, 1, 1, 2, 2, 3, 4, 9)))}"
        if form == 3:
            budget = self.ints(0, 4, self.heads)
            dims = "Hk" if per_group else "H"
            head = "h // G" if per_group else "h"
            budget = budget[: self.key_heads] if per_group else budget
            return f"top {self.tensor('int', dims, budget)}[{head}]"
        if form == 4:
            return f"top 1 + {i} % 3"
        if form == 5:
            return f"above {self.random.choice(('0.0', '-1.0', '1.0', '2.5', 'float(h // G)'))}"
        return f"mass {self.random.choice(('0.0', '0.25', '0.5', '0.75', '2.0', '-1.0'))}"

    def given(self, m: int, n: int, per_group: bool) -> str:
        first = min(self.k_first) // n
        last = (max(self.k_first) + self.columns - 1) // n
        if isinstance(self.call.get("q_offset"), Tensor):
            blocks = (self.rows + m - 2) // m + 1
        else:
            blocks = (self.q_first[0] + self.rows - 1) // m - self.q_first[0] // m + 1
        heads = self.key_heads if per_group else self.heads
        listed = self.ints(
            first - 2, last + 2, self.batch, heads, blocks, self.random.randint(1, 4)
        )
        dims = f"B, {'Hk' if per_group else 'H'}, {self.fresh('M')}, {self.fresh('M')}"
        dtype = self.random.choice((torch.int32, torch.int64))
        return self.tensor("int", dims, listed.to(dtype))

    # -- the program ------------------------------------------------------------------------

    def mask(self, name: str, m: int, n: int) -> str:
        shift = self.q_first[0] - self.k_first[0]
        causal = "k <= q" if shift == 0 or self.chance(40) else f"k <= q + {-shift}"
        window = f"abs(q - k - {shift}) < {self.random.randint(1, 6)}"
        forms = (
            *(f"{name} and {causal}",) * 3,
            *(f"({name} or k // {n} == q // {n}) and {causal}",) * 3,
            *(f"({name} or {window}) and {causal}",) * 2,
            f"{name} or {window}",
            *(name,) * 2,
            f"not {name} and {causal}",
            f"{name} == ((q + k) % 2 == 0)",
            f"{name} and {causal} or not {name} and {window}",
            f"({name} or k < 3 or q // {m} == k // {m}) and {causal}",
        )
        return self.random.choice(forms)

    def compose(self) -> Case:
        name, m, n = self.select()
        mask = self.mask(name, m, n)
        if self.chance(20):
            other, *_ = self.select()
            mask = self.random.choice((f"({mask}) or {other}", f"({mask}) and not {other}"))
        if self.chance(20):
            self.body.append(f"let near = {mask}")
            mask = "near"
        self.body.append(f"mask {mask}")
        if self.chance(25):
            bias = self.tensor("float", "H, 7", self.floats(self.heads, 7))
            self.body.append(f"score score + {bias}[h, (q - k) % 7]")
        weights = (
            *("",) * 4,
            "weights softmax(sink = 0.25 * float(h))",
            "weights normalize(exp(tanh(score)))",
            "weights sigmoid(score)",
        )
        if drawn := self.random.choice(weights):
            self.body.append(drawn)
        if self.chance(15):
            self.body.append("output tanh(out) + 0.5")
        parameters = f"({', '.join(self.declared)})" if self.declared else "()"
        lines = [f"attention routed{parameters}:", *(f"    {line}" for line in self.body)]
        query = 12 * self.ints(-2, 2, self.batch, self.heads, self.rows, self.width)
        key = 840 * self.ints(-2, 2, self.batch, self.key_heads, self.columns, self.width)
        if self.chance(15):
            key = torch.full_like(key, 840)
        value = self.floats(self.batch, self.key_heads, self.columns, self.value_width)
        return Case(
            "\n".join(lines) + "\n",
            query.to(torch.float64) / 16,
            key.to(torch.float64) / 512,
            value,
            self.consts,
            self.arguments,
            self.call,
        )
