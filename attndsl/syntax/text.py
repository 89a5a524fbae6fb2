"""Tree to text: as a program, and as an indented listing."""

from __future__ import annotations

import re
from dataclasses import fields

from attndsl.syntax import ast

# Precedences, lowest first; an operand of a lower one than its place asks for gets brackets.
CONDITIONAL, OR, AND, NOT, COMPARISON, SUM, PRODUCT, SIGN, POWER, ATOM = range(10)
BINARY: dict[str, int] = {
    "or": OR,
    "and": AND,
    "+": SUM,
    "-": SUM,
    "*": PRODUCT,
    "/": PRODUCT,
    "//": PRODUCT,
    "%": PRODUCT,
    "**": POWER,
}


def unparse(file: ast.File) -> str:
    """A program whose tree is the file's, without comments, one statement a line."""
    lines = [] if file.doc is None else [docstring(file.doc, ""), ""]
    for item in file.items:
        if isinstance(item, ast.Import):
            lines.append(import_text(item))
        elif isinstance(item, ast.Define):
            names = ", ".join(name.name for name in item.parameters)
            header = f"{item.name.name}({names})" if names else item.name.name
            lines.append(f"def {header} = {expression_text(item.value)}")
        else:
            lines.extend(["", *attention_lines(item), ""])
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


def docstring(text: str, pad: str) -> str:
    """A docstring with its quotes, as it stands in the text; `pad` begins its further lines."""
    quote = "'''" if '"""' in text or text.endswith('"') else '"""'
    lines = [f"{pad}{line}" if line else "" for line in text.split("\n")]
    if text.startswith(" "):  # only a line that is not the first may begin with a space
        lines.insert(0, "")
    return quote + "\n".join(lines).removeprefix(pad) + quote


def import_text(item: ast.Import) -> str:
    names = ", ".join(
        there.name if there == here else f"{there.name} as {here.name}"
        for there, here in item.names
    )
    if not item.is_path:
        return f"from {item.module} import {names}"
    quote = "'" if '"' in item.module else '"'
    return f"from {quote}{item.module}{quote} import {names}"


def attention_lines(item: ast.Attention) -> list[str]:
    parameters = ", ".join(parameter_text(parameter) for parameter in item.parameters)
    header = f"attention {item.name.name}({parameters}):" if parameters else ""
    lines = [header or f"attention {item.name.name}:"]
    if item.doc is not None:
        lines.append(f"    {docstring(item.doc, '    ')}")
    for statement in item.statements:
        lines.extend(f"    {line}" for line in statement_lines(statement))
    return lines


def parameter_text(parameter: ast.Parameter) -> str:
    kind = f"const {parameter.kind}" if parameter.const else parameter.kind
    if parameter.dims is not None:
        kind += f"[{', '.join(expression_text(dim) for dim in parameter.dims)}]"
    if parameter.default is None:
        return f"{parameter.name.name}: {kind}"
    return f"{parameter.name.name}: {kind} = {literal_text(parameter.default)}"


def literal_text(value: bool | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def statement_lines(statement: ast.Statement) -> list[str]:
    match statement:
        case ast.Let():
            return [f"let {statement.name.name} = {expression_text(statement.value)}"]
        case ast.Grid():
            axes = [f"{name.name} = {expression_text(extent)}" for name, extent in statement.axes]
            if statement.start is not None:
                axes.append(f"start = {expression_text(statement.start)}")
            return [f"grid {', '.join(axes)}"]
        case ast.Mask() | ast.Score() | ast.Output():
            return [f"{type(statement).__name__.lower()} {expression_text(statement.value)}"]
        case ast.Weights():
            return [weights_text(statement)]
        case ast.Select():
            return select_lines(statement)
    raise TypeError(f"not a statement: {type(statement).__name__}")


def weights_text(statement: ast.Weights) -> str:
    if statement.value is not None:
        value = expression_text(statement.value)
        if re.match(r"(softmax|normalize)\b", value) and statement.form == "elementwise":
            value = f"({value})"  # a form of weights begins with the word
        return (
            f"weights normalize({value})" if statement.form == "normalize" else f"weights {value}"
        )
    if statement.sink is not None:
        return f"weights softmax(sink = {expression_text(statement.sink)})"
    return "weights softmax"


def select_lines(statement: ast.Select) -> list[str]:
    row = f"{statement.row_index.name} = {expression_text(statement.row)}"
    column = f"{statement.column_index.name} = {expression_text(statement.column)}"
    group = " per group" if statement.per_group else ""
    lines = [f"select {statement.name.name}[{row}, {column}]{group}:"]
    clauses = (
        ("rank", statement.rank),
        ("where", statement.where),
        (f"keep {statement.keep}", statement.amount),
        ("given", statement.given),
    )
    lines.extend(f"    {word} {expression_text(value)}" for word, value in clauses if value)
    return lines


def expression_text(node: ast.Expression, least: int = CONDITIONAL) -> str:
    """An expression as text, in brackets where it binds looser than `least`."""
    text, precedence = operation_text(node)
    return text if precedence >= least else f"({text})"


def operation_text(node: ast.Expression) -> tuple[str, int]:
    """The text of an expression without outer brackets, and its precedence."""
    match node:
        case ast.Name():
            return node.name, ATOM
        case ast.Number() | ast.Boolean():
            return literal_text(node.value), ATOM
        case ast.Call():
            inside = ", ".join(expression_text(argument) for argument in node.arguments)
            return f"{node.function.name}({inside})", ATOM
        case ast.Lookup():
            inside = ", ".join(expression_text(index) for index in node.indices)
            return f"{node.tensor.name}[{inside}]", ATOM
        case ast.Coordinate():
            return f"{node.base.name}.{node.axis.name}", ATOM
        case ast.Unary(operator="not"):
            return f"not {expression_text(node.operand, NOT)}", NOT
        case ast.Unary():
            return f"{node.operator}{expression_text(node.operand, SIGN)}", SIGN
        case ast.Binary():
            return binary_text(node)
        case ast.Comparison():
            text = expression_text(node.operands[0], SUM)
            for operator, operand in zip(node.operators, node.operands[1:], strict=True):
                text += f" {operator} {expression_text(operand, SUM)}"
            return text, COMPARISON
        case ast.Conditional():
            then, condition = expression_text(node.then, OR), expression_text(node.condition, OR)
            return f"{then} if {condition} else {expression_text(node.otherwise)}", CONDITIONAL
    raise TypeError(f"not an expression: {type(node).__name__}")


def binary_text(node: ast.Binary) -> tuple[str, int]:
    """Chains nest to the left, a thousand deep: a loop goes down, another comes back."""
    if node.operator == "**":
        return f"{expression_text(node.left, ATOM)} ** {expression_text(node.right, SIGN)}", POWER
    chain: list[ast.Binary] = []
    inner: ast.Expression = node
    while isinstance(inner, ast.Binary) and inner.operator != "**":
        chain.append(inner)
        inner = inner.left
    text, precedence = operation_text(inner)
    for each in reversed(chain):
        outer = BINARY[each.operator]
        left = text if precedence >= outer else f"({text})"
        text = f"{left} {each.operator} {expression_text(each.right, outer + 1)}"
        precedence = outer
    return text, precedence


def dump(tree: ast.Tree) -> str:
    """The tree as an indented listing: a node a line, with the field it stands in.

    >>> from attndsl.source import Source, Span
    >>> at = Span(Source("x", ""), 0, 0)
    >>> print(dump(ast.Unary(at, "-", ast.Name(at, "q"))))
    Unary operator='-'
      operand: Name name='q'
    """
    lines: list[str] = []
    stack: list[tuple[int, str, object]] = [(0, "", tree)]
    while stack:
        depth, label, value = stack.pop()
        start = "  " * depth + (f"{label}: " if label else "")
        if isinstance(value, tuple):
            lines.append(f"{start}tuple")
            inside = [("", element) for element in value]
        elif isinstance(value, ast.Tree):
            named = [
                (entry.name, getattr(value, entry.name)) for entry in fields(value) if entry.compare
            ]
            inside = [(name, each) for name, each in named if is_inner(each)]
            plain = "".join(f" {name}={each!r}" for name, each in named if not is_inner(each))
            lines.append(f"{start}{type(value).__name__}{plain}")
        else:
            lines.append(f"{start}{value!r}")
            inside = []
        stack.extend((depth + 1, name, each) for name, each in reversed(inside))
    return "\n".join(lines)


def is_inner(value: object) -> bool:
    """Whether a field's value gets lines of its own."""
    if isinstance(value, tuple):
        return any(isinstance(each, ast.Tree | tuple) for each in value)
    return isinstance(value, ast.Tree)
