"""One line on a terminal that says how far long work has come."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Writes `[3/8] label` over itself on stderr; writes nothing where that is no terminal."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.visible = sys.stderr.isatty()

    def step(self, label: str) -> None:
        """Says what is being done now; the steps before it are finished."""
        self.done += 1
        self._write(f"[{min(self.done, self.total)}/{self.total}] {label}")

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self.visible:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:width]}")
            sys.stderr.flush()


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    """A progress line that is gone when the work is."""
    line = Progress(total)
    try:
        yield line
    finally:
        line.clear()
