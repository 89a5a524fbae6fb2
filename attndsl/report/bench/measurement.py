"""A report of measurements, and the times that it is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from attndsl.report.table import table

REPEATS = 7


class Outcome(Protocol):
    """What a suite gives back."""

    @property
    def passed(self) -> bool: ...

    @property
    def text(self) -> str:
        """For a person."""
        ...

    @property
    def record(self) -> dict[str, object]:
        """For JSON."""
        ...


@dataclass(frozen=True)
class Report:
    """What a suite found: rows under titles, and what the reader should know."""

    suite: str
    about: str
    titles: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    notes: tuple[str, ...] = ()
    passed: bool = True

    @property
    def text(self) -> str:
        notes = "".join(f"\n{note}" for note in self.notes)
        return f"{self.suite}: {self.about}\n\n{table(self.titles, self.rows)}\n{notes}".rstrip()

    @property
    def record(self) -> dict[str, object]:
        rows = [dict(zip(self.titles, row, strict=True)) for row in self.rows]
        return {
            "suite": self.suite,
            "about": self.about,
            "passed": self.passed,
            "rows": rows,
            "notes": list(self.notes),
        }


def milliseconds(call: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Times of several calls after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def summary(times: Sequence[float]) -> tuple[float, float]:
    """The median and the spread (largest minus smallest)."""
    return statistics.median(times), max(times) - min(times)
