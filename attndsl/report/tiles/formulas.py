"""IR -> the language's own notation, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.ir.nodes import Node, index, lookup, rebuild, topological, with_args

# The language's precedences, lowest first.
CONDITION, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)

COMPARISONS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!="}
NEGATED = {"lt": ">=", "le": ">", "eq": "!=", "ne": "=="}
INFIX: dict[str, tuple[str, int]] = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "div": ("/", PRODUCT),
    "floordiv": ("//", PRODUCT),
    "floormod": ("%", PRODUCT),
    "floordiv_float": ("//", PRODUCT),
    "floormod_float": ("%", PRODUCT),
    "and": ("and", AND),
    "or": ("or", OR),
}
CALLS = {"trunc": "int", "bool_to_int": "int"}
D = index("d")

Text = tuple[str, int]  # text and its precedence


def formula(node: Node, names: Mapping[str, str] | None = None) -> str:
    """A value in the language's notation; `names` says what the ends of a tile are called.

    Conversions from int to float are left out: the language makes them by itself.

    >>> from attndsl.ir.nodes import constant, index, make
    >>> formula(make("le", index("k"), make("sub", index("q"), constant(1))))
    'k <= q - 1'
    """
    texts: dict[Node, Text] = {}
    for part in topological(node):
        texts[part] = _text(part, texts, names or {})
    return texts[node][0]


def _text(node: Node, texts: Mapping[Node, Text], names: Mapping[str, str]) -> Text:
    args = [texts[arg] for arg in node.args]
    if not node.args:
        return _leaf(node, names)
    if node.op in ("lookup", "dot"):
        looked_up = f"{node.name}[{', '.join(text for text, _ in args)}]"
        return (f"dot(query, {looked_up})" if node.op == "dot" else looked_up), ATOM
    if node.op == "total":
        return _total(node.args[0], names), ATOM
    if node.op == "to_float":
        return args[0]
    if node.op == "neg":
        return f"-{_at_least(UNARY, args[0])}", UNARY
    if node.op == "pow":
        return f"{_at_least(ATOM, args[0])} ** {_at_least(UNARY, args[1])}", POWER
    if node.op == "not":
        return _negation(node.args[0], texts)
    if node.op == "where":
        condition, then, otherwise = args
        text = f"{_at_least(OR, then)} if {_at_least(OR, condition)} else {otherwise[0]}"
        return text, CONDITION
    if node.op in COMPARISONS:
        return _compared(COMPARISONS[node.op], args), COMPARE
    if node.op == "and" and (chain := _chain(node, texts)):
        return chain, COMPARE
    if node.op == "add" and (minus := _subtracted(node.args[1], texts)):
        return f"{_at_least(SUM, args[0])} - {minus}", SUM
    if node.op in INFIX:
        symbol, precedence = INFIX[node.op]
        left, right = _at_least(precedence, args[0]), _at_least(precedence + 1, args[1])
        return f"{left} {symbol} {right}", precedence
    if node.op in ("min", "max"):
        flat = ", ".join(_flattened(node, texts))
        return f"{node.op}({flat})", ATOM
    return f"{CALLS.get(node.op, node.op)}({', '.join(text for text, _ in args)})", ATOM


def _leaf(node: Node, names: Mapping[str, str]) -> Text:
    if node.op == "const":
        text = _number(node.value)
        return text, UNARY if text.startswith("-") else ATOM
    if node.op in ("score", "out"):
        return node.op, ATOM
    if node.op == "bound":
        return names.get(node.name, node.name), ATOM
    if node.op == "pooled":
        vector, _, pooling = node.name.partition("_")
        return f"{pooling}({vector})" if pooling else vector, ATOM
    return str(node.attr), ATOM


def _total(vector: Node, names: Mapping[str, str]) -> str:
    """`dot(x, y)` or `sum(x)`; vectors of tables are written without their last index."""
    if vector.op == "mul" and all("d" in arg.varies for arg in vector.args):
        x, y = (formula(rebuild(arg, _without_d), names) for arg in vector.args)
        return f"dot({x}, {y})"
    return f"sum({formula(rebuild(vector, _without_d), names)})"


def _without_d(node: Node, args: tuple[Node, ...]) -> Node:
    if node.op == "lookup" and args and args[-1] is D:
        return lookup(node.name, node.kind, *args[:-1])
    return with_args(node, args)


def _number(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _at_least(precedence: int, part: Text) -> str:
    text, own = part
    return text if own >= precedence else f"({text})"


def _subtracted(node: Node, texts: Mapping[Node, Text]) -> str | None:
    """What is subtracted where a node is added: `x + -3` reads `x - 3`."""
    if node.op == "neg":
        return _at_least(PRODUCT, texts[node.args[0]])
    text = texts[node][0]
    return text[1:] if node.op == "const" and text.startswith("-") else None


def _compared(symbol: str, args: list[Text]) -> str:
    return f"{_at_least(SUM, args[0])} {symbol} {_at_least(SUM, args[1])}"


def _negation(operand: Node, texts: Mapping[Node, Text]) -> Text:
    """`not a`; a comparison of ints is turned round (of floats it is not: NaN)."""
    if operand.op in NEGATED and (operand.op in ("eq", "ne") or operand.args[0].kind == "int"):
        return _compared(NEGATED[operand.op], [texts[arg] for arg in operand.args]), COMPARE
    return f"not {_at_least(NOT, texts[operand])}", NOT


def _chain(node: Node, texts: Mapping[Node, Text]) -> str | None:
    """`a <= b < c` for `a <= b and b < c`, whichever comes first."""
    first, second = node.args
    if not {first.op, second.op} <= {"lt", "le"}:
        return None
    if second.args[1] is first.args[0]:
        first, second = second, first
    if first.args[1] is not second.args[0]:
        return None
    start = _compared(COMPARISONS[first.op], [texts[arg] for arg in first.args])
    return f"{start} {COMPARISONS[second.op]} {_at_least(SUM, texts[second.args[1]])}"


def _flattened(node: Node, texts: Mapping[Node, Text]) -> list[str]:
    """The arguments of nested `min`s (or `max`es) in one list."""
    found: list[str] = []
    stack = list(reversed(node.args))
    while stack:
        arg = stack.pop()
        if arg.op == node.op and arg.kind == node.kind:
            stack.extend(reversed(arg.args))
        elif texts[arg][0] not in found:
            found.append(texts[arg][0])
    return found
