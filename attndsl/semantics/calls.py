"""Names, coordinates, calls and lookups: what is meant, whether it fits, definitions expanded."""

from __future__ import annotations

from collections.abc import Generator

from attndsl.diagnostics import did_you_mean
from attndsl.ir.nodes import Node, constant, dot, lookup
from attndsl.ir.program import Grid
from attndsl.semantics import names
from attndsl.semantics.arithmetic import binary
from attndsl.semantics.checker import Checker, Step
from attndsl.semantics.findings import shown
from attndsl.semantics.functions import FUNCTION_NAMES, FUNCTIONS
from attndsl.semantics.modules import Definition
from attndsl.semantics.scope import Scope, Use
from attndsl.semantics.types import WRONG, Table, Value, Vector, Wrong, describe
from attndsl.source import Span
from attndsl.syntax.ast import Call, Coordinate, Expression, Lookup, Name

MAX_EXPANSION = 100_000  # steps inside definitions, for one attention


def name_step(checker: Checker, expression: Name, scope: Scope) -> Step:
    symbol = checker.resolve(expression, scope)
    if isinstance(symbol, Definition):
        if symbol.tree.parameters:
            count = len(symbol.tree.parameters)
            return checker.report(
                "E105",
                expression.span,
                scope,
                f"`{expression.name}` takes {plural(count, 'argument')}",
                f"write `{symbol.signature}`",
            )
        return (yield from expand(checker, symbol, (), expression.span, scope))
    return symbol


def coordinate_step(checker: Checker, expression: Coordinate, scope: Scope) -> Step:
    base = yield expression.base, scope
    if isinstance(base, Wrong):
        return WRONG
    text, axis = shown(expression.span), expression.axis.name
    if base is not names.INDEX_NODES["q"] and base is not names.INDEX_NODES["k"]:
        message = f"`{text}`: only `q` and `k` have coordinates"
        return checker.report("E106", expression.span, scope, message)
    assert isinstance(base, Node)
    grid = scope.context.grid
    if isinstance(grid, Wrong):
        return WRONG
    if grid is None:
        return checker.report(
            "E106",
            expression.span,
            scope,
            f"`{text}` is a coordinate, but there is no grid here",
            "declare one in the attention, for example `grid y = 16, x = 16`",
        )
    if axis not in grid.axes:
        hint = did_you_mean(axis, grid.axes) or "its axes are " + ", ".join(
            f"`{a}`" for a in grid.axes
        )
        message = f"the grid has no axis called `{axis}`"
        return checker.report("E101", expression.axis.span, scope, message, hint)
    return checker.built(expression, scope, lambda: coordinate(base, axis, grid))


def coordinate(position: Node, axis: str, grid: Grid) -> Node:
    """A coordinate by floor arithmetic: for axes t, y, x of extents T, Y, X that start at s,
    p = position - s; x = p % X; y = p // X % Y; t = p // X // Y."""
    place = grid.axes.index(axis)
    found = binary("-", position, grid.start) if grid.start is not constant(0) else position
    for extent in reversed(grid.extents[place + 1 :]):
        found = binary("//", found, extent)
    return found if place == 0 else binary("%", found, grid.extents[place])


def call_step(checker: Checker, expression: Call, scope: Scope) -> Step:
    name = expression.function.name
    if name == "dot" and name not in scope.symbols:
        return (yield from dot_step(checker, expression, scope))
    values: list[Value] = []
    for argument in expression.arguments:
        values.append((yield argument, scope))
    if name in FUNCTIONS and name not in scope.symbols:
        return call_function(checker, expression, values, scope)
    if name not in scope.symbols and name not in (names.RESERVED | set(scope.module.visible)):
        return checker.unknown(expression.function, scope, "function")
    symbol = checker.resolve(expression.function, scope)
    if not isinstance(symbol, Definition):
        return report_call(checker, expression, symbol, scope)
    wanted = len(symbol.tree.parameters)
    if len(values) != wanted and not symbol.broken:
        return report_arity(checker, expression, symbol.signature, str(wanted), scope)
    return (yield from expand(checker, symbol, tuple(values), expression.span, scope))


def report_call(checker: Checker, expression: Call, symbol: Value, scope: Scope) -> Wrong:
    name = expression.function.name
    if isinstance(symbol, Wrong):
        return WRONG
    if isinstance(symbol, Table):
        inside = ", ".join(shown(a.span) for a in expression.arguments)
        message = f"`{name}` is a tensor and cannot be called"
        hint = f"look it up with square brackets: `{name}[{inside}]`"
        return checker.report("E111", expression.span, scope, message, hint)
    message = f"`{name}` is {describe(symbol)}, not a function"
    return checker.report("E104", expression.span, scope, message)


def report_arity(
    checker: Checker, expression: Call, signature: str, wanted: str, scope: Scope
) -> Wrong:
    given = len(expression.arguments)
    noun = "argument" if wanted == "1" else "arguments"
    wanted = "no" if wanted == "0" else wanted
    message = f"`{expression.function.name}` takes {wanted} {noun}, not {given}"
    return checker.report("E105", expression.span, scope, message, f"write `{signature}`")


def call_function(checker: Checker, expression: Call, values: list[Value], scope: Scope) -> Value:
    name = expression.function.name
    function = FUNCTIONS[name]
    if not function.takes(len(values)):
        wanted = str(len(function.arguments)) + (" or more" if function.takes_more else "")
        signature = f"{name}({', '.join(function.arguments)})"
        return report_arity(checker, expression, signature, wanted, scope)
    nodes: list[Node] = []
    for value, argument in zip(values, expression.arguments, strict=True):
        if function.takes_bool:
            node = checker.node(value, argument, scope)
        else:
            node = checker.number(value, argument, scope, f"`{name}` takes numbers")
        if node is not None:
            nodes.append(node)
    if len(nodes) < len(values):
        return WRONG
    return checker.built(expression, scope, lambda: function.build(nodes))


def expand(
    checker: Checker, definition: Definition, arguments: tuple[Value, ...], span: Span, scope: Scope
) -> Step:
    """The body of a def with its parameters standing for the arguments' values."""
    if definition.broken:
        return WRONG
    key = (definition, arguments)
    expanded = scope.context.expanded
    if key not in expanded:
        name = definition.tree.name.name
        if checker.expansion > MAX_EXPANSION:
            return report_exhaustion(checker, name, span, scope)
        parameters = (p.name for p in definition.tree.parameters)
        symbols = dict(zip(parameters, arguments, strict=True))
        around = scope.use
        use = Use(name, span, around, None if around is None else around.outermost)
        inner = Scope(scope.context, definition.module, symbols, use, True)
        expanded[key] = yield definition.tree.value, inner
    return expanded[key]


def report_exhaustion(checker: Checker, name: str, span: Span, scope: Scope) -> Wrong:
    if not checker.is_exhausted:
        checker.is_exhausted = True
        message = f"the definitions expand to more than {MAX_EXPANSION} operations"
        hint = f"`{name}` is used with too many different arguments"
        checker.report("E005", span, scope, message, hint)
    return WRONG


def dot_step(checker: Checker, expression: Call, scope: Scope) -> Step:
    signature = "dot(query, t[...])"
    if len(expression.arguments) != 2:
        return report_arity(checker, expression, signature, "2", scope)
    first, second = expression.arguments
    value = yield first, scope
    is_allowed = checker.allow("dot", expression.span, scope)
    if isinstance(value, Wrong) or not is_allowed:
        return WRONG
    if not (isinstance(value, Vector) and value.name == "query"):
        return checker.report(
            "E106",
            first.span,
            scope,
            f"`dot` multiplies with `query`, not with `{shown(first.span)}`",
            f"write `{signature}`; the product of query and key is already in `score`",
        )
    if not isinstance(second, Lookup):
        message = f"the second argument of `dot` must be a lookup, not `{shown(second.span)}`"
        return checker.report("E111", second.span, scope, message, f"write `{signature}`")
    table = named_table(checker, second, scope)
    indices = yield from lowered_indices(checker, second, scope)
    if table is None or indices is None:
        return WRONG
    tensor = table.tensor
    if tensor.kind != "float" or not tensor.dims or tensor.dims[-1] is not names.SIZE_NODES["D"]:
        return checker.report(
            "E111",
            second.span,
            scope,
            f"`dot` needs a float tensor whose last dimension is `D`, but `{tensor.name}` is "
            f"{table.declared}",
            f"declare it for example `{tensor.name}: float[H, n, D]`",
        )
    if not fits(checker, second, table, len(tensor.dims) - 1, scope):
        return WRONG
    for index, part in zip(indices, second.indices, strict=True):
        if found := sorted(index.varies & {"score", "out", "d"}):
            message = f"an index inside `dot` may not depend on `{found[0]}`"
            return checker.report("E106", part.span, scope, message)
    return dot(tensor.name, *indices)


def lookup_step(checker: Checker, expression: Lookup, scope: Scope) -> Step:
    table = named_table(checker, expression, scope)
    indices = yield from lowered_indices(checker, expression, scope)
    is_allowed = checker.allow("lookup", expression.span, scope)
    if table is None or indices is None or not is_allowed:
        return WRONG
    tensor = table.tensor
    if scope.context.place.has_vectors:
        for index, part in zip(indices, expression.indices, strict=True):
            if "d" in index.varies:
                message = f"an index must be a number, but `{shown(part.span)}` is a vector"
                return checker.report("E115", part.span, scope, message)
        if len(indices) == len(tensor.dims) - 1 and tensor.dims[-1] is names.SIZE_NODES["D"]:
            return lookup(tensor.name, tensor.kind, *indices, names.INDEX_NODES["d"])
    if not fits(checker, expression, table, len(tensor.dims), scope):
        return WRONG
    return lookup(tensor.name, tensor.kind, *indices)


def named_table(checker: Checker, expression: Lookup, scope: Scope) -> Table | None:
    """The tensor that a lookup names."""
    name = expression.tensor
    if name.name in FUNCTION_NAMES and name.name not in scope.symbols:
        message = f"`{name.name}` is a function: call it with round brackets"
        checker.report("E111", expression.span, scope, message)
        return None
    symbol = checker.resolve(name, scope)
    if isinstance(symbol, Table):
        return symbol
    if isinstance(symbol, Wrong):
        return None
    message = f"`{name.name}` is not a tensor and cannot be looked up"
    if isinstance(symbol, Definition):
        hint = f"it is a def: write `{symbol.signature}`"
    elif isinstance(symbol, Vector):
        hint = "`score` already holds the product of query and key"
    else:
        message = f"`{name.name}` is {describe(symbol)}, not a tensor: it cannot be looked up"
        hint = f"declare it as a tensor, for example `{name.name}: float[H]`"
        hint = "" if name.name in names.VALUES else hint
        if isinstance(symbol, Node) and symbol.op == "chosen":
            hint = f"it already holds for each pair of a query and a key: write `{name.name}`"
    checker.report("E111", expression.span, scope, message, hint)
    return None


def lowered_indices(
    checker: Checker, expression: Lookup, scope: Scope
) -> Generator[tuple[Expression, Scope], Value, tuple[Node, ...] | None]:
    found: list[Node] = []
    for part in expression.indices:
        value = yield part, scope
        node = checker.node(value, part, scope)
        if node is not None and node.kind == "int":
            found.append(node)
        elif node is not None:
            text = shown(part.span)
            way = "floor" if node.kind == "float" else "int"
            checker.report(
                "E111",
                part.span,
                scope,
                f"an index must be an int, but `{text}` is {describe(node)}",
                f"write `{way}({text})`" + (", or `//` for `/`" if "/" in text else ""),
            )
    return tuple(found) if len(found) == len(expression.indices) else None


def fits(checker: Checker, expression: Lookup, table: Table, rank: int, scope: Scope) -> bool:
    given = len(expression.indices)
    if given == rank:
        return True
    extra = "" if rank == len(table.tensor.dims) else " (and `D`, which `dot` runs over)"
    is_row = scope.context.place.has_vectors and given == rank - 1
    checker.report(
        "E111",
        expression.span,
        scope,
        f"`{table.tensor.name}` has {plural(rank, 'dimension')}{extra}, "
        f"but {plural(given, 'index', 'indices')} {'is' if given == 1 else 'are'} given",
        f"it is declared {table.declared}"
        + ("; it is read as a vector where its last dimension is `D`" if is_row else ""),
    )
    return False


def plural(count: int, noun: str, nouns: str = "") -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
