"""What the names in an expression mean: a statement's context, a scope, the use of a def."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from attndsl.ir.nodes import OUT, SCORE, Node
from attndsl.ir.program import Grid
from attndsl.semantics.findings import place
from attndsl.semantics.modules import Definition, Module
from attndsl.semantics.names import Place
from attndsl.semantics.types import Value, Wrong
from attndsl.source import Span

MAX_NOTES = 4


@dataclass(frozen=True)
class Named:
    """The value of a `let`.

    value     over the raw `score`, as the statements before the `let` leave it
    finished  the same over the finished logit, for `weights`; None where a later `score` statement
              changes what the `let` has seen
    tokens    the restricted names that it uses ("score", "k", ...)
    """

    value: Value
    finished: Value | None
    tokens: frozenset[str]
    span: Span


Symbol = Value | Named


@dataclass
class Context:
    """One statement: where it stands and what `score`, `out` and coordinates mean there.

    is_finished  `score` is the finished logit (in `weights`)
    tokens       the restricted names used so far
    expanded     value and tokens of each def already expanded here, by def and arguments
    """

    place: Place
    score: Node = SCORE
    out: Node = OUT
    grid: Grid | Wrong | None = None  # WRONG where it is not known
    is_finished: bool = False
    tokens: set[str] = field(default_factory=set)
    expanded: dict[tuple[Definition, tuple[Value, ...]], Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """A def being expanded: its name, the place of the use, the use around that one, and the place
    of the outermost use (None where this is it)."""

    name: str
    span: Span
    around: Use | None
    root: Span | None

    def chain(self) -> Iterator[Use]:
        use: Use | None = self
        while use is not None:
            yield use
            use = use.around

    @property
    def outermost(self) -> Span:
        """The place in the attention itself."""
        return self.span if self.root is None else self.root

    def notes(self) -> list[str]:
        """Where the def was used, innermost first."""
        uses = list(self.chain())
        rows = [f"in `{u.name}`, used at {place(u.span)}" for u in uses[:MAX_NOTES]]
        return rows if len(uses) <= MAX_NOTES else [*rows, f"and {len(uses) - MAX_NOTES} more"]


@dataclass(frozen=True)
class Scope:
    """The names that an expression sees: its own (`symbols`), then its module's definitions.

    A def's body sees its parameters and its module, never names of the attention that uses it.
    """

    context: Context
    module: Module
    symbols: Mapping[str, Symbol]
    use: Use | None = None
    is_def: bool = False
