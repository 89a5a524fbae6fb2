"""Names that are always there, where each may be used, and what to say about unknown ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

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
# A const is given beside them.
COMPILE_ARGUMENTS = ("path", "name", "text", "backend", "tune", "deterministic")
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

    `allowed` holds indices, "score", "out", "dot" (the function), "lookup" (of a tensor), "chosen"
    (what a select chose) and "pooled" (vectors of queries and keys).

    blocks   in a select, the names that the user gave to its two indices
    singles  the vectors that stand there alone, because a block of theirs is a single row
    """

    name: str  # "a mask"
    allowed: frozenset[str]
    code: str = "E106"
    blocks: tuple[str, str] | None = None
    singles: frozenset[str] = frozenset()

    @property
    def has_vectors(self) -> bool:
        return "pooled" in self.allowed


def place(name: str, allowed: str, code: str = "E106") -> Place:
    return Place(name, frozenset(allowed.split()), code)


MASK = place("a mask", "b h q k lookup chosen")
SCORE_PLACE = place("a score", "b h q k score dot lookup")
WEIGHTS = place("weights", "b h q k score dot lookup")
SINK = place("a sink", "b h q dot lookup")
OUTPUT = place("an output", "b h q d out dot lookup")
EXTENT = place("the extent of a grid", "")
START = place("the start of a grid", "b h lookup")
DIMENSION = place("a dimension", "", code="E110")
ANYWHERE = place("a let", "b h q k d score out dot lookup chosen")
# A def may be meant for any place: it is checked again where it is used.
DEFINITION = replace(
    place("a def", "b h q k d score out dot lookup pooled"), singles=frozenset(("query", "key"))
)
LENGTH_OF_BLOCK = "`m` is an int made of numbers, sizes and parameters"
ROW_BLOCK = place("the first index of a select", "q", code="E114")
COLUMN_BLOCK = place("the second index of a select", "k", code="E114")
RANK = place("a rank", "b h lookup pooled")
CANDIDATES = place("the `where` of a select", "b h lookup")
LIMIT = place("`keep`", "b h lookup")


def words(token: str) -> str:
    """A restricted name for messages."""
    return {"lookup": "a lookup", "chosen": "what a `select` chose"}.get(token, f"`{token}`")


def why_not_here(token: str, here: Place) -> str:
    """The hint for a restricted name that its place does not allow."""
    if here is DIMENSION:
        return "a dimension is an expression over sizes and integer parameters"
    if here in (EXTENT, START):
        return "a grid is made of sizes and parameters"
    if here is ROW_BLOCK or here is COLUMN_BLOCK:
        position = "q" if here is ROW_BLOCK else "k"
        return f"write `{position}` or `{position} // m`; {LENGTH_OF_BLOCK}"
    if token == "chosen":
        return "a `select` says which pairs take part: name it in a `mask`"
    if here.blocks is not None:
        if token in ("q", "k"):
            what = "queries" if token == "q" else "keys"
            return (
                f"a select speaks of blocks: write `{here.blocks[token == 'k']}` for that of {what}"
            )
        if token == "dot":
            return "queries and keys are compared in `rank`"
        if token == "score":
            return "blocks are chosen before scores are known: compare vectors in `rank`"
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
    "sum": "`sum(x)` stands in the `rank` of a `select`; sums over keys are made by `weights`",
    "avg": "write `mean(query)`, in the `rank` of a `select`",
    "mean": "pooling stands in the `rank` of a `select`",
    "softmax": "write the statement `weights softmax`",
    "ln": "write `log(x)`",
    "sign": "write `1 if x > 0 else (-1 if x < 0 else 0)`",
    "gelu": "write `x / 2 * (1 + erf(x / sqrt(2)))`",
    "silu": "write `x * sigmoid(x)`",
}

FOREIGN_IN_SELECTS: dict[str, str] = {
    "softmax": "`keep mass p` keeps blocks by their softmax; ranks that are one come in a tensor",
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
