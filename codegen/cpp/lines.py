"""A writer of C++ lines: blocks in braces, comments with two slashes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..lines import Lines, printable


class CppLines(Lines):
    """Lines of C++. Blocks are `with lines.block("for (...)"):`.

    >>> lines = CppLines()
    >>> with lines.block("if (x)"):
    ...     lines.add("y = 1;")
    >>> print(lines.text(), end="")
    if (x) {
        y = 1;
    }
    """

    def comment(self, *texts: str) -> None:
        """Adds comments; each text may have any characters and any number of lines."""
        for text in texts:
            for line in text.splitlines() or [""]:
                # A backslash at the end would join the next line to the comment, and quotes would
                # end the Python string that holds the source.
                safe = printable(line).replace("\\", "/").replace('"""', "'''")
                self.add(f"// {safe}".rstrip())

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """A header and an indented block in braces below it."""
        self.add(f"{header} {{" if header else "{")
        with self.indented():
            yield
        self.add("}")
