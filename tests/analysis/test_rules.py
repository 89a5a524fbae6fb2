"""Rules of inversion and of intervals, proved with z3 for all ints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

z3 = pytest.importorskip("z3")

from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW  # noqa: E402
from attndsl.analysis.ranges import solve_keys, solve_queries  # noqa: E402
from attndsl.analysis.tiles import classify  # noqa: E402
from attndsl.ir.nodes import Node, bound, topological  # noqa: E402
from tests.analysis.masks import TIGHT, K, Q  # noqa: E402

MEANINGS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "neg": lambda x: -x,
    "abs": lambda x: z3.If(x < 0, -x, x),
    "min": lambda x, y: z3.If(x < y, x, y),
    "max": lambda x, y: z3.If(x < y, y, x),
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "and": z3.And,
    "or": z3.Or,
    "not": z3.Not,
    "where": z3.If,
    # z3's div and mod floor for a positive divisor; masks here have constant ones.
    "floordiv": lambda x, y: x / y,
    "floormod": lambda x, y: x % y,
}
PROVABLE = [
    "causal",
    "anticausal",
    "window",
    "window of a constant",
    "two-sided",
    "two-sided by min and max",
    "prefix",
    "up to a prefix",
    "bottom right",
    "block diagonal of 4",
    "own block, by remainder",
    "strips",
    "neighborhood",
    "heads of two kinds",
    "width per head",
    "sinks and window",
    "global and window",
    "causal global rows",
    "hole",
    "ring",
    "prefix or window",
    "prefix, then causal",
    "duo heads",
    "others",
    "not the window",
    "one of two",
    "halves",
    "hybrid of rows",
    "hybrid of columns",
    "kind of head",
    "clamped",
    "diamond",
    "rows of a grid",
    "neighbors in rows",
    "rows of length",
    "corners",
    "odd halves",
]


def translated(root: Node, names: dict[Node, Any]) -> Any:
    found: dict[Node, Any] = {}
    for node in topological(root):
        if node in names:
            found[node] = names[node]
        elif node.op == "const":
            value = node.value
            found[node] = z3.BoolVal(value) if node.kind == "bool" else z3.IntVal(int(value))
        elif node.op in MEANINGS:
            found[node] = MEANINGS[node.op](*(found[arg] for arg in node.args))
        else:  # one unknown for each leaf and lookup
            name = f"{node.op}_{node.attr}"
            found[node] = z3.Bool(name) if node.kind == "bool" else z3.Int(name)
    return found[root]


def proves(*claims: Any) -> bool:
    """Whether the last claim follows from the others."""
    solver = z3.Solver()
    solver.set("timeout", 20_000)
    solver.add(*claims[:-1], z3.Not(claims[-1]))
    return bool(solver.check() == z3.unsat)


LO, HI, K_LO, K_HI, AT_Q, AT_K = z3.Ints("lo hi k_lo k_hi q k")


@pytest.mark.parametrize("name", PROVABLE)
def test_tiles(name: str) -> None:
    mask = TIGHT[name]
    ends = {bound("q_lo"): LO, bound("q_hi"): HI, bound("k_lo"): K_LO, bound("k_hi"): K_HI}
    facts = classify(mask)
    inside = z3.And(LO <= AT_Q, AT_Q <= HI, K_LO <= AT_K, AT_K <= K_HI)
    holds = translated(mask, {Q: AT_Q, K: AT_K})
    assert proves(inside, holds, translated(facts.possible, ends))
    assert proves(inside, translated(facts.certain, ends), holds)


@pytest.mark.parametrize("axis", "kq")
@pytest.mark.parametrize("name", PROVABLE)
def test_segments(name: str, axis: str) -> None:
    mask = TIGHT[name]
    segments = (solve_keys if axis == "k" else solve_queries)(mask).segments
    across, along = (AT_Q, AT_K) if axis == "k" else (AT_K, AT_Q)
    numbers = (LO, HI, along, *map(z3.Int, ("scalar_w", "scalar_r", "scalar_g")))
    reach = [z3.And(EVERYTHING_LOW // 2 <= n, n <= EVERYTHING_HIGH // 2) for n in numbers]
    inside = z3.And(LO <= across, across <= HI, *reach)
    holds = translated(mask, {Q: AT_Q, K: AT_K})
    # Entries of tables may be any number: what is clipped lies far beyond all positions.
    needed = []
    for segment in segments:
        lo, hi, full_lo, full_hi = (
            translated(end, {bound("lo"): LO, bound("hi"): HI})
            for end in (segment.lo, segment.hi, segment.full_lo, segment.full_hi)
        )
        needed.append(z3.And(lo <= along, along < hi))
        assert proves(inside, z3.And(full_lo <= along, along < full_hi), holds)
    assert proves(inside, holds, z3.Or(*needed))
