"""Spans: where the keys of one row, or the queries of one column, are a run of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attndsl.analysis.facts import Segment
from attndsl.ir.nodes import Node, bound, index, is_const, substitute, topological
from attndsl.transform.simplify import simplified


@dataclass(frozen=True)
class Span:
    """The positions lo <= x < hi of the other axis with which a row (or column) takes part: all of
    them, and no other. Int nodes over the position of the row, b, h, sizes and scalars."""

    lo: Node
    hi: Node


def span_of(segments: Sequence[Segment], position: str) -> Span | None:
    """What segments say of a tile of one row (`position` is "q") or column ("k"), where they are
    one, and what it reaches is what it fills: the mask is then a comparison with two numbers of the
    row, and a pair costs as much as under the simplest of masks.

    >>> from attndsl.ir.nodes import constant, make
    >>> lo, hi, one = bound("lo"), bound("hi"), constant(1)
    >>> low = constant(-(2**30))
    >>> causal = Segment(low, make("add", hi, one), low, make("add", lo, one))
    >>> span_of([causal], "q").hi
    add(index('q'), const(1))
    """
    there = [s for s in segments if not _is_empty(s)]
    if len(there) != 1:
        return None
    row = index(position)
    one = {bound("lo"): row, bound("hi"): row}
    (segment,) = there
    ends = (segment.lo, segment.hi, segment.full_lo, segment.full_hi)
    lo, hi, full_lo, full_hi = (simplified(substitute(end, one)) for end in ends)
    if lo is not full_lo or hi is not full_hi:
        return None
    # What is decided by floats may differ between kernels that compute it otherwise.
    if any(node.kind == "float" for node in topological(lo, hi)):
        return None
    return Span(lo, hi)


def _is_empty(segment: Segment) -> bool:
    lo, hi = segment.lo, segment.hi
    return is_const(lo) and is_const(hi) and bool(lo.value >= hi.value)
