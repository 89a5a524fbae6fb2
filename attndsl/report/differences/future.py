"""check_causal: is it proved that no query reads a later key; if not, a pair that does."""

from __future__ import annotations

import torch

from attndsl.analysis.implications import sees_no_future
from attndsl.analysis.warnings import conjuncts, declaration, place
from attndsl.diagnostics import ArgumentError, Diagnostic
from attndsl.ir.nodes import Node
from attndsl.ir.program import Program
from attndsl.report.differences.search import TRIES, Pair, first_pair, trials
from attndsl.source import Source, Span


def check_causal(program: Program, source: Source, tries: int = TRIES) -> Diagnostic | None:
    """None where it is proved that no call pairs a query with a key at a later position; E201 with
    such a pair where one is found in `tries` small calls; else W205.

    program  simplified; `source` is the file that it stands in
    """
    if sees_no_future(program.mask):
        return None
    if program.selects:  # no small calls: what is chosen depends on queries and keys
        return undecided(program, source, "the proof takes any block to be chosen")
    seen = 0
    for trial in trials([program], {}, tries):
        try:
            kept = trial.pairs(program)
        except ArgumentError:  # a call that the program refuses
            continue
        seen += 1
        q = torch.arange(kept.shape[2])[:, None] + trial.offsets["q_offset"]
        k = torch.arange(kept.shape[3]) + trial.offsets["k_offset"]
        pair = first_pair(trial, kept & (k > q))
        if pair is not None:
            return refuted(program, source, pair)
    return undecided(program, source, f"no such pair was found in {seen} small random calls")


def refuted(program: Program, source: Source, pair: Pair) -> Diagnostic:
    """E201 at the part of the mask that lets the pair through."""
    part = culprit(program.mask, program, pair)
    span = place(program, part) or header(program, source)
    where = f"{pair}, in a call with {pair.trial.text(program)}"
    message = f"`{program.name}` lets a query read a later key"
    hint = "join it with causal: `mask k <= q`"
    return Diagnostic("E201", message, span, hint, "", (where,))


def undecided(program: Program, source: Source, note: str) -> Diagnostic:
    span = header(program, source)
    message = f"not proved that no query of `{program.name}` reads a later key"
    hint = "join it with causal to be sure: `mask k <= q`"
    return Diagnostic("W205", message, span, hint, "", (note,))


def culprit(node: Node, program: Program, pair: Pair) -> Node:
    """The part that lets a pair through: of an `or` what keeps it, of an `and` the one part that
    would be causal without what keeps the pair."""
    while node.op in ("and", "or"):
        if node.op == "or":
            node = next(part for part in node.args if pair.is_kept(program, part))
            continue
        mixed = [p for p in conjuncts(node) if p.op == "or" and has_causal_part(p)]
        if len(mixed) != 1:
            break
        node = mixed[0]
    return node


def has_causal_part(node: Node) -> bool:
    return any(has_causal_part(p) if p.op == "or" else sees_no_future(p) for p in node.args)


def header(program: Program, source: Source) -> Span:
    """Where the mask begins, or the attention where it has none."""
    for part in conjuncts(program.mask):  # of several statements
        span = place(program, part)
        if span is not None:
            return span
    return declaration(program, program.name) or Span(source, 0, 0)
