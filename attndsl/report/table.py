"""Rows of values -> columns of text, and large figures -> short ones."""

from __future__ import annotations

from collections.abc import Sequence


class About(int):
    """A figure that is an estimate: it is written with a ~."""


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Aligned columns: text to the left, everything else to the right.

    >>> print(table(["kernel", "n"], [["forward", 7], ["dq", 12]]))
    kernel    n
    forward   7
    dq       12
    """
    cells = [list(titles), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    numeric = [not any(isinstance(row[i], str) for row in rows) for i in range(len(titles))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append((indent + "  ".join(parts)).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, About):
        return f"~{int(value):,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def figure(value: float, unit: str) -> str:
    """A figure with its unit and a decimal prefix, for a person.

    >>> figure(1234, "FLOP"), figure(5.6e9, "pairs"), figure(12, "FLOP")
    ('1.23 kFLOP', '5.6 G pairs', '12 FLOP')
    """
    joint = "" if unit.isupper() else " "
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{joint}{unit}"
    return f"{value:.3g} {unit}"


def share(part: float, whole: float) -> str:
    """A part as a percentage; never rounded to all or nothing.

    >>> share(1, 8), share(0, 0), share(9999, 10000)
    ('12.5 %', '-', '99.99 %')
    """
    if not whole:
        return "-"
    percentage = 100 * part / whole
    return f"{percentage:.3g} %" if percentage <= 99 or part == whole else f"{percentage:.6g} %"
