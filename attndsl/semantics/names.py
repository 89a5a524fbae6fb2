"""Names that are always there, where each may be used, and what to say about unknown ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from attndsl.diagnostics import did_you_mean
from attndsl.ir.nodes import FALSE, TRUE, Node, constant, index, size
from attndsl.ir.program import INDICES, SIZES
from attndsl.semantics.functions import FUNCTION_NAMES

CONSTANTS: dict[str, Node] = {
    "inf": constant(math.inf),
    "pi": constant(math.pi),
    "true": TRUE,
    "false": FALSE,
}
INDEX_NODES: dict[str, Node] = {name: index(name) for name in (*INDICES, "d")}
SIZE_NODES: dict[str, Node] = {name: size(name) for name in SIZES}
VECTORS = ("query", "key", "value")
CALL_ARGUMENTS = ("scale", "q_offset", "k_offset", "k_len", "return_lse")
COMPILE_ARGUMENTS = ("path", "name", "text", "backend")  # a const is given beside them
VALUES = frozenset((*INDEX_NODES, *SIZE_NODES, *CONSTANTS, "score", "out"))
RESERVED = VALUES | frozenset(VECTORS) | frozenset(CALL_ARGUMENTS) | FUNCTION_NAMES


def why_reserved(name: str) -> str:
    """What a reserved name stands for, for messages."""
    if name in CALL_ARGUMENTS or name in VECTORS:
        return "an argument of the call"
    if name in FUNCTION_NAMES:
        return "a function of the language"
    return "a built-in name"


@dataclass(frozen=True)
class Place:
    """Where an expression stands and which of the restricted names it may use there.

    `allowed` holds indices, "score", "out", "dot" (the function) and "lookup" (of a tensor).
    """

    name: str  # "a mask"
    allowed: frozenset[str]
    code: str = "E106"


def place(name: str, allowed: str, code: str = "E106") -> Place:
    return Place(name, frozenset(allowed.split()), code)


MASK = place("a mask", "b h q k lookup")
SCORE_PLACE = place("a score", "b h q k score dot lookup")
WEIGHTS = place("weights", "b h q k score dot lookup")
SINK = place("a sink", "b h q dot lookup")
OUTPUT = place("an output", "b h q d out dot lookup")
EXTENT = place("the extent of a grid", "")
START = place("the start of a grid", "b h lookup")
DIMENSION = place("a dimension", "", code="E110")
ANYWHERE = place("a let", "b h q k d score out dot lookup")


def why_not_here(token: str, here: Place) -> str:
    """The hint for a restricted name that its place does not allow."""
    if here is DIMENSION:
        return "a dimension is an expression over sizes and integer parameters"
    if here in (EXTENT, START):
        return "a grid is made of sizes and parameters"
    if here is MASK and token in ("score", "dot"):
        return (
            "what is computed is known before scores are; to drop a pair by its score write "
            "`score -inf if ... else score`"
        )
    if token in ("out", "d"):
        return f"`{token}` belongs to `output`"
    if token == "k" and here is SINK:
        return "a sink is one logit per row: an expression in `b`, `h` and `q`"
    if token == "k" and here is OUTPUT:
        return "an output is elementwise in `out`: there are rows `q` and columns `d`, no key"
    if token == "score" and here is OUTPUT:
        return "the keys are summed up by then: change scores in `score` or `weights`"
    if token == "score" and here is SINK:
        return "a sink is one logit per row, next to the scores: an expression in `b`, `h`, `q`"
    return ""


# What people write from other languages, and its name here.
FOREIGN: dict[str, str] = {
    "True": "write `true`",
    "False": "write `false`",
    "N": "the lengths are `Nq` and `Nk`",
    "i": "the position of the query is `q`",
    "j": "the position of the key is `k`",
    "q_idx": "the position of the query is `q`",
    "kv_idx": "the position of the key is `k`",
    "batch": "the batch index is `b`",
    "head": "the head index is `h`",
    "pow": "write `x ** y`",
    "where": "write `a if condition else b`",
    "select": "write `a if condition else b`",
    "minimum": "write `min(a, b)`",
    "maximum": "write `max(a, b)`",
    "sum": "sums over keys are made by `weights`",
    "mean": "pooling stands in `select`",
    "softmax": "write the statement `weights softmax`",
    "ln": "write `log(x)`",
    "sign": "write `1 if x > 0 else (-1 if x < 0 else 0)`",
    "gelu": "write `x / 2 * (1 + erf(x / sqrt(2)))`",
    "silu": "write `x * sigmoid(x)`",
}


def hint_for_unknown(name: str, known: Iterable[str], in_std: Iterable[str]) -> str:
    """What the user may have meant by a name that is not there."""
    if name in in_std:
        return f"it is in the standard library: `from std import {name}`"
    if name in FOREIGN:
        return FOREIGN[name]
    near = did_you_mean(name, set(known) | VALUES | FUNCTION_NAMES)
    if not near and (found := did_you_mean(name, in_std)):
        return found + " It is in the standard library: import it from `std`"
    return near
