"""The segments of a mask and what is proved of it, in the user's names, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attndsl.analysis.facts import Loss, Segment
from attndsl.analysis.proofs import proofs_of
from attndsl.ir.nodes import Node, constant, is_const, rebuild, topological, with_args
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.reference import evaluate
from attndsl.report.tiles.ends import (
    MOST_NODES,
    NOTHING,
    UNWRITTEN,
    ends_text,
    has_guards,
    positions_first,
    with_extremes,
    without_guards,
)
from attndsl.report.tiles.formulas import COMPARISONS, formula
from attndsl.runtime.views import View
from attndsl.transform.simplify import simplified

LONGEST_PART = 60  # characters
LONGEST_CONDITIONS = 600  # of all that a box needs


def range_lines(plan: KernelPlan, seen: View) -> list[str]:
    """The segments as formulas in the user's names; those that fill a page are only named.

    Cases that the sizes and scalars of the call decide are left out.
    """
    rows: list[str] = []
    ends: list[Node] = []
    for what, segments, tile in (("keys", plan.keys, "q"), ("queries", plan.queries, "k")):
        names = {"lo": f"{tile}_lo", "hi": f"{tile}_hi"}
        lines: dict[str, None] = {}
        for s in segments:
            decided = [decide(end, seen) for end in (s.lo, s.hi, s.full_lo, s.full_hi)]
            shown = [readable(end, seen, tile) for end in decided]
            found = list(segment_lines(Segment(*shown), names))
            lines |= dict.fromkeys(found)
            if UNWRITTEN not in "".join(found):
                ends += decided
        if not segments:
            lines = {"none: the mask is never true": None}
        rows += [f"{what if not at else '':<8} {line}" for at, line in enumerate(lines)]
    return [*rows, *remarks(ends, rows)]


def readable(end: Node, seen: View, tile: str) -> Node:
    """An end without what a person need not read."""
    return positions_first(with_extremes(decide(without_guards(end), seen), tile))


def remarks(ends: Sequence[Node], rows: Sequence[str]) -> list[str]:
    """What the formulas leave out, and words in them that the language has not."""
    found = []
    if any("least(" in row or "greatest(" in row for row in rows):
        found.append("least(...), greatest(...): over the positions of the tile")
    if any(has_guards(end) for end in ends):
        found.append("as long as entries of tables fit 32 bits")
    return found


def box_lines(plan: KernelPlan, seen: View) -> list[str]:
    """What a box of queries needs of a box of keys, a condition a line."""
    rows = []
    for what, fact in (("needed", plan.tile.possible), ("full", plan.tile.certain)):
        parts = conditions(decide(without_guards(fact), seen))
        lines = ["a page of conditions: an example is below"]
        if len(topological(*parts)) <= MOST_NODES:
            texts = [formula(part) for part in dict.fromkeys(parts) if not is_const(part, True)]
            if sum(map(len, texts)) <= LONGEST_CONDITIONS:
                texts = ["never" if text == "false" else text for text in texts]
                lines = [f"and {t}" if at else t for at, t in enumerate(texts)] or ["always"]
        rows += [f"{what if not at else '':<8} {line}" for at, line in enumerate(lines)]
    return rows


def conditions(fact: Node) -> list[Node]:
    """The operands of nested conjunctions, in order."""
    return [p for arg in fact.args for p in conditions(arg)] if fact.op == "and" else [fact]


def decide(root: Node, seen: View) -> Node:
    """The root where conditions are decided that depend on sizes and scalars alone."""
    values = seen.values

    def chosen(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op in COMPARISONS and is_known(with_args(node, args)):
            return constant(bool(evaluate(with_args(node, args), values)))
        if node.op == "where" and is_known(args[0]):
            return args[1] if bool(evaluate(args[0], values)) else args[2]
        return with_args(node, args)

    return simplified(rebuild(root, chosen))


def is_known(condition: Node) -> bool:
    """Whether every leaf of a condition is a size, a scalar or a constant."""
    return all(
        node.args or node.op in ("const", "size", "scalar") for node in topological(condition)
    )


def segment_lines(segment: Segment, names: Mapping[str, str]) -> Iterator[str]:
    """`q_lo - window + 1 .. q_hi`, and the part of it that is full."""
    outer, full = (segment.lo, segment.hi), (segment.full_lo, segment.full_hi)
    text = ends_text(*outer, names)
    if text != NOTHING:
        yield text
    whole = ends_text(*full, names)
    if whole != NOTHING:
        yield f"  full   {whole}" if full != outer else "  full   all of them"


def proof_lines(program: Program, keys: Sequence[Segment]) -> list[str]:
    """What holds for every call, with what it assumes; keys as in `proofs_of`."""
    rows = []
    for proof in proofs_of(program, keys):
        first, *rest = proof.assumes or ("",)
        assumed = ", ".join([first, *(text.removeprefix("while ") for text in rest)])
        rows.append(f"{proof.what} {assumed}".rstrip())
    return rows


def loss_lines(plan: KernelPlan) -> list[str]:
    """What of the mask costs the segments tightness, by line."""
    found: dict[tuple[str, str], list[str]] = {}
    told = [Loss(place_of(plan.program, loss.node), loss.reason) for loss in plan.losses]
    for loss in outermost(tuple(dict.fromkeys(told))):
        text = formula(loss.node)
        text = text if len(text) <= LONGEST_PART else f"{text[: LONGEST_PART - 2]} …"
        found.setdefault((line_of(plan.program, loss.node), loss.reason), []).append(f"`{text}`")
    return [
        f"{line}{', '.join(dict.fromkeys(texts))}: {reason}"
        for (line, reason), texts in found.items()
    ]


def place_of(program: Program, node: Node) -> Node:
    """The node, or the least part of the mask around it that has a line, where it has none; a
    position says nothing by itself."""
    if node.op not in ("index", "to_float") and program.origins.get(node):
        return node
    for around in topological(program.mask):
        is_part = around.op not in ("index", "to_float") and node in topological(around)
        if is_part and program.origins.get(around):
            return around
    return node


def outermost(losses: Sequence[Loss]) -> list[Loss]:
    """The losses, without those of a part of what is lost for the same reason anyway."""
    kept = []
    for loss in losses:
        around = [
            other
            for other in losses
            if other.node is not loss.node
            and other.reason == loss.reason
            and loss.node in topological(other.node)
        ]
        if not around:
            kept.append(loss)
    return kept


def line_of(program: Program, node: Node) -> str:
    """ "line 7: ", or nothing for what no line says."""
    spans = program.origins.get(node, ())
    if not spans:
        return ""
    return f"line {spans[0].source.position(spans[0].start)[0]}: "
