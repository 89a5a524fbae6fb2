"""Statements of an attention become the parts of a Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attndsl.ir.nodes import OUT, SCORE, TRUE, Node, chosen, constant
from attndsl.ir.program import Grid, Program, Select, Weights
from attndsl.semantics import names
from attndsl.semantics.arithmetic import int_value, joined, to_float
from attndsl.semantics.checker import Checker
from attndsl.semantics.findings import Findings, place, shown
from attndsl.semantics.lower import bounded, lower
from attndsl.semantics.modules import Module
from attndsl.semantics.names import Place
from attndsl.semantics.parameters import Constant, Parameters, is_new, lower_parameters
from attndsl.semantics.scope import Context, Named, Scope
from attndsl.semantics.selects import lower_select
from attndsl.semantics.types import WRONG, Value, Wrong, kind_words
from attndsl.semantics.walk import names_in
from attndsl.source import Span
from attndsl.syntax import ast
from attndsl.syntax.ast import Attention, Expression


@dataclass
class Statements:
    """The lowering of one attention: what its statements have come to so far.

    score_count   number of `score` statements in the whole attention
    scores_done   and how many of them were lowered
    """

    checker: Checker
    module: Module
    attention: Attention
    parameters: Parameters
    score: Node = SCORE
    out: Node = OUT
    scores_done: int = 0
    masks: list[Node] = field(default_factory=list)
    selects: list[Select] = field(default_factory=list)
    weights: Weights = Weights()
    has_output: bool = False
    grid: Grid | Wrong | None = None
    lets_done: set[int] = field(default_factory=set)

    @property
    def score_count(self) -> int:
        return sum(isinstance(s, ast.Score) for s in self.attention.statements)

    # -- expressions ------------------------------------------------------------------------

    def scope(self, where: Place, is_finished: bool = False) -> Scope:
        score = SCORE if is_finished else self.score
        context = Context(where, score, self.out, self.grid, is_finished)
        return Scope(context, self.module, self.parameters.symbols)

    def number(self, value: Expression, where: Place, is_finished: bool = False) -> Node | None:
        """A number as a float node."""
        scope = self.scope(where, is_finished)
        lowered = lower(self.checker, value, scope)
        node = self.checker.node(lowered, value, scope)
        if node is None:
            return None
        if node.kind == "bool":
            text = shown(value.span)
            self.checker.report(
                "E104",
                value.span,
                scope,
                f"{where.name} must be a number, but `{text}` is a bool",
                f"to drop pairs write `mask {text}`; to change scores write for example "
                f"`score score if {text} else score - 1.0`"
                if where is names.SCORE_PLACE
                else f"write `1.0 if {text} else 0.0`",
            )
            return None
        return self.bounded(to_float(node), value.span)

    def bounded(self, node: Node, span: Span) -> Node | None:
        return bounded(self.checker.findings, node, span)

    # -- statements -------------------------------------------------------------------------

    def run(self) -> None:
        """Lowers the grid first (its coordinates are known everywhere), then all in order."""
        self.lower_grid()
        for statement in self.attention.statements:
            match statement:
                case ast.Let():
                    self.lower_let(statement)
                case ast.Mask():
                    self.lower_mask(statement)
                case ast.Score():
                    self.lower_score(statement)
                case ast.Weights():
                    self.lower_weights(statement)
                case ast.Output():
                    self.lower_output(statement)
                case ast.Select():
                    self.lower_select(statement)

    def lower_let(self, statement: ast.Let) -> None:
        if id(statement) in self.lets_done:
            return
        self.lets_done.add(id(statement))
        name = statement.name
        if not is_new(self.checker, self.module, name, self.parameters):
            return
        scope = self.scope(names.ANYWHERE)
        value = self.let_value(statement.value, scope)
        tokens = frozenset(scope.context.tokens)
        finished: Value | None = value
        if "score" in tokens:
            # What it has seen is the finished score only where no `score` statement follows.
            is_last = self.scores_done == self.score_count
            over_finished = self.scope(names.ANYWHERE, is_finished=True)
            finished = self.let_value(statement.value, over_finished) if is_last else None
        self.parameters.symbols[name.name] = Named(value, finished, tokens, name.span)

    def let_value(self, expression: Expression, scope: Scope) -> Value:
        value = lower(self.checker, expression, scope)
        node = self.checker.node(value, expression, scope)
        bounded = None if node is None else self.bounded(node, expression.span)
        return WRONG if bounded is None else bounded

    def lower_mask(self, statement: ast.Mask) -> None:
        scope = self.scope(names.MASK)
        value = lower(self.checker, statement.value, scope)
        node = self.checker.boolean(
            value, statement.value, scope, "a mask must be a bool", "mask {}"
        )
        if node is not None and self.bounded(node, statement.value.span):
            self.masks.append(node)
            self.note(node, statement)

    def lower_score(self, statement: ast.Score) -> None:
        node = self.number(statement.value, names.SCORE_PLACE)
        self.scores_done += 1
        if node is not None:
            self.score = node
            self.note(node, statement)

    def lower_weights(self, statement: ast.Weights) -> None:
        if statement.form == "softmax":
            sink = None if statement.sink is None else self.number(statement.sink, names.SINK)
            self.weights = Weights("softmax", sink=sink)
        else:
            assert statement.value is not None
            value = self.number(statement.value, names.WEIGHTS, is_finished=True)
            if value is not None:
                self.weights = Weights(statement.form, value=value)
                self.note(value, statement)

    def lower_output(self, statement: ast.Output) -> None:
        node = self.number(statement.value, names.OUTPUT)
        self.has_output = True
        if node is not None:
            self.out = node
            self.note(node, statement)

    def lower_select(self, statement: ast.Select) -> None:
        scope = self.scope(names.ANYWHERE)
        found = lower_select(self.checker, statement, scope, self.parameters.first)
        name = statement.name
        if not is_new(self.checker, self.module, name, self.parameters):
            return
        if found is None:
            self.parameters.symbols[name.name] = WRONG
            return
        self.selects.append(found)
        value = chosen(name.name)
        self.checker.origins.setdefault(value, {}).setdefault(name.span)
        self.parameters.symbols[name.name] = Named(value, value, frozenset(("chosen",)), name.span)

    def note(self, node: Node, statement: ast.Statement) -> None:
        if node.op not in ("const", "index", "size", "score", "out"):
            self.checker.origins.setdefault(node, {}).setdefault(statement.span)

    # -- the grid ---------------------------------------------------------------------------

    def lower_grid(self) -> None:
        statements = self.attention.statements
        grids = [s for s in statements if isinstance(s, ast.Grid)]
        if not grids:
            return
        grid = grids[0]
        before = [s for s in statements[: statements.index(grid)] if isinstance(s, ast.Let)]
        for let in needed(before, grid):
            self.lower_let(let)
        found = [self.lower_extent(extent) for _, extent in grid.axes]
        start: Node | None = constant(0)
        if grid.start is not None:
            start = self.lower_int(grid.start, names.START)
        self.check_axes(grid)
        axes = tuple(name.name for name, _ in grid.axes)
        known = [extent for extent in found if extent is not None]
        is_whole = len(known) == len(axes) == len(set(axes)) and start is not None
        self.grid = Grid(axes, tuple(known), start) if is_whole and start is not None else WRONG

    def check_axes(self, grid: ast.Grid) -> None:
        first: dict[str, ast.Name] = {}
        for axis, _ in grid.axes:
            earlier = first.setdefault(axis.name, axis)
            if earlier is not axis:
                message = f"the grid has two axes called `{axis.name}`"
                self.checker.findings.report("E103", axis.span, message)

    def lower_extent(self, extent: Expression) -> Node | None:
        node = self.lower_int(extent, names.EXTENT)
        number = None if node is None else int_value(node)
        if number is not None and number < 1:
            text = shown(extent.span)
            which = "" if text == str(number) else f" (`{text}`)"
            message = f"an axis of a grid has at least one position, not {number}{which}"
            self.checker.findings.report("E113", extent.span, message)
            return None
        return node

    def lower_int(self, expression: Expression, where: Place) -> Node | None:
        scope = self.scope(where)
        value = lower(self.checker, expression, scope)
        node = self.checker.node(value, expression, scope)
        if node is None:
            return None
        if node.kind != "int":
            text = shown(expression.span)
            message = f"{where.name} must be an int, but `{text}` is {kind_words(node.kind)}"
            hint = "divide ints with `//`" if "/" in text else ""
            self.checker.report("E104", expression.span, scope, message, hint)
            return None
        return self.bounded(node, expression.span)


def needed(lets: list[ast.Let], grid: ast.Grid) -> list[ast.Let]:
    """Those of the lets before the grid that it uses, directly or through others, in order."""
    parts = [extent for _, extent in grid.axes] + ([grid.start] if grid.start else [])
    wanted = {name.name for name in names_in(*parts)}
    found: list[ast.Let] = []
    for let in reversed(lets):
        if let.name.name in wanted:
            found.append(let)
            wanted |= {name.name for name in names_in(let.value)}
    return found[::-1]


def check_statements(attention: Attention, findings: Findings) -> None:
    """Reports statements that stand twice where one is meant."""
    first: dict[str, ast.Statement] = {}
    for statement in attention.statements:
        if not isinstance(statement, ast.Grid | ast.Weights):
            continue
        word = "grid" if isinstance(statement, ast.Grid) else "weights"
        earlier = first.setdefault(word, statement)
        if earlier is not statement:
            findings.report(
                "E109",
                statement.span,
                f"`{word}` may stand only once in an attention",
                "put all axes into one `grid`" if word == "grid" else "keep one of the two",
                [f"the first one is at {place(earlier.span)}"],
            )


def indices_of_selects(attention: Attention) -> dict[str, tuple[str, str]]:
    """For the name of an index its select, and the text that it stands for: (`near`, `k // 64`)."""
    found: dict[str, tuple[str, str]] = {}
    for select in attention.statements:
        if isinstance(select, ast.Select):
            for name, block in (
                (select.row_index, select.row),
                (select.column_index, select.column),
            ):
                found.setdefault(name.name, (select.name.name, shown(block.span)))
    return found


def lower_attention(
    findings: Findings, module: Module, attention: Attention, consts: Mapping[str, Constant]
) -> tuple[Program, Parameters]:
    """The program of an attention. It means something only where nothing was reported."""
    named = (s for s in attention.statements if isinstance(s, ast.Let | ast.Select))
    later = {s.name.name: (type(s).__name__.lower(), s.name.span) for s in named}
    checker = Checker(findings, later=later, indices=indices_of_selects(attention))
    check_statements(attention, findings)
    parameters = lower_parameters(checker, module, attention, consts)
    statements = Statements(checker, module, attention, parameters)
    statements.run()
    source = module.tree.source
    program = Program(
        name=attention.name.name,
        parameters=tuple(parameters.found),
        mask=joined("and", statements.masks) if statements.masks else TRUE,
        score=statements.score,
        weights=statements.weights,
        output=statements.out if statements.has_output else None,
        grid=statements.grid if isinstance(statements.grid, Grid) else None,
        selects=tuple(statements.selects),
        consts=tuple(parameters.consts),
        doc=attention.doc or module.tree.doc or "",
        origins={node: tuple(spans) for node, spans in checker.origins.items()},
        text=source.text,
    )
    return program, parameters
