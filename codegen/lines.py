"""An indented writer of Python lines that notes which line of the user a block came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from attndsl.ir.nodes import Node
from attndsl.ir.program import Program


def printable(text: str) -> str:
    """One line of text that is safe inside a comment: no line end, no control character.

    >>> printable("a\\x00b\\tc")
    'a b c'
    """
    return "".join(char if char.isprintable() else " " for char in text).rstrip()


class Lines:
    """Lines of a Python file. Blocks are `with lines.block("for ...:"):`.

    >>> lines = Lines()
    >>> with lines.block("if x:"):
    ...     lines.add("y = 1")
    >>> print(lines.text(), end="")
    if x:
        y = 1
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def add(self, *texts: str) -> None:
        """Adds lines at the present depth; a text may hold several lines with their own indents."""
        for text in texts:
            for line in text.split("\n"):
                self._lines.append("    " * self._depth + line if line else "")

    def blank(self, count: int = 1) -> None:
        """Makes the text end in `count` empty lines (never more)."""
        while self._lines and not self._lines[-1]:
            self._lines.pop()
        self._lines.extend([""] * count)

    def comment(self, *texts: str) -> None:
        """Adds comments; each text may have any characters and any number of lines."""
        for text in texts:
            for line in text.splitlines() or [""]:
                self.add(f"# {printable(line)}".rstrip())

    def origin(self, program: Program, *nodes: Node) -> None:
        """Adds the user's lines from which the nodes came, each once, as comments."""
        seen: dict[tuple[str, int], str] = {}
        for node in nodes:
            for span in program.origins.get(node, ()):
                number = span.source.position(span.start)[0]
                file = PurePath(span.source.name).name
                seen.setdefault((file, number), span.source.line(number).strip())
        for (file, number), text in seen.items():
            self.comment(f"{printable(file)}:{number}: {text}")

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """A header line that ends in a colon, and an indented block below it."""
        self.add(header)
        with self.indented():
            yield

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Lines one level deeper."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def text(self) -> str:
        """The file so far, ending in one line end."""
        return "\n".join(self._lines).rstrip("\n") + "\n"
