"""Text to tree, by the compiler's own parser: the one part that the oracle shares with it."""

from __future__ import annotations

from attndsl.source import Source
from attndsl.syntax import ast
from attndsl.syntax.parser import parse


def parse_text(text: str, name: str = "<text>") -> ast.File:
    """The tree of a program's text; `name` is its path, for imports."""
    return parse(Source(name, text))
