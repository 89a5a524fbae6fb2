"""The grammar's parse tree to the tree of `ast`, without recursion."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from dataclasses import dataclass, replace

from lark import Token as LarkToken
from lark import Tree as LarkTree

from attndsl.diagnostics import Diagnostic
from attndsl.source import Source, Span
from attndsl.syntax import ast

MAX_NESTING = 100  # operations inside each other, other than on the left: -(-(-x)), a ** b ** c
MAX_DEPTH = 1000  # of operations that group to the left: a + b + c + ...

# Words of Python that the language does not have, with what to write.
PYTHON_WORDS: dict[str, str] = dict.fromkeys(keyword.kwlist, "choose another name") | {
    "True": "write `true`",
    "False": "write `false`",
    "None": "there is no empty value; leave it out",
    "for": "there are no loops; an expression is evaluated for every pair of `q` and `k`",
    "while": "there are no loops; an expression is evaluated for every pair of `q` and `k`",
    "lambda": "write `def name(x) = ...` outside the attention",
    "return": "write `mask`, `score`, `weights` or `output` before the expression",
    "is": "write `==`",
    "in": "compare with `==`, `<` and `<=`",
    "import": "write `from std import name` at the beginning of the file",
    "class": "write `attention name():`",
    "elif": "write `a if c else b if d else e`",
    "and": "`and` stands between two conditions",
    "or": "`or` stands between two conditions",
    "not": "`not` stands before a condition",
    "if": "write `a if c else b` inside an expression",
    "else": "write `a if c else b` inside an expression",
}

Child = object  # a lark token, None, or what a method of Builder returned for a subtree


@dataclass(frozen=True, slots=True)
class Part:
    """An expression with its brackets' offsets, and how deep it is."""

    node: ast.Expression
    start: int
    end: int
    depth: int = 1
    nesting: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a declaration (dimensions, default, clause, ...) and where it ends."""

    value: object
    end: int


def unquote(text: str) -> str:
    """What stands between the quotes of a string; strings have no escapes."""
    size = 3 if text[:3] in ('"""', "'''") and len(text) >= 6 else 1
    return text[size:-size]


def clean_doc(text: str) -> str:
    """A docstring without the indentation of its lines and blank lines around them.

    >>> clean_doc("One.\\n\\n    Two.\\n    ")
    'One.\\n\\nTwo.'
    """
    first, *rest = [line.rstrip() for line in text.expandtabs().split("\n")]
    margin = min((len(line) - len(line.lstrip()) for line in rest if line), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in rest)]).strip("\n")


class Builder:
    """Builds one file; `base` is added to the offsets of the parse tree.

    Mistakes that the grammar lets through are listed in `problems`.
    """

    def __init__(self, source: Source, base: int) -> None:
        self.source = source
        self.base = base
        self.problems: list[Diagnostic] = []

    def build(self, root: LarkTree[LarkToken]) -> ast.File:
        """The tree of a parse tree that the grammar's `start` made."""
        order: list[LarkTree[LarkToken]] = []
        stack = [root]
        while stack:
            tree = stack.pop()
            order.append(tree)
            stack.extend(child for child in tree.children if isinstance(child, LarkTree))
        done: dict[int, Child] = {}
        for tree in reversed(order):  # children before parents
            children = [
                done.pop(id(child)) if isinstance(child, LarkTree) else child
                for child in tree.children
            ]
            method: Callable[[list[Child]], Child] = getattr(self, tree.data)
            done[id(tree)] = method(children)
        file = done[id(root)]
        assert isinstance(file, ast.File)
        return file

    # -- places and names ---------------------------------------------------------------------

    def report(self, code: str, message: str, start: int, end: int, hint: str) -> None:
        self.problems.append(Diagnostic(code, message, Span(self.source, start, end), hint))

    def begin(self, child: Child) -> int:
        if isinstance(child, LarkToken):
            assert child.start_pos is not None
            return child.start_pos + self.base
        assert isinstance(child, Part)
        return child.start

    def finish(self, child: Child) -> int:
        if isinstance(child, LarkToken):
            assert child.end_pos is not None
            return child.end_pos + self.base
        if isinstance(child, ast.Tree):
            return child.span.end
        assert isinstance(child, Part | Piece)
        return child.end

    def span(self, first: Child, last: Child) -> Span:
        return Span(self.source, self.begin(first), self.finish(last))

    def identifier(self, token: Child) -> ast.Name:
        assert isinstance(token, LarkToken)
        text, span = str(token), self.span(token, token)
        if text in PYTHON_WORDS:
            message = f"`{text}` is a word of Python and cannot be a name"
            self.report("E002", message, span.start, span.end, PYTHON_WORDS[text])
        return ast.Name(span, text)

    # -- expressions --------------------------------------------------------------------------

    def part(self, node: ast.Expression, *inner: Part, chain: LarkToken | None = None) -> Part:
        """The expression with its depth, or a short stand-in for one that is too deep.

        `chain` is the operator of a binary operation that groups to the left.
        """
        depth = 1 + max((each.depth for each in inner), default=0)
        if chain is None:
            nesting = 1 + max((each.nesting for each in inner), default=0)
        else:
            nesting = max(inner[0].nesting, 1 + inner[1].nesting)
        span = node.span
        if (depth <= MAX_DEPTH or chain is None) and nesting <= MAX_NESTING:
            return Part(node, span.start, span.end, depth, nesting)
        message = f"more than {MAX_NESTING} operations inside each other"
        start, end = span.start, span.start + 1
        if nesting <= MAX_NESTING:
            message = f"more than {MAX_DEPTH} terms in one expression"
            start, end = inner[0].end, inner[1].start
        elif chain is not None or isinstance(node, ast.Binary):
            start, end = inner[0].end, inner[1].start
        self.report("E005", message, start, end, "name parts of the expression with `let`")
        return Part(ast.Boolean(span, True), span.start, span.end)

    def number(self, children: list[Child]) -> Part:
        return self.part(ast.Number(self.span(*children * 2), read_number(str(children[0]))))

    def boolean(self, children: list[Child]) -> Part:
        return self.part(ast.Boolean(self.span(*children * 2), children[0] == "true"))

    def name(self, children: list[Child]) -> Part:
        return self.part(self.identifier(children[0]))

    def coordinate(self, children: list[Child]) -> Part:
        base, axis = self.identifier(children[0]), self.identifier(children[1])
        return self.part(ast.Coordinate(base.span.to(axis.span), base, axis))

    def call(self, children: list[Child]) -> Part:
        arguments = [child for child in children if isinstance(child, Part)]
        nodes = tuple(argument.node for argument in arguments)
        span = self.span(children[0], children[-1])
        return self.part(ast.Call(span, self.identifier(children[0]), nodes), *arguments)

    def lookup(self, children: list[Child]) -> Part:
        indices = [child for child in children if isinstance(child, Part)]
        nodes = tuple(index.node for index in indices)
        span = self.span(children[0], children[-1])
        return self.part(ast.Lookup(span, self.identifier(children[0]), nodes), *indices)

    def bracketed(self, children: list[Child]) -> Part:
        inner = children[1]
        assert isinstance(inner, Part)
        return replace(inner, start=self.begin(children[0]), end=self.finish(children[2]))

    def unary(self, children: list[Child]) -> Part:
        operator, operand = children
        assert isinstance(operand, Part)
        span = self.span(operator, operand)
        return self.part(ast.Unary(span, str(operator), operand.node), operand)

    def binary(self, children: list[Child]) -> Part:
        left, operator, right = children
        assert isinstance(left, Part) and isinstance(right, Part)
        node = ast.Binary(self.span(left, right), str(operator), left.node, right.node)
        assert isinstance(operator, LarkToken)
        return self.part(node, left, right, chain=None if operator == "**" else operator)

    def comparison(self, children: list[Child]) -> Part:
        operands = [child for child in children if isinstance(child, Part)]
        operators = tuple(str(child) for child in children if isinstance(child, LarkToken))
        nodes = tuple(operand.node for operand in operands)
        span = self.span(children[0], children[-1])
        return self.part(ast.Comparison(span, operators, nodes), *operands)

    def conditional(self, children: list[Child]) -> Part:
        then, condition, otherwise = (child for child in children if isinstance(child, Part))
        span = self.span(then, otherwise)
        node = ast.Conditional(span, condition.node, then.node, otherwise.node)
        return self.part(node, then, condition, otherwise)

    # -- statements ---------------------------------------------------------------------------

    def let(self, children: list[Child]) -> ast.Let:
        name, value = self.identifier(children[1]), expression(children[2])
        return ast.Let(self.span(children[0], children[2]), name, value)

    def mask(self, children: list[Child]) -> ast.Mask:
        return ast.Mask(self.span(*children), expression(children[1]))

    def score(self, children: list[Child]) -> ast.Score:
        return ast.Score(self.span(*children), expression(children[1]))

    def output(self, children: list[Child]) -> ast.Output:
        return ast.Output(self.span(*children), expression(children[1]))

    def weights(self, children: list[Child]) -> ast.Weights:
        present = [child for child in children if child is not None]
        span = self.span(present[0], present[-1])
        value = next((child.node for child in present if isinstance(child, Part)), None)
        form = present[1]
        if not isinstance(form, LarkToken):
            return ast.Weights(span, "elementwise", value, None)
        if form == "softmax":
            return ast.Weights(span, "softmax", None, value)
        return ast.Weights(span, "normalize", value, None)

    def binding(self, children: list[Child]) -> Piece:
        value = children[1]
        assert isinstance(value, Part)
        return Piece((self.identifier(children[0]), value.node), value.end)

    def grid(self, children: list[Child]) -> ast.Grid:
        span = self.span(children[0], children[-1])
        axes = [binding_of(child) for child in children[1:]]
        start: ast.Expression | None = None
        if axes[-1][0].name == "start":
            start = axes.pop()[1]
        misplaced = [name for name, _ in axes if name.name == "start"]
        hint = "write `grid y = height, x = width, start = first`"
        if misplaced:
            at = misplaced[0].span
            self.report("E002", "`start` stands after the axes", at.start, at.end, hint)
        elif not axes:
            self.report("E002", "grid without an axis", span.start, span.end, hint)
        return ast.Grid(span, tuple(axes), start)

    def amount(self, children: list[Child]) -> Child:
        return children[0]

    def clause(self, children: list[Child]) -> Piece:
        return Piece(children, self.finish(children[-1]))

    def select(self, children: list[Child]) -> ast.Select:
        bindings: list[tuple[ast.Name, ast.Expression]] = []
        found: dict[str, ast.Expression] = {}
        keep: str | None = None
        for child in children:
            if not isinstance(child, Piece):
                continue
            if isinstance(child.value, tuple):
                bindings.append(binding_of(child))
                continue
            assert isinstance(child.value, list)
            word = child.value[0]
            if str(word) in found:
                message, hint = f"`{word}` stands twice in one select", "delete one of them"
                self.report("E002", message, self.begin(word), self.finish(word), hint)
            found[str(word)] = expression(child.value[-1])
            if word == "keep":
                keep = str(child.value[1])
        name = self.identifier(children[1])
        if len(bindings) != 2:
            message = f"a select has two indices, not {len(bindings)}"
            hint = f"write `select {name.name}[i = q // 64, j = k // 64]:`"
            self.report("E002", message, name.span.start, name.span.end, hint)
            bindings = [bindings[0], bindings[-1]]
        return ast.Select(
            self.span(children[0], children[-1]),
            name,
            *bindings[0],
            *bindings[1],
            per_group=any(child == "per" for child in children[2:]),
            rank=found.get("rank"),
            where=found.get("where"),
            keep=keep,
            amount=found.get("keep"),
            given=found.get("given"),
        )

    # -- the file -----------------------------------------------------------------------------

    def docstring(self, children: list[Child]) -> Piece:
        return Piece(clean_doc(unquote(str(children[0]))), self.finish(children[0]))

    def imported(self, children: list[Child]) -> Piece:
        names = [self.identifier(child) for child in children]
        return Piece((names[0], names[-1]), names[-1].span.end)

    def import_(self, children: list[Child]) -> ast.Import:
        module = children[1]
        assert isinstance(module, LarkToken)
        is_path = module.type == "STRING"
        names = tuple(binding_pair(child) for child in children if isinstance(child, Piece))
        span = self.span(children[0], children[-1])
        text = unquote(str(module)) if is_path else self.identifier(module).name
        return ast.Import(span, text, is_path, names)

    def names(self, children: list[Child]) -> tuple[ast.Name, ...]:
        return tuple(self.identifier(child) for child in children[1:-1])

    def define(self, children: list[Child]) -> ast.Define:
        keyword_, name, names, value = children
        parameters = names if isinstance(names, tuple) else ()
        span = self.span(keyword_, value)
        return ast.Define(span, self.identifier(name), parameters, expression(value))

    def kind(self, children: list[Child]) -> Child:
        return children[0]

    def dimensions(self, children: list[Child]) -> Piece:
        dims = tuple(child.node for child in children if isinstance(child, Part))
        return Piece(dims, self.finish(children[-1]))

    def default(self, children: list[Child]) -> Piece:
        literal = str(children[-1])
        end = self.finish(children[-1])
        if literal in ("true", "false"):
            return Piece(literal == "true", end)
        value = float("inf") if literal == "inf" else read_number(literal)
        return Piece(-value if children[0] is not None else value, end)

    def parameter(self, children: list[Child]) -> ast.Parameter:
        name, const, kind, dims, default = children
        last = next(child for child in (default, dims, kind) if child is not None)
        shape = dims.value if isinstance(dims, Piece) else None
        value = default.value if isinstance(default, Piece) else None
        assert shape is None or isinstance(shape, tuple)
        assert value is None or isinstance(value, bool | int | float)
        span = self.span(name, last)
        return ast.Parameter(
            span, self.identifier(name), const is not None, str(kind), shape, value
        )

    def parameters(self, children: list[Child]) -> tuple[ast.Parameter, ...]:
        return tuple(child for child in children if isinstance(child, ast.Parameter))

    def attention(self, children: list[Child]) -> ast.Attention:
        keyword_, name, parameters, doc, *rest = children
        statements = tuple(child for child in rest if isinstance(child, ast.Statement))
        return ast.Attention(
            self.span(keyword_, statements[-1]),
            self.identifier(name),
            parameters if isinstance(parameters, tuple) else (),
            str(doc.value) if isinstance(doc, Piece) else None,
            statements,
        )

    def start(self, children: list[Child]) -> ast.File:
        doc = next((str(child.value) for child in children if isinstance(child, Piece)), None)
        items = tuple(
            child
            for child in children
            if isinstance(child, ast.Import | ast.Define | ast.Attention)
        )
        span = Span(self.source, 0, len(self.source.text))
        return ast.File(span, self.source, doc, items)


def expression(child: Child) -> ast.Expression:
    assert isinstance(child, Part)
    return child.node


def binding_of(child: Child) -> tuple[ast.Name, ast.Expression]:
    assert isinstance(child, Piece) and isinstance(child.value, tuple)
    name, value = child.value
    return name, value


def binding_pair(child: Piece) -> tuple[ast.Name, ast.Name]:
    assert isinstance(child.value, tuple)
    there, here = child.value
    return there, here


def read_number(text: str) -> int | float:
    digits = text.replace("_", "")
    return int(digits) if digits.isdigit() else float(digits)
