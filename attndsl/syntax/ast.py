"""The tree: what the text says, in the user's order, with spans."""

from __future__ import annotations

from dataclasses import dataclass, field

from attndsl.source import Source, Span


@dataclass(frozen=True)
class Tree:
    """Anything with a place in the text; places do not take part in comparisons."""

    span: Span = field(compare=False, repr=False)


# -- expressions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Expression(Tree):
    pass


@dataclass(frozen=True)
class Name(Expression):
    name: str


@dataclass(frozen=True)
class Number(Expression):
    """A literal; an int is a Python int of any size, a float a Python float."""

    value: int | float


@dataclass(frozen=True)
class Boolean(Expression):
    value: bool


@dataclass(frozen=True)
class Unary(Expression):
    """`operator` is `-`, `+` or `not`."""

    operator: str
    operand: Expression


@dataclass(frozen=True)
class Binary(Expression):
    """`operator` is one of `+ - * / // % ** and or`; `and`/`or` chains nest to the left."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Comparison(Expression):
    """`a < b <= c`: operands one more than operators (`< <= > >= == !=`)."""

    operators: tuple[str, ...]
    operands: tuple[Expression, ...]


@dataclass(frozen=True)
class Conditional(Expression):
    """`then if condition else otherwise`."""

    condition: Expression
    then: Expression
    otherwise: Expression


@dataclass(frozen=True)
class Call(Expression):
    """`function(arguments)`: a function of the language, or a `def`."""

    function: Name
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Coordinate(Expression):
    """`q.y`: a coordinate of the grid. `base` is the text before the dot."""

    base: Name
    axis: Name


@dataclass(frozen=True)
class Lookup(Expression):
    """`t[i, j]`."""

    tensor: Name
    indices: tuple[Expression, ...]


# -- statements -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement(Tree):
    pass


@dataclass(frozen=True)
class Let(Statement):
    name: Name
    value: Expression


@dataclass(frozen=True)
class Grid(Statement):
    """`axes` are (name, extent) in the user's order; the last is the fastest."""

    axes: tuple[tuple[Name, Expression], ...]
    start: Expression | None


@dataclass(frozen=True)
class Mask(Statement):
    value: Expression


@dataclass(frozen=True)
class Score(Statement):
    value: Expression


@dataclass(frozen=True)
class Weights(Statement):
    """`form` is "softmax" (`value` None; `sink` may be given), "normalize" or "elementwise"."""

    form: str
    value: Expression | None
    sink: Expression | None


@dataclass(frozen=True)
class Output(Statement):
    value: Expression


@dataclass(frozen=True)
class Select(Statement):
    """`select name[i = row, j = column] (per group):` and its clauses.

    `row_index`, `column_index` are the names `i` and `j`; `row`, `column` their expressions
    (`q // 64`). Exactly one of `rank` with `keep`, or `given`, is expected; the checker says so.
    `keep` is "top", "above" or "mass" with `amount`.
    """

    name: Name
    row_index: Name
    row: Expression
    column_index: Name
    column: Expression
    per_group: bool
    rank: Expression | None
    where: Expression | None
    keep: str | None
    amount: Expression | None
    given: Expression | None


# -- the file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import(Tree):
    """`from std import a as b` (`is_path` False) or `from "./masks.attn" import near`."""

    module: str
    is_path: bool
    names: tuple[tuple[Name, Name], ...]  # (name there, name here)


@dataclass(frozen=True)
class Define(Tree):
    """`def name(parameters) = value`."""

    name: Name
    parameters: tuple[Name, ...]
    value: Expression


@dataclass(frozen=True)
class Parameter(Tree):
    """`name: const kind[dims] = default`; `dims` is None for a scalar.

    `default` is None, or a bool, int or float (inf and a leading minus are folded in).
    """

    name: Name
    const: bool
    kind: str
    dims: tuple[Expression, ...] | None
    default: bool | int | float | None


@dataclass(frozen=True)
class Attention(Tree):
    name: Name
    parameters: tuple[Parameter, ...]
    doc: str | None
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class File(Tree):
    source: Source = field(compare=False, repr=False)
    doc: str | None
    items: tuple[Import | Define | Attention, ...]
