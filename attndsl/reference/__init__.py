"""What a program means: the specification that kernels are held against."""

from attndsl.reference.attention import Evaluation, attend, keep_pairs
from attndsl.reference.call import Call, at_position, positions
from attndsl.reference.selects import Choice, choices, chosen_pairs
from attndsl.reference.values import (
    MEANINGS,
    Number,
    Values,
    broadcast_shape,
    dot,
    evaluate,
    floordiv,
    floormod,
    read,
    to_int,
)

__all__ = [
    "MEANINGS",
    "Call",
    "Choice",
    "Evaluation",
    "Number",
    "Values",
    "at_position",
    "attend",
    "broadcast_shape",
    "choices",
    "chosen_pairs",
    "dot",
    "evaluate",
    "floordiv",
    "floormod",
    "keep_pairs",
    "positions",
    "read",
    "to_int",
]
