"""classify: may some pair of a tile take part, and do all."""

from __future__ import annotations

from attndsl.analysis.boxes import Box, Summary, no_summary
from attndsl.analysis.facts import TileFacts
from attndsl.analysis.predicates import normal_form
from attndsl.ir.nodes import Node, bound


def classify(mask: Node, summary: Summary = no_summary) -> TileFacts:
    """Facts of the tile q_lo .. q_hi, k_lo .. k_hi for a mask, as bool nodes.

    Declines: lookups that vary with q or k (unless `summary` gives their interval), `dot`, `pow`,
    float `//` and `%`: there a pair is always possible and never certain.

    >>> from attndsl.ir.nodes import index, make
    >>> classify(make("le", index("k"), index("q"))).certain
    le(bound('k_hi'), bound('q_lo'))
    """
    box = Box((bound("q_lo"), bound("q_hi")), (bound("k_lo"), bound("k_hi")), summary)
    truth = box.truth(normal_form(mask))
    return TileFacts(truth.possible, truth.certain)
