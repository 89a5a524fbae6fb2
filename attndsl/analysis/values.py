"""What is known of a value over a rectangle of pairs, and of a predicate."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.nodes import FALSE, TRUE, Node


@dataclass(frozen=True)
class Value:
    """Every pair's value lies in [lo, hi] (None: no limit known) wherever `sound` holds.

    Where `sound` does not hold nothing is known; a float is never NaN where it does.
    """

    lo: Node | None
    hi: Node | None
    sound: Node = TRUE


@dataclass(frozen=True)
class Truth:
    """`possible`: false only if no pair has it; `certain`: true only if every pair has it."""

    possible: Node
    certain: Node


UNKNOWN = Value(None, None)  # of an int
UNKNOWN_FLOAT = Value(None, None, FALSE)  # it may be NaN
MAYBE = Truth(TRUE, FALSE)
