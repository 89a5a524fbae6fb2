"""What a comparison of two masks found, in words."""

from __future__ import annotations

from attndsl.analysis.warnings import conjuncts, place
from attndsl.report.differences.difference import Comparison, Inside
from attndsl.report.differences.search import Pair, reason
from attndsl.report.differences.sides import Side
from attndsl.report.tiles.formulas import formula
from attndsl.source import Span

REASONS = {
    "proof": "proved for every call",
    "settled": "proved for every call with these settings",
    "pairs": "every pair compared at these sizes",
    "search": "not proved, none found",
    "part of the pairs": "none found where pairs were compared",
}


def describe(found: Comparison) -> str:
    """The verdict, what it rests on, and a pair for each direction in which the masks differ."""
    a, b = found.a, found.b
    parts = [f"A  {a.label}", f"B  {b.label}", "", verdict(found)]
    for keeps, drops, inside, letters in (
        (a, b, found.a_in_b, "AB"),
        (b, a, found.b_in_a, "BA"),
    ):
        if inside.pair is not None:
            parts += ["", *pair_lines(keeps, drops, inside.pair, letters)]
    if found.looked_at:
        parts += ["", f"looked at {found.looked_at}"]
    return "\n".join(parts)


def verdict(found: Comparison) -> str:
    ab, ba = found.a_in_b, found.b_in_a
    if found.are_equal:
        return f"equal: {basis(found)}"
    if found.are_equal is None:
        return f"no difference found: {basis(found)}"
    if ab.pair is not None and ba.pair is not None:
        return "different: neither mask lies inside the other"
    inner, outer, inside = ("A", "B", ab) if ab.pair is None else ("B", "A", ba)
    why = because(found, inside)
    if inside.is_decided:
        return f"different: {inner} lies inside {outer} ({why}), and is smaller"
    return f"different: {outer} keeps more; whether {inner} lies inside {outer} is open ({why})"


def because(found: Comparison, inside: Inside) -> str:
    is_settled = inside.basis == "proof" and not found.is_general
    return REASONS["settled" if is_settled else inside.basis]


def basis(found: Comparison) -> str:
    ab, ba = because(found, found.a_in_b), because(found, found.b_in_a)
    return ab if ab == ba else f"A inside B: {ab}; B inside A: {ba}"


def pair_lines(keeps: Side, drops: Side, pair: Pair, letters: str) -> list[str]:
    programs = (keeps.program, drops.program)
    return [
        f"in {letters[0]} and not in {letters[1]}: {pair}",
        f"  for {pair.trial.text(*programs)}",
        f"  {letters[0]} keeps it:  {part_text(keeps, pair)}",
        f"  {letters[1]} drops it:  {part_text(drops, pair)}",
    ]


def part_text(side: Side, pair: Pair) -> str:
    """The part of a mask that decides a pair: its line and its words."""
    part = reason(side.program, pair)
    span = place(side.program, part)
    if span is not None:
        return f"line {line_of(span)}: `{span.text}`"
    spans = [place(side.program, each) for each in conjuncts(part)]
    lines = sorted({line_of(span) for span in spans if span is not None})
    if lines:  # several statements
        return f"lines {', '.join(map(str, lines))}"
    return f"`{formula(part)}`"


def line_of(span: Span) -> int:
    return span.source.position(span.start)[0]
