"""A whole program in the IR: what the checks let through, with names resolved and defs expanded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attndsl.ir.nodes import TRUE, Node
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
    """A choice of blocks of keys j, for every (b, h, i) with i = q // rows and j = k // columns.

    rows, columns  int nodes that vary with nothing, at least 1
    keep       "top" the `limit` highest ranks; "above" those over `limit`; "mass" the fewest
               highest whose softmax adds up to `limit`; "given" what the tensor `given` lists
    rank       float node over b, h, i, j, made of lookups and of `total`s over d of `pooled`
               vectors; None where the choice is given
    where      bool node over b, h, i, j: which blocks are candidates
    limit      int node ("top") or float node over b, h, i; None where the choice is given
    given      name of a tensor int[B, H or Hk, Ni, T], "" where there is none
    per_group  whether query heads that share a key head choose together
    """

    name: str
    rows: Node
    columns: Node
    keep: Literal["top", "above", "mass", "given"]
    rank: Node | None
    where: Node
    limit: Node | None
    given: str = ""
    per_group: bool = False


@dataclass(frozen=True)
class Counted:
    """A bool tensor over blocks, `table` [B, H or Hk, Ni, Nj], and its sums over rectangles: the
    int tensor `sums` [B, H or Hk, Ni + 1, Nj + 1] counts in [b, h, i, j] the true entries of
    table[b, h, :i, :j]. `where` is a bool node over b, h, q, k: true wherever the table is. Made by
    the compiler (`transform/route.py`)."""

    table: str
    sums: str
    where: Node = TRUE


@dataclass(frozen=True)
class Routed:
    """Pairs that lists of blocks add to those of the program's mask: (q, k) takes part too where
    the list of the query's row holds the key's block and `mask` is true, which is false where the
    program's mask is true. Made by the compiler (`transform/route.py`).

    lists      name of an int tensor [B, H or Hk, Nq, T]: of every row the numbers of blocks within
               the call, the block of the first key being 0; -1 for none, none twice, in any order
    columns    int node that varies with nothing: keys of a block, k // columns is its index
    mask       bool node over b, h, q, k
    per_group  whether the lists are those of key heads
    where      bool node over b, h, q, k: true for all that a list can hold
    """

    lists: str
    columns: Node
    mask: Node
    per_group: bool
    where: Node = TRUE


@dataclass(frozen=True)
class Program:
    """A typed program.

    mask     bool node over b, h, q, k (true where there is none); before routing it names selects
             by `chosen` leaves
    score    float node over b, h, q, k and the raw `score`; just that where there is no statement
    output   float node over `out`, b, h, q, d; None where there is none
    counted, routed   what became of the selects, see `transform/route.py`
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
    counted: tuple[Counted, ...] = ()
    routed: Routed | None = None
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

    def select(self, name: str) -> Select:
        return next(s for s in self.selects if s.name == name)

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    @property
    def bound_dims(self) -> tuple[str, ...]:
        """Dimension names that tensors bind, in order of appearance."""
        names = (d.name for t in self.tensors for d in t.dims if d.op == "size")
        return tuple(dict.fromkeys(n for n in names if n not in SIZES))
