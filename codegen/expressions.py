"""IR expression -> text: by precedence from the op table, with names for what is used twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

from attndsl.ir.nodes import Node
from attndsl.ir.ops import ATOM, OPS, PRODUCT, TEST, UNARY, Spelling, infix

from .lines import Lines

Dialect = Literal["torch", "triton", "cpp"]
LeafText = Callable[[Node, tuple[str, ...]], str]  # a leaf and the texts of its arguments
Speller = Callable[[Node], Spelling]

DEEPEST = 10  # nesting of one written expression; what is deeper gets a name of its own
LEAVES_WITH_WORK = ("lookup", "dot")


def literal(value: bool | int | float) -> str:
    """A constant as Python text.

    >>> literal(float("-inf")), literal(-2), literal(True)
    ('float("-inf")', '-2', 'True')
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def is_simple(node: Node) -> bool:
    """Whether a node is a leaf that costs nothing to write again."""
    return OPS[node.op].is_leaf and node.op not in LEAVES_WITH_WORK


def table_spelling(dialect: Dialect, node: Node) -> Spelling:
    """The op table's spelling; `//` and `%` by a literal that is not zero need no helper in torch,
    whose operators floor."""
    if dialect == "torch" and node.op in ("floordiv", "floormod"):
        divisor = node.args[1]
        if divisor.op == "const" and divisor.value != 0:
            return infix("//" if node.op == "floordiv" else "%", PRODUCT)
    entry = OPS[node.op]
    spelling = {"torch": entry.torch, "triton": entry.triton, "cpp": entry.cpp}[dialect]
    assert spelling is not None, node.op
    return spelling


class Printer:
    """Writes nodes of one scope as text.

    names   texts of nodes that have one already (values of an outer scope, and what `define`
            assigned); a text must be a name or another atom
    leaf    the text of a leaf that is not in `names`: an atom, or a number with a minus sign
    spell   chooses another spelling for a node than the op table's
    prefix  local names are this and a running number
    """

    def __init__(
        self,
        dialect: Dialect,
        leaf: LeafText,
        names: dict[Node, str] | None = None,
        spell: Speller | None = None,
        prefix: str = "v",
    ) -> None:
        self.names: dict[Node, str] = dict(names or {})
        self._dialect: Dialect = dialect
        self._leaf = leaf
        self._spell = spell or (lambda node: table_spelling(dialect, node))
        self._prefix = prefix
        self._count = 0

    def inner(self, leaf: LeafText | None = None, prefix: str | None = None) -> Printer:
        """A printer of an inner scope: sees the names so far, and its own do not come back."""
        printer = Printer(self._dialect, leaf or self._leaf, self.names, self._spell)
        printer._prefix = self._prefix if prefix is None else prefix
        printer._count = self._count if prefix is None else 0
        return printer

    def text(self, node: Node, slot: int = TEST) -> str:
        """The expression, in brackets where it binds weaker than `slot`."""
        if node in self.names:
            return self.names[node]
        if node.op == "const":
            text = literal(node.value)
            precedence = UNARY if text.startswith("-") else ATOM
        elif OPS[node.op].is_leaf:
            text = self._leaf(node, tuple(self.text(arg) for arg in node.args))
            precedence = UNARY if text.startswith("-") else ATOM
        else:
            spelling = self._spell(node)
            parts = [self.text(a, s) for a, s in zip(node.args, spelling.slots, strict=True)]
            text, precedence = spelling.template.format(*parts), spelling.precedence
        return f"({text})" if precedence < slot else text

    def share(self, lines: Lines, roots: Iterable[Node]) -> None:
        """Assigns every node that the roots use twice or more, or that lies too deep for one line,
        to a local name, arguments before users."""
        roots = list(roots)
        order = unnamed(roots, self.names)
        uses: dict[Node, int] = dict.fromkeys(order, 0)
        for node in order:
            for arg in node.args:
                if arg in uses:
                    uses[arg] += 1
        for root in dict.fromkeys(roots):
            if root in uses:
                uses[root] += 1
        depth: dict[Node, int] = {}
        for node in order:
            depth[node] = 1 + max((depth.get(arg, 0) for arg in node.args), default=0)
            if not is_simple(node) and (uses[node] > 1 or depth[node] > DEEPEST):
                self._assign(lines, node)
                depth[node] = 0

    def write(self, lines: Lines, *roots: Node) -> list[str]:
        """Writes the shared parts as assignments and returns the texts of the roots."""
        self.share(lines, roots)
        return [self.text(root) for root in roots]

    def define(self, lines: Lines, nodes: Iterable[Node]) -> None:
        """Gives each node (that is not simple) a name, in the given order."""
        nodes = [node for node in nodes if not is_simple(node)]
        self.share(lines, nodes)
        for node in nodes:
            if node not in self.names:
                self._assign(lines, node)

    def _assign(self, lines: Lines, node: Node) -> None:
        text = self.text(node)
        name = f"{self._prefix}{self._count}"
        self._count += 1
        lines.add(f"{name} = {text}")
        self.names[node] = name


def unnamed(roots: Iterable[Node], named: Iterable[Node] = ()) -> list[Node]:
    """Nodes below the roots, each once, arguments first; nothing that is named or below it."""
    order: list[Node] = []
    seen: set[Node] = set(named)
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(root.args))]
        while stack:
            node, rest = stack[-1]
            arg = next((a for a in rest if a not in seen), None)
            if arg is None:
                order.append(node)
                stack.pop()
            else:
                seen.add(arg)
                stack.append((arg, iter(arg.args)))
    return order


def hoist(
    roots: Iterable[Node], level_of: Callable[[Node], int], levels: int
) -> tuple[tuple[Node, ...], ...]:
    """What to compute at each level (0 is the outermost): the largest subexpressions of the level
    that a deeper level uses, arguments first; for the last level nothing. A root counts as used by
    the last level.

    >>> from attndsl.ir.nodes import constant, index, make
    >>> q2 = make("mul", index("q"), index("q"))
    >>> pair = make("add", q2, index("k"))
    >>> hoist([pair], lambda n: len(n.varies & {"q", "k"}), 3)
    ((), (mul(index('q'), index('q')),), ())
    """
    roots = list(roots)
    order = unnamed(roots)
    level = {node: level_of(node) for node in order}
    wanted: dict[Node, None] = {}
    for node in order:
        for arg in node.args:
            if level[arg] < level[node]:
                wanted[arg] = None
    for root in roots:
        if level[root] < levels - 1:
            wanted[root] = None
    return tuple(
        tuple(n for n in order if n in wanted and level[n] == at and not is_simple(n))
        for at in range(levels)
    )
