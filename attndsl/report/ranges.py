"""The segments of a mask and what is proved of it, in the user's names, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW, Loss, Segment
from attndsl.analysis.proofs import proofs_of
from attndsl.ir.nodes import Node, constant, is_const, make, rebuild, topological, with_args
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.reference import evaluate
from attndsl.report.formulas import formula
from attndsl.runtime.views import View
from attndsl.transform.simplify import simplified

LONGEST_FORMULA = 160  # characters
LONGEST_PART = 60
MOST_NODES = 400  # of a formula that is written out at all
LONGEST_CONDITIONS = 600  # characters of all that a box needs
UNWRITTEN = "by cases: `attndsl emit --stage plan` has them; an example is below"


def range_lines(plan: KernelPlan, seen: View) -> list[str]:
    """The segments as formulas in the user's names; those that fill a page are only named.

    Cases that the sizes and scalars of the call decide are left out.
    """
    rows = []
    for what, segments, tile in (("keys", plan.keys, "q"), ("queries", plan.queries, "k")):
        names = {"lo": f"{tile}_lo", "hi": f"{tile}_hi"}
        decided = [
            Segment(*(decide(end, seen) for end in (s.lo, s.hi, s.full_lo, s.full_hi)))
            for s in segments
        ]
        shown = [line for segment in decided for line in segment_lines(segment, names)]
        lines = list(dict.fromkeys(shown))
        if not segments:
            lines = ["none: the mask is never true"]
        rows += [f"{what if not at else '':<8} {line}" for at, line in enumerate(lines)]
    return rows


def box_lines(plan: KernelPlan, seen: View) -> list[str]:
    """What a box of queries needs of a box of keys, a condition a line."""
    rows = []
    for what, fact in (("needed", plan.tile.possible), ("full", plan.tile.certain)):
        parts = conditions(decide(fact, seen))
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
    if not is_never(*outer):
        yield ends_text(*outer, names)
    if not is_never(*full):
        text = ends_text(*full, names)
        yield f"  full   {text}" if full != outer else "  full   all of them"


def ends_text(start: Node, end: Node, names: Mapping[str, str]) -> str:
    """`first .. last`; only named where it is more than a person reads."""
    if len(topological(start, end)) <= MOST_NODES:
        low, high = unlimited(formula(start, names)), unlimited(formula(less_one(end), names))
        if max(len(low), len(high)) <= LONGEST_FORMULA:
            low, high = {"-inf": "first"}.get(low, low), {"inf": "last"}.get(high, high)
            ends = [f"({end})" if " if " in end else end for end in (low, high)]
            return "all" if ends == ["first", "last"] else " .. ".join(ends)
    return UNWRITTEN


def less_one(node: Node) -> Node:
    """An exclusive end as the last position in it: `q_hi` for `q_hi + 1`."""
    if is_const(node):
        return constant(int(node.value) - 1)
    if node.op in ("add", "sub") and is_const(node.args[1]):
        change = int(node.args[1].value) - (1 if node.op == "add" else -1)
        return make(node.op, node.args[0], constant(change)) if change else node.args[0]
    if node.op in ("min", "max"):
        return make(node.op, *(less_one(arg) for arg in node.args))
    if node.op == "where":
        condition, *branches = node.args
        return make("where", condition, *(less_one(branch) for branch in branches))
    return make("sub", node, constant(1))


def unlimited(text: str) -> str:
    """A formula with the analysis' own limits read as what they stand for."""
    for limit in (EVERYTHING_LOW - 1, EVERYTHING_LOW):
        text = text.replace(str(limit), "-inf")
    for limit in (EVERYTHING_HIGH, EVERYTHING_HIGH - 1):
        text = text.replace(str(limit), "inf")
    return text


def is_never(start: Node, end: Node) -> bool:
    """Whether a range is empty whatever the tile."""
    if start is end:
        return True
    return is_const(start) and is_const(end) and bool(start.value >= end.value)


def proof_lines(plan: KernelPlan) -> list[str]:
    """What holds for every call, with what it assumes."""
    rows = []
    for proof in proofs_of(plan.program, () if plan.grid else plan.keys):
        first, *rest = proof.assumes or ("",)
        assumed = ", ".join([first, *(text.removeprefix("while ") for text in rest)])
        rows.append(f"{proof.what} {assumed}".rstrip())
    return rows


def loss_lines(plan: KernelPlan) -> list[str]:
    """What of the mask costs the segments tightness, by line."""
    found: dict[tuple[str, str], list[str]] = {}
    for loss in outermost(plan.losses):
        text = formula(loss.node)
        text = text if len(text) <= LONGEST_PART else f"{text[: LONGEST_PART - 2]} …"
        found.setdefault((line_of(plan.program, loss.node), loss.reason), []).append(f"`{text}`")
    return [
        f"{line}{', '.join(dict.fromkeys(texts))}: {reason}"
        for (line, reason), texts in found.items()
    ]


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
