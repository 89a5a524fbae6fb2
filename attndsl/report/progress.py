"""One line on a terminal that says how far long work has come, and when it will be done."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BAR = 20  # letters
SOON = 3.0  # seconds of work before which nothing is said about its end


class Progress:
    """Writes `[##------] 3/8, 2 min left: label` over itself on stderr; nothing where that is no
    terminal."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0  # steps that have begun
        self.visible = sys.stderr.isatty()
        self.begun = time.monotonic()

    def step(self, label: str) -> None:
        """Says what is being done now; the steps before it are finished."""
        finished, self.done = self.done, self.done + 1
        self._write(line(finished, self.total, time.monotonic() - self.begun, label))

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self.visible:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:width]}")
            sys.stderr.flush()


def line(finished: int, total: int, seconds: float, label: str) -> str:
    """The bar for so many finished steps, which took so long; the others are taken to be as long.

    >>> line(2, 8, 60.0, "causal")
    '[#####---------------] 3/8, 3 min left: causal'
    """
    filled = BAR * min(finished, total) // max(total, 1)
    left = ""
    if finished and seconds > SOON:
        left = f", {remaining(seconds / finished * (total - finished))} left"
    number = min(finished + 1, total)
    return f"[{'#' * filled}{'-' * (BAR - filled)}] {number}/{total}{left}: {label}"


def remaining(seconds: float) -> str:
    """A time in few letters.

    >>> remaining(7.2), remaining(200), remaining(9000)
    ('8 s', '4 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{int(seconds) + 1} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    """A progress line that is gone when the work is."""
    shown = Progress(total)
    try:
        yield shown
    finally:
        shown.clear()
