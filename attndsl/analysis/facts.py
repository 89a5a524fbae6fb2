"""What the analysis finds out about a mask: segments along an axis and facts of a tile.

All nodes here are scalars of a tile. Their float parts must be computed in the accumulator's dtype,
with the operations that they name; int parts exactly (`intervals.fits_int32`: where 32 bits do).
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.nodes import Node

# Ends that stand for "no limit": positions lie within 2**29, so that these are beyond each of them
# and a block size can still be added in 32 bits.
EVERYTHING_LOW = -(2**30)
EVERYTHING_HIGH = 2**30


@dataclass(frozen=True)
class Segment:
    """Positions along one axis, given a tile of the other axis: int nodes over `bound("lo")` and
    `bound("hi")` (first and last position of the tile, both inclusive), b, h, sizes and scalars.

    Of all segments of a mask together: outside the union of the [lo, hi) no pair of the tile takes
    part; inside each [full_lo, full_hi) every pair does. Segments may overlap, come in any order,
    be empty (lo >= hi) or reach beyond the axis, and a full part may lie outside its own [lo, hi):
    users sort, clip and join. Lookups that vary with neither q nor k may occur too.
    """

    lo: Node
    hi: Node
    full_lo: Node
    full_hi: Node


MOST_SEGMENTS = 4


@dataclass(frozen=True)
class Loss:
    """A part of the mask that costs a better answer: a node of the mask, and why, for people."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Solution:
    """The segments of a mask along one axis, at most MOST_SEGMENTS; without `losses` they leave out
    every tile that they can."""

    segments: tuple[Segment, ...]
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class TileFacts:
    """Bool nodes over `bound("q_lo")`, `bound("q_hi")`, `bound("k_lo")`, `bound("k_hi")` (inclusive
    positions), b, h, sizes, scalars, `summary` leaves (`summaries.py`) and lookups of counts
    (`counted.py`): may some pair of the tile take part; do all."""

    possible: Node
    certain: Node
