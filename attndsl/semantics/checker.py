"""What every step of lowering asks: does a value fit, what does a name mean, may it stand here."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from attndsl.ir.nodes import Node, pooled
from attndsl.semantics import names
from attndsl.semantics.arithmetic import WrongConstant
from attndsl.semantics.findings import Findings, shown
from attndsl.semantics.functions import FUNCTION_NAMES
from attndsl.semantics.modules import Definition, standard_library
from attndsl.semantics.scope import Named, Scope
from attndsl.semantics.types import WRONG, Table, Value, Vector, Wrong, describe
from attndsl.source import Span
from attndsl.syntax.ast import Expression, Name

# A step yields what it needs lowered and is sent the value; `lower` drives it. So a deep tree costs
# memory, not Python's stack.
Step = Generator[tuple[Expression, Scope], Value, Value]


@dataclass
class Checker:
    """The checks of one attention's expressions.

    origins    node -> places in the text, filled on the way
    elsewhere  names that some attention of the file defines: for the hint when a def uses one
    later      names that a `let` or `select` of the attention defines, maybe further down: which
               of the two, and where
    indices    of the names of indices of selects: the select, and what the index stands for
    expansion  steps taken inside definitions so far; too many make it `is_exhausted`
    """

    findings: Findings
    origins: dict[Node, dict[Span, None]] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    later: dict[str, tuple[str, Span]] = field(default_factory=dict)
    indices: dict[str, tuple[str, str]] = field(default_factory=dict)
    expansion: int = 0
    is_exhausted: bool = False

    def note_origin(self, value: Value, span: Span, scope: Scope) -> None:
        """Remembers where a node comes from: the user's line first, then that of the def."""
        if isinstance(value, Node) and value.op not in ("const", "index", "size", "score", "out"):
            places = self.origins.setdefault(value, {})
            if scope.use is not None:
                places.setdefault(scope.use.outermost)
            places.setdefault(span)

    def report(
        self, code: str, span: Span, scope: Scope, message: str, hint: str = "", note: str = ""
    ) -> Wrong:
        notes = [note] if note else []
        if scope.use is not None:
            notes += scope.use.notes()
        self.findings.report(code, span, message, hint, notes)
        return WRONG

    # -- expectations -----------------------------------------------------------------------

    def node(self, value: Value, expression: Expression, scope: Scope) -> Node | None:
        """The value as a node; a bare tensor or vector is reported."""
        if isinstance(value, Node):
            return value
        text = shown(expression.span)
        if isinstance(value, Table):
            self.report(
                "E111",
                expression.span,
                scope,
                f"`{text}` is a tensor and stands here without indices",
                f"look it up, for example `{value.example}` (declared {value.declared})",
            )
        elif isinstance(value, Vector):
            if value.name in scope.context.place.singles:
                return pooled(value.name)
            self.report_vector(value, expression.span, scope)
        return None

    def report_vector(self, value: Vector, span: Span, scope: Scope) -> Wrong:
        """Reports `query`, `key` or `value` where it cannot stand alone."""
        here, name = scope.context.place, value.name
        code, message = "E106", f"`{name}` is not available here"
        if here.blocks is None:
            hint = (
                "`dot(query, t[...])` is the only place for it: `score` already holds the product "
                "of query and key"
            )
        elif name == "value":
            hint = "blocks are chosen by `query` and `key`"
        elif not here.has_vectors:
            hint = "queries and keys are compared in `rank`"
        else:
            code, message = "E115", f"`{name}` alone is a block of rows here, not a vector"
            single = "i = q" if name == "query" else "j = k"
            hint = f"pool it: `mean({name})`; alone it stands where a block is one row: `{single}`"
        return self.report(code, span, scope, message, hint)

    def number(self, value: Value, expression: Expression, scope: Scope, what: str) -> Node | None:
        """The value as an int or float node; a bool is reported. `what`: "`+` takes numbers"."""
        node = self.node(value, expression, scope)
        if node is None or node.kind != "bool":
            return node
        text = shown(expression.span)
        hint = f"write `int({text})`, or a choice such as `1.0 if {text} else 0.0`"
        message = f"{what}, but `{text}` is a bool"
        self.report("E104", expression.span, scope, message, hint)
        return None

    def boolean(
        self, value: Value, expression: Expression, scope: Scope, what: str, show: str = "{}"
    ) -> Node | None:
        """The value as a bool node; a number is reported. `show` frames the proposed text."""
        node = self.node(value, expression, scope)
        if node is None or node.kind == "bool":
            return node
        text = shown(expression.span)
        proposed = show.format(f"{text} {'>= 0' if ' - ' in text else '!= 0'}")
        self.report(
            "E104",
            expression.span,
            scope,
            f"{what}, but `{text}` is {describe(node)}",
            f"write a comparison, for example `{proposed}`",
        )
        return None

    def allow(self, token: str, span: Span, scope: Scope) -> bool:
        """Whether a restricted name may be used here; reports it where not."""
        scope.context.tokens.add(token)
        here = scope.context.place
        if token in here.allowed:
            return True
        message = f"{names.words(token)} is not available in {here.name}"
        self.report(here.code, span, scope, message, names.why_not_here(token, here))
        return False

    def resolve(self, name: Name, scope: Scope) -> Value | Definition:
        """What a name stands for; an unknown one is reported."""
        word = name.name
        if word in scope.symbols:
            symbol = scope.symbols[word]
            return self.use_let(name, symbol, scope) if isinstance(symbol, Named) else symbol
        if word in names.INDEX_NODES:
            return names.INDEX_NODES[word] if self.allow(word, name.span, scope) else WRONG
        if word in ("score", "out"):
            context = scope.context
            found = context.score if word == "score" else context.out
            return found if self.allow(word, name.span, scope) else WRONG
        if word in names.SIZE_NODES:
            return names.SIZE_NODES[word]
        if word in names.CONSTANTS:
            return names.CONSTANTS[word]
        if word in names.VECTORS:
            return Vector(word)
        if word in scope.module.visible:
            return scope.module.visible[word]
        if word in names.CALL_ARGUMENTS:
            hint = "`q` and `k` already count from their offsets" if "offset" in word else ""
            message = f"`{word}` is an argument of the call, not a value of the program"
            return self.report("E106", name.span, scope, message, hint)
        if word in FUNCTION_NAMES:
            hint = f"write `{word}(...)`"
            return self.report("E105", name.span, scope, f"`{word}` is a function", hint)
        return self.unknown(name, scope, "name")

    def use_let(self, name: Name, symbol: Named, scope: Scope) -> Value:
        context = scope.context
        context.tokens |= symbol.tokens
        line = symbol.span.source.position(symbol.span.start)[0]
        for token in sorted(symbol.tokens - context.place.allowed):
            return self.report(
                context.place.code,
                name.span,
                scope,
                f"`{name.name}` is not available in {context.place.name}: "
                f"it {'is' if is_choice(symbol) else 'uses'} {names.words(token)}",
                names.why_not_here(token, context.place),
                f"`{name.name}` is named on line {line}",
            )
        if not context.is_finished:
            return symbol.value
        if symbol.finished is None:
            return self.report(
                "E106",
                name.span,
                scope,
                f"`{name.name}` uses `score` as it was before a later `score` statement",
                "weights see the finished score: put the `let` behind the last `score`",
                f"`{name.name}` is named on line {line}",
            )
        return symbol.finished

    def unknown(self, name: Name, scope: Scope, what: str) -> Wrong:
        if scope.is_def and name.name in self.elsewhere:
            message = f"`{name.name}` is not known inside a def"
            hint = "a def does not see the names of an attention: make it an argument of the def"
        elif not scope.is_def and name.name in self.later:
            message = f"`{name.name}` is used before it is defined"
            word, span = self.later[name.name]
            hint = f"move its `{word}` up, from line {span.source.position(span.start)[0]}"
        else:
            message = f"there is no {what} called `{name.name}`"
            known = [*scope.symbols, *scope.module.visible]
            hint = names.hint_for_unknown(name.name, known, standard_library())
            if scope.context.place.blocks is not None:
                hint = names.FOREIGN_IN_SELECTS.get(name.name, hint)
            elif name.name in self.indices and not scope.is_def:
                select, block = self.indices[name.name]
                hint = f"it is an index of `{select}`, known in that select alone: write `{block}`"
            if not hint and scope.context.place is names.DIMENSION:
                hint = (
                    f"a tensor binds a new dimension that stands alone, as in "
                    f"`float[{name.name}]`; or declare `{name.name}: int`"
                )
        return self.report("E101", name.span, scope, message, hint)

    def built(self, expression: Expression, scope: Scope, build: Callable[[], Node]) -> Value:
        """What `build` makes; a constant that cannot be is reported at the expression."""
        try:
            return build()
        except WrongConstant as wrong:
            message = f"`{shown(expression.span)}`: {wrong.message}"
            return self.report(wrong.code, expression.span, scope, message, wrong.hint)


def is_choice(symbol: Named) -> bool:
    """Whether a name stands for a select itself."""
    return isinstance(symbol.value, Node) and symbol.value.op == "chosen"
