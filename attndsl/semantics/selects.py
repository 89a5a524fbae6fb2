"""The statement `select` becomes a Select: its blocks, its clauses, and what each may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from attndsl.ir.nodes import TRUE, Node, constant, index, make, scalar, size, substitute
from attndsl.ir.program import Select
from attndsl.semantics import names
from attndsl.semantics.arithmetic import int_value, to_float
from attndsl.semantics.checker import Checker
from attndsl.semantics.findings import place, shown
from attndsl.semantics.lower import bounded, lower
from attndsl.semantics.modules import report_reserved
from attndsl.semantics.names import Place
from attndsl.semantics.scope import Context, Scope
from attndsl.semantics.types import Table, Wrong, describe
from attndsl.source import Span
from attndsl.syntax import ast

HEADS = size("G")
KEY_HEAD = make("floordiv", index("h"), HEADS)


def lower_select(
    checker: Checker, statement: ast.Select, around: Scope, taken: Mapping[str, ast.Name]
) -> Select | None:
    """The select, or None where an error was reported.

    around  what the attention names so far; `taken` are the places of those names
    """
    lowering = Lowering(checker, statement, around)
    fits = check_clauses(checker, statement) & lowering.check_indices(taken)
    rows = lowering.block(statement.row, names.ROW_BLOCK, "q")
    columns = lowering.block(statement.column, names.COLUMN_BLOCK, "k")
    single = [name for name, at in (("query", rows), ("key", columns)) if at is constant(1)]
    rank = lowering.rank(frozenset(single)) if statement.rank else None
    where = lowering.where() if statement.where else TRUE
    limit = lowering.limit() if statement.amount else None
    given = lowering.given() if statement.given else ""
    if not fits or rows is None or columns is None or where is None or given is None:
        return None
    if statement.given is None and (rank is None or limit is None):
        return None
    return Select(
        statement.name.name,
        rows,
        columns,
        statement.keep or "given",  # type: ignore[arg-type]
        rank,
        where,
        limit,
        given,
        statement.per_group,
    )


def check_clauses(checker: Checker, statement: ast.Select) -> bool:
    """Whether there is either `rank` with `keep`, or `given`."""
    name = statement.name.name
    has = {word for word in ("rank", "keep", "given") if getattr(statement, word) is not None}
    if has in ({"rank", "keep"}, {"given"}):
        return True
    if "given" in has:
        message = f"`{name}` has `given` beside `rank` or `keep`"
        hint = "`given` lists the blocks themselves: keep it alone, or `rank` with `keep`"
    elif "rank" in has:
        message, hint = f"`{name}` has a `rank` but no `keep`", "add for example `keep top 4`"
    elif "keep" in has:
        message = f"`{name}` has a `keep` but no `rank`"
        hint = "add for example `rank dot(mean(query), mean(key))`"
    else:
        message = f"`{name}` does not say which blocks to choose"
        hint = "add `rank` with `keep`, or `given` with a tensor of blocks"
    checker.findings.report("E114", statement.name.span, message, hint)
    return False


@dataclass
class Lowering:
    """The parts of one select. Each method reports what is wrong and gives None for it."""

    checker: Checker
    statement: ast.Select
    around: Scope

    def scope(self, where: Place) -> Scope:
        """That of a clause: the two indices are names there."""
        row, column = self.statement.row_index.name, self.statement.column_index.name
        symbols = {**self.around.symbols, row: index("i"), column: index("j")}
        here = replace(where, blocks=(row, column))
        context = Context(here, grid=self.around.context.grid)
        return Scope(context, self.around.module, symbols)

    def check_indices(self, taken: Mapping[str, ast.Name]) -> bool:
        """Whether the names of the two indices are new. They are known in this select alone."""
        row, column = self.statement.row_index, self.statement.column_index
        fits = True
        for name, others in ((row, {}), (column, {row.name: row})):
            if name.name in names.RESERVED:
                report_reserved(self.checker.findings, name)
                fits = False
                continue
            first = others.get(name.name) or taken.get(name.name)
            first = first or self.around.module.named_at.get(name.name)
            if first is not None:
                fits = False
                message = f"`{name.name}` is already the name of something else"
                notes = [f"the first one is at {place(first.span)}"]
                hint = "choose another name for the index"
                self.checker.findings.report("E103", name.span, message, hint, notes)
        return fits

    def lowered(self, expression: ast.Expression, scope: Scope) -> Node | None:
        value = lower(self.checker, expression, scope)
        node = self.checker.node(value, expression, scope)
        return None if node is None else self.bounded(node, expression.span)

    def bounded(self, node: Node, span: Span) -> Node | None:
        return bounded(self.checker.findings, node, span)

    # -- blocks -----------------------------------------------------------------------------

    def block(self, expression: ast.Expression, where: Place, position: str) -> Node | None:
        """The length of a block: m of `q // m`, 1 of `q`."""
        scope = replace(self.around, context=Context(where, grid=self.around.context.grid))
        node = self.lowered(expression, scope)
        if node is None:
            return None
        start = index(position)
        if node is start:
            return constant(1)
        length = node.args[1] if node.op == "floordiv" and node.args[0] is start else None
        if length is None or length.varies:
            text = shown(expression.span)
            message = f"{where.name} must be `{position}` or `{position} // m`, not `{text}`"
            self.checker.report("E114", expression.span, scope, message, names.LENGTH_OF_BLOCK)
            return None
        number = int_value(length)
        if number is not None and number < 1:
            message = f"a block has at least one position, not {number}"
            self.checker.report("E113", expression.span, scope, message)
            return None
        return length

    # -- clauses ----------------------------------------------------------------------------

    def rank(self, singles: frozenset[str]) -> Node | None:
        expression = self.statement.rank
        assert expression is not None
        scope = self.scope(replace(names.RANK, singles=singles))
        text = shown(expression.span)
        node = self.lowered(expression, scope)
        if node is None:
            return None
        if "d" in node.varies:
            message = f"a rank is a number, but `{text}` is a vector"
            hint = "multiply two vectors with `dot(x, y)`, or add up the elements: `sum(x)`"
            self.checker.report("E115", expression.span, scope, message, hint)
            return None
        if node.kind == "bool":
            message = f"a rank must be a number, but `{text}` is a bool"
            hint = f"write `where {text}` to limit the candidates, or `1.0 if {text} else 0.0`"
            self.checker.report("E104", expression.span, scope, message, hint)
            return None
        return self.bounded(to_float(node), expression.span)

    def where(self) -> Node | None:
        expression = self.statement.where
        assert expression is not None
        scope = self.scope(names.CANDIDATES)
        value = lower(self.checker, expression, scope)
        what = "the `where` of a select must be a bool"
        node = self.checker.boolean(value, expression, scope, what, "where {}")
        if node is None or not self.is_of_group(node, expression, scope):
            return None
        return self.bounded(node, expression.span)

    def limit(self) -> Node | None:
        expression, keep = self.statement.amount, self.statement.keep
        assert expression is not None
        scope = self.scope(names.LIMIT)
        text, column = shown(expression.span), self.statement.column_index.name
        node = self.lowered(expression, scope)
        if node is None:
            return None
        if node.kind == "bool" or keep == "top" and node.kind != "int":
            wanted = "an int" if keep == "top" else "a number"
            message = f"`keep {keep}` takes {wanted}, but `{text}` is {describe(node)}"
            hint = "" if node.kind == "bool" else f"write `floor({text})`"
            number = node.value if node.op == "const" and node.kind == "float" else None
            if isinstance(number, float) and 0 < number < 1:
                hint = f"for a share of the weight write `keep mass {text}`"
            elif isinstance(number, float) and 1 <= number < inf:
                hint = f"write a whole number, for example `keep top {int(number)}`"
            self.checker.report("E104", expression.span, scope, message, hint)
            return None
        if "j" in node.varies:
            message = f"`keep` may not use `{column}`: it holds for all blocks of keys at once"
            hint = f"write `where` to choose by `{column}`"
            self.checker.report("E106", expression.span, scope, message, hint)
            return None
        if not self.is_of_group(node, expression, scope):
            return None
        return node if keep == "top" else self.bounded(to_float(node), expression.span)

    def is_of_group(self, node: Node, expression: ast.Expression, scope: Scope) -> bool:
        """Whether a node is the same for all query heads of a group, where they choose together."""
        rest = substitute(node, {KEY_HEAD: scalar("h // G", "int")})
        if not self.statement.per_group or "h" not in rest.varies:
            return True
        message = "`h` may differ within a group, but the heads of a group choose together here"
        hint = "write `h // G`, or leave out `per group`"
        self.checker.report("E106", expression.span, scope, message, hint)
        return False

    def given(self) -> str | None:
        """The name of the tensor that lists the blocks."""
        expression = self.statement.given
        assert expression is not None
        heads = "Hk" if self.statement.per_group else "H"
        scope = replace(self.around, context=Context(names.CANDIDATES))
        hint = f"declare it for example `blocks: int[B, {heads}, rows, T]` and write `given blocks`"
        if not isinstance(expression, ast.Name):
            message = f"`given` takes the name of a tensor, not `{shown(expression.span)}`"
            self.checker.report("E114", expression.span, scope, message, hint)
            return None
        symbol = self.checker.resolve(expression, scope)
        if isinstance(symbol, Wrong):
            return None
        if not isinstance(symbol, Table):
            message = f"`given` takes a tensor, and `{expression.name}` is none"
            self.checker.report("E114", expression.span, scope, message, hint)
            return None
        tensor, dims = symbol.tensor, symbol.tensor.dims
        if tensor.kind == "int" and len(dims) == 4 and dims[:2] == (size("B"), size(heads)):
            return tensor.name
        group = " with `per group`" if self.statement.per_group else ""
        message = (
            f"`given`{group} takes a tensor int[B, {heads}, rows, T], but `{tensor.name}` is "
            f"{symbol.declared}"
        )
        self.checker.report("E114", expression.span, scope, message, hint)
        return None
