"""The tiles that segments reach and fill, and the loops that number them in sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW
from attndsl.ir.nodes import Node, constant, is_const
from attndsl.plan.kernel_plan import Segment
from attndsl.plan.spans import Span as Run

from ..lines import Lines
from .values import Values

Part = tuple[Node, Node]  # a first position and the one after the last
Span = tuple[str, str]  # names of a first number and of the one after the last


@dataclass(frozen=True)
class Axis:
    """Names of the axis over which a kernel loops: its tiles, position of its first element, number
    of elements, block size and first element of the tile."""

    name: str
    offset: str
    length: str
    block: str
    start: str


KEYS = Axis("keys", "k_start", "n_keys", "BLOCK_N", "start_n")
QUERIES = Axis("queries", "q_start", "Nq", "BLOCK_M", "start_m")
NO_LIMITS = (constant(EVERYTHING_LOW), constant(EVERYTHING_HIGH))


@dataclass(frozen=True)
class Loop:
    """A loop over tiles: its header, the statements that set `tile` in it; those before the loop,
    and in it once `tile` has been used."""

    partial: bool
    header: str
    statements: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def reached_parts(segments: Sequence[Segment]) -> list[Part]:
    """The outer parts of segments but for those that are empty by their constants."""
    return _parts([(segment.lo, segment.hi) for segment in segments])


def full_parts(segments: Sequence[Segment]) -> list[Part]:
    """The full parts of segments, each once, but for those that are empty by their constants."""
    return _parts([(segment.full_lo, segment.full_hi) for segment in segments])


def _parts(parts: list[Part]) -> list[Part]:
    return [(lo, hi) for lo, hi in dict.fromkeys(parts) if not _is_empty(lo, hi)]


def _is_empty(lo: Node, hi: Node) -> bool:
    return is_const(lo) and is_const(hi) and bool(lo.value >= hi.value)


def write_ends(
    lines: Lines,
    values: Values,
    outer: Sequence[Part],
    full: Sequence[Part],
    axis: Axis,
    guard: str = "",
    whole_guard: str = "",
) -> tuple[list[Span], list[Span]]:
    """Outer parts of segments and full parts, as elements of the axis.

    The full parts come in order, apart from each other: those that overlap or touch are joined.
    Where the test `guard` fails nothing is reached, where `whole_guard` does nothing is full.
    """
    texts = iter(values.write(lines, *(node for pair in (*outer, *full) for node in pair)))
    spans: tuple[list[Span], list[Span]] = ([], [])
    for found, low, high, count in (
        (spans[0], "lo", "hi", len(outer)),
        (spans[1], "full_lo", "full_hi", len(full)),
    ):
        for at in range(count):
            found.append((f"{low}_{at}", f"{high}_{at}"))
            for name in found[-1]:
                lines.add(f"{name} = attn_clip({next(texts)}, {axis.offset}, {axis.length})")
    if guard:
        for _, hi in spans[0]:
            lines.add(f"{hi} = tl.where({guard}, {hi}, 0)")
    if whole_guard:
        for _, hi in spans[1]:
            lines.add(f"{hi} = tl.where({whole_guard}, {hi}, 0)")
    _write_joined(lines, spans[1])
    return spans


def _write_sorted(lines: Lines, spans: list[Span]) -> None:
    """Sorts spans by their first element."""
    for end in range(len(spans) - 1, 0, -1):
        for (lo, hi), (next_lo, next_hi) in zip(spans[:end], spans[1 : end + 1], strict=True):
            lines.add(f"swap = {next_lo} < {lo}")
            for x, y in ((lo, next_lo), (hi, next_hi)):
                lines.add(f"{x}, {y} = tl.where(swap, {y}, {x}), tl.where(swap, {x}, {y})")


def _write_joined(lines: Lines, spans: list[Span]) -> None:
    """Sorts spans and gives what overlaps or touches the one before to the later of the two."""
    if len(spans) < 2:
        return
    for lo, hi in spans:
        lines.add(f"{hi} = tl.maximum({hi}, {lo})")
    _write_sorted(lines, spans)
    for (lo, hi), (next_lo, next_hi) in zip(spans, spans[1:], strict=False):
        lines.add(
            f"joins = {next_lo} <= {hi}",
            f"{next_lo} = tl.where(joins, {lo}, {next_lo})",
            f"{next_hi} = tl.where(joins, tl.maximum({hi}, {next_hi}), {next_hi})",
            f"{hi} = tl.where(joins, {lo}, {hi})",
        )


def write_range_loops(
    lines: Lines,
    values: Values,
    segments: Sequence[Segment],
    axis: Axis,
    guard: str = "",
    whole_guard: str = "",
) -> list[Loop]:
    """The loops over the tiles of segments: full ones, then the others; none twice.

    Tiles that are reached are counted through all ranges: with one range the count is the tile
    itself, else a select finds the tile.
    """
    if not reached_parts(segments):
        return []
    lines.comment(
        f"Tiles of {axis.name}: pairs take part in those of [first, last) alone, in those of",
        "[full_first, full_last) all.",
    )
    parts = reached_parts(segments), full_parts(segments)
    outer, full = write_ends(lines, values, *parts, axis, guard, whole_guard)
    reached = write_reached(lines, outer, axis.block)
    whole = _write_whole(lines, full, reached, axis.block)
    find: tuple[str, ...] = ()
    counter, begin, end = "tile", *reached[0]
    if len(reached) > 1:
        counter, begin, end = "at", "0", f"end_{len(reached) - 1}"
        find = (f"tile = {numbered('end', reached, 'at')}",)
    edges = [begin, *(name for span in whole for name in span), end]
    loops = []
    if whole:
        loops.append(_numbered_loop(lines, "full", whole, counter, find))
    rest = list(zip(edges[::2], edges[1::2], strict=True))
    return [*loops, _numbered_loop(lines, "partial", rest, counter, find)]


def span_tests(
    lines: Lines, values: Values, span: Run, axis: Axis, elements: str, own_guard: str = ""
) -> list[str]:
    """The tests that `elements` of the axis lie in the run of each of a kernel's own rows or
    columns, and on the axis. Where the test `own_guard` of a row or column fails its run is empty.
    """
    limits = {"lo": span.lo, "hi": span.hi}
    for name, node in limits.items():
        if node not in NO_LIMITS:
            (text,) = values.write(lines, node)
            lines.add(f"span_{name} = attn_clip({text}, {axis.offset}, {axis.length})")
            if own_guard:
                none = axis.length if name == "lo" else "0"
                lines.add(f"span_{name} = tl.where({own_guard}, span_{name}, {none})")
    if span.lo in NO_LIMITS:
        return [f"({elements} < {axis.length if span.hi in NO_LIMITS else 'span_hi'})"]
    if span.hi in NO_LIMITS:
        return [f"(tl.where({elements} < {axis.length}, {elements}, -1) >= span_lo)"]
    return [f"({elements} >= span_lo) & ({elements} < span_hi)"]


def write_reached(lines: Lines, outer: list[Span], block: str) -> list[Span]:
    """Ranges of tiles that outer parts reach, apart and in order; their running count end_0 ..."""
    _write_sorted(lines, outer)
    found: list[Span] = []
    for at, (lo, hi) in enumerate(outer):
        first, last = f"first_{at}", f"last_{at}"
        start = f"{lo} // {block}"
        lines.add(
            f"{first} = tl.maximum({start}, {found[-1][1]})" if found else f"{first} = {start}",
            f"{last} = tl.where({lo} < {hi}, tl.cdiv({hi}, {block}), 0)",
            f"{last} = tl.maximum({last}, {first})",
        )
        found.append((first, last))
    if len(found) > 1:
        _write_counts(lines, "end", found)
    return found


def _write_whole(lines: Lines, full: list[Span], reached: list[Span], block: str) -> list[Span]:
    """The tiles inside full parts, by their count among those that are reached."""
    found = []
    for at, (lo, hi) in enumerate(full):
        first, last = f"full_first_{at}", f"full_last_{at}"
        if len(reached) == 1:
            low, high = reached[0]
            lines.add(
                f"{first} = tl.maximum(tl.cdiv({lo}, {block}), {low})",
                f"{first} = tl.minimum({first}, {high})",
                f"{last} = tl.maximum({hi} // {block}, {first})",
                f"{last} = tl.minimum({last}, {high})",
            )
        else:
            lines.add(
                f"{first} = tl.cdiv({lo}, {block})",
                f"{last} = tl.maximum({hi} // {block}, {first})",
            )
            for name in (first, last):
                counts = (f"attn_within({name}, {low}, {high})" for low, high in reached)
                lines.add(f"{name} = {' + '.join(counts)}")
        found.append((first, last))
    return found


def _write_counts(lines: Lines, name: str, spans: list[Span]) -> None:
    """name_0, name_1, ...: how many numbers lie in the spans up to each."""
    for at, (first, last) in enumerate(spans):
        before = f"{name}_{at - 1} + " if at else ""
        lines.add(f"{name}_{at} = {before}{last} - {first}")


def _numbered_loop(
    lines: Lines, name: str, spans: list[Span], counter: str, find: tuple[str, ...]
) -> Loop:
    """One loop in which `counter` runs through several spans."""
    partial = name == "partial"
    if len(spans) == 1:
        first, last = spans[0]
        return Loop(partial, f"for {counter} in range({first}, {last}):", find)
    _write_counts(lines, name, spans)
    header = f"for step in range(0, {name}_{len(spans) - 1}):"
    return Loop(partial, header, (f"{counter} = {numbered(name, spans, 'step')}", *find))


def numbered(name: str, spans: list[Span], step: str) -> str:
    """The number that a step stands for, where the spans come one after the other.

    >>> numbered("part", [("a", "b"), ("c", "d")], "step")
    'tl.where(step < part_0, a + step, c + step - part_0)'
    """
    text = f"{spans[-1][0]} + {step} - {name}_{len(spans) - 2}"
    for at in range(len(spans) - 2, -1, -1):
        shift = f" - {name}_{at - 1}" if at else ""
        text = f"tl.where({step} < {name}_{at}, {spans[at][0]} + {step}{shift}, {text})"
    return text
