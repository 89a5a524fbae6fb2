"""A whole program in the IR: what the checks let through, with names resolved and defs expanded."""

from __future__ import annotations

from dataclasses import dataclass, field

from attndsl.ir.nodes import Node
from attndsl.ir.ops import Kind
from attndsl.source import Span

SIZES = ("B", "H", "Hk", "G", "Nq", "Nk", "D")
INDICES = ("b", "h", "q", "k")


@dataclass(frozen=True)
class Scalar:
    """A run-time scalar parameter (a `const` is gone by now: its value stands in the nodes)."""

    name: str
    kind: Kind
    default: bool | int | float | None


@dataclass(frozen=True)
class Tensor:
    """A tensor parameter. Each dimension is an int expression over sizes and scalars.

    A dimension that is a bare `size` node with a name outside `SIZES` is bound by the tensor.
    """

    name: str
    kind: Kind
    dims: tuple[Node, ...]


@dataclass(frozen=True)
class Weights:
    """`form`: "softmax" (`sink` may be a float node over b, h, q), "normalize" or "elementwise".

    `value` (the two last forms) is over `score`, which there means the finished logit.
    """

    form: str = "softmax"
    value: Node | None = None
    sink: Node | None = None


@dataclass(frozen=True)
class Grid:
    """A declared grid: names, extents and the position of its first token."""

    axes: tuple[str, ...]
    extents: tuple[Node, ...]
    start: Node


@dataclass(frozen=True)
class Select:
    """A choice of blocks. Its own stage of the project fills this in; the place is kept here."""

    name: str


@dataclass(frozen=True)
class Program:
    """A typed program.

    mask     bool node over b, h, q, k (true where there is none)
    score    float node over b, h, q, k and the raw `score`; just that where there is no statement
    output   float node over `out`, b, h, q, d; None where there is none
    consts   the values of const parameters, for people to read
    origins  node -> places in the user's text; no part of the program's identity
    """

    name: str
    parameters: tuple[Scalar | Tensor, ...]
    mask: Node
    score: Node
    weights: Weights
    output: Node | None
    grid: Grid | None = None
    selects: tuple[Select, ...] = ()
    consts: tuple[tuple[str, bool | int | float], ...] = ()
    doc: str = field(default="", compare=False)
    origins: dict[Node, tuple[Span, ...]] = field(default_factory=dict, compare=False, repr=False)
    text: str = field(default="", compare=False, repr=False)  # the user's text

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        return tuple(p for p in self.parameters if isinstance(p, Scalar))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(p for p in self.parameters if isinstance(p, Tensor))

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    @property
    def bound_dims(self) -> tuple[str, ...]:
        """Dimension names that tensors bind, in order of appearance."""
        names = (d.name for t in self.tensors for d in t.dims if d.op == "size")
        return tuple(dict.fromkeys(n for n in names if n not in SIZES))
