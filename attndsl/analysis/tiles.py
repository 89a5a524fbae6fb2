"""classify: may some pair of a tile take part, and do all."""

from __future__ import annotations

from attndsl.analysis.boxes import NOTHING, Box, Summary, no_summary
from attndsl.analysis.counted import NO_TABLES, Tables
from attndsl.analysis.facts import TileFacts
from attndsl.analysis.predicates import normal_form
from attndsl.ir.nodes import Node, bound


def classify(
    mask: Node,
    summary: Summary = no_summary,
    unknown: frozenset[Node] = NOTHING,
    tables: Tables = NO_TABLES,
) -> TileFacts:
    """Facts of the tile q_lo .. q_hi, k_lo .. k_hi for a mask, as bool nodes.

    summary  what is known of lookups that vary with q or k (`summaries.summarise`)
    unknown  nodes of the mask of which nothing is claimed
    tables   those whose entries are counted (`counted.counted_tables`)

    Declines: lookups without a summary, `pow`, float `//` and `%`: there a pair is always possible
    and never certain.

    >>> from attndsl.ir.nodes import index, make
    >>> classify(make("le", index("k"), index("q"))).certain
    le(bound('k_hi'), bound('q_lo'))
    """
    q_ends, k_ends = ((bound(f"{axis}_lo"), bound(f"{axis}_hi")) for axis in "qk")
    box = Box(q_ends, k_ends, summary, unknown, tables=tables)
    truth = box.truth(normal_form(mask))
    return TileFacts(truth.possible, truth.certain)
