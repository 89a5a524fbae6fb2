"""Masks for the tests of the analysis: named ones, and a strategy for random ones."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import strategies as st

import attndsl
from attndsl.ir.nodes import Node, constant, index, lookup, make, scalar, size
from attndsl.ir.ops import OPS
from tests.analysis.evaluate import World

Q, K, B, H = index("q"), index("k"), index("b"), index("h")
W, R, G = scalar("w", "int"), scalar("r", "int"), scalar("g", "int")
X, RADIUS = scalar("x", "float"), scalar("radius", "float")
NK, NQ = size("Nk"), size("Nq")
PREFIX, FULL, SLOPE = (
    lookup("prefix", "int", B),
    lookup("full", "bool", H),
    lookup("slope", "float", H),
)


def node(op: str, *args: Node | int | float) -> Node:
    return make(op, *(a if isinstance(a, Node) else constant(a) for a in args))


def every(*parts: Node) -> Node:
    return reduce(lambda a, b: node("and", a, b), parts)


def distance() -> Node:
    return node("sub", Q, K)


CAUSAL = node("le", K, Q)
WINDOW = every(node("le", 0, distance()), node("lt", distance(), W))
START = node(
    "max", node("min", node("sub", Q, R), node("sub", node("sub", NK, node("mul", 2, R)), 1)), 0
)

# Masks whose tiles and segments must come out exactly.
TIGHT: dict[str, Node] = {
    "everything": constant(True),
    "nothing": constant(False),
    "causal": CAUSAL,
    "anticausal": node("not", CAUSAL),
    "window": WINDOW,
    "window of a constant": every(CAUSAL, node("lt", distance(), 5)),
    "two-sided": node("le", node("abs", distance()), W),
    "two-sided by min and max": node("le", node("sub", node("max", Q, K), node("min", Q, K)), W),
    "prefix": node("or", CAUSAL, node("lt", K, PREFIX)),
    "up to a prefix": node("le", K, PREFIX),
    "bottom right": node("le", K, node("add", Q, node("sub", NK, NQ))),
    "block diagonal": node("eq", node("floordiv", Q, W), node("floordiv", K, W)),
    "block diagonal of 4": node("eq", node("floordiv", Q, 4), node("floordiv", K, 4)),
    "block causal": node("le", node("floordiv", K, W), node("floordiv", Q, W)),
    "own block, by remainder": node("le", node("sub", Q, node("floormod", Q, 4)), K),
    "strips": node(
        "le", node("abs", node("sub", node("floordiv", Q, 3), node("floordiv", K, 3))), 1
    ),
    "causal block diagonal": every(
        CAUSAL, node("eq", node("floordiv", Q, W), node("floordiv", K, W))
    ),
    "neighborhood": every(
        node("le", START, K), node("le", K, node("add", START, node("mul", 2, R)))
    ),
    "heads of two kinds": every(CAUSAL, node("or", FULL, node("lt", distance(), W))),
    "width per head": every(
        CAUSAL, node("lt", distance(), node("where", FULL, node("mul", 2, W), W))
    ),
    "scaled": node("le", node("mul", 3, K), node("add", node("mul", 2, Q), R)),
    "scaled by a scalar": node("le", node("mul", W, K), node("mul", W, node("sub", Q, R))),
}

WRITTEN = """
attention f(w: int, r: int, g: int, prefix: int[B], full: bool[H]):
    mask {}
"""


def written(mask: str) -> Node:
    """The mask of a program, after simplification."""
    return attndsl.compile(text=WRITTEN.format(mask)).program.mask


# More masks whose segments must come out exactly, as users write them.
SEVERAL: dict[str, str] = {
    "sinks and window": "k <= q and (k < g or q - k < w)",
    "global and window": "q < g or k < g or abs(q - k) <= w",
    "causal global rows": "k <= q and (q < g or k < g or q - k < w)",
    "hole": "abs(q - k) >= r",
    "ring": "r <= abs(q - k) <= w",
    "prefix or window": "k < prefix[b] or 0 <= q - k < w",
    "prefix, then causal": "k <= q if q >= prefix[b] else k < prefix[b]",
    "duo heads": "k <= q and (full[h] or k < g or q - k < w)",
    "others": "q != k",
    "not the window": "not (0 <= q - k < w)",
    "other blocks": "q // w != k // w",
    "one of two": "(k <= q) != (k < g)",
    "both or none": "(k <= q) == (q < k + w)",
    "halves": "(q >= Nk // 2) == (k >= Nk // 2)",
    "hybrid of rows": "q - k < w and k <= q if q < g else k < r",
    "hybrid of columns": "q - k < w and k <= q if k < g else k - q == r",
    "kind of head": "(k <= q) if full[h] else (q <= k < q + w)",
    "shifted windows": "(q + r) // w == (k + r) // w",
    "next block": "(k + r) // w == q // w + 1",
    "blocks before": "k // w < q // w",
    "own block and before": "q // w == k // w or k // w < q // w",
    "own block or window": "q // w == k // w or 0 <= q - k < r",
    "own block and sinks": "k <= q and (q // w == k // w or k < g)",
    "squares": "(q - k) ** 2 <= r",
    "square of a radius": "(q - k) ** 2 <= r ** 2",
    "square of a constant": "(q - k) ** 2 < 5",
    "beyond a square": "(q - k) ** 2 > r",
    "clamped": "clamp(q - r, 0, g) <= k <= min(q, g + 3)",
    "larger of two": "max(q, g) - min(k, r) <= w",
    "distance from a column": "abs(k - g) <= w",
    "distance from a row": "abs(q - g) <= w and k <= q",
    "diamond": "abs(q - g) + abs(k - g) <= w",
    "outside a diamond": "abs(q - g) + abs(k - g) > w",
    "rows of a grid": "abs(q // 4 - k // 4) <= 1",
    "rows of a grid of any width": "abs((q - r) // w - (k - r) // w) <= 1 and k >= r",
    "neighbors in rows": "clamp(q // 3 - 1, 0, 2) <= k // 3 <= clamp(q // 3 - 1, 0, 2) + 2",
    "compressed keys": "k * w + w - 1 <= q",
    "compressed queries": "k <= q * w + r",
    "rows of length": "k <= q + Nk - Nq and q + Nk - Nq - k < w",
    "quarter": "q >= g and k < r",
    "corners": "q < g and k >= r or q >= g and k < r",
    "single column": "k == g",
    "single row": "q == g",
    "diagonal": "k == q",
    "second diagonal": "k == g - q",
    "strip to the second diagonal": "g <= q + k <= g + w",
    "nothing left": "k < q and q < k",
    "odd halves": "k < q if 2 * k < Nk else k > q",
    "clean and noisy": (
        "((q - Nk // 2 if q >= Nk // 2 else q) // w == (k - Nk // 2 if k >= Nk // 2 else k) // w"
        " and (q >= Nk // 2) == (k >= Nk // 2)"
        " or k >= Nk // 2 and"
        " (k - Nk // 2 if k >= Nk // 2 else k) // w < (q - Nk // 2 if q >= Nk // 2 else q) // w)"
    ),
}
TIGHT |= {name: written(text) for name, text in SEVERAL.items()}

# Masks of which segments cannot say all, with the op of a node that is to blame.
LOSSY: dict[str, tuple[Node, str]] = {
    "every other": (written("(q - k) % w == 0"), "floormod"),
    "every other, causal": (written("k <= q and k % 2 == 0"), "floormod"),
    "rows of every other": (written("q % w == 0 and k <= q"), "floormod"),
    "documents": (node("eq", lookup("doc", "int", Q), lookup("doc", "int", K)), "lookup"),
    "marked": (every(CAUSAL, lookup("flag", "bool", Q, K)), "lookup"),
    "half": (node("lt", node("to_float", K), node("mul", node("to_float", Q), 0.5)), "to_float"),
    "product": (written("q * k <= r"), "mul"),
    "disc": (written("(q // 4 - k // 4) ** 2 + (q % 4 - k % 4) ** 2 <= r"), "floormod"),
    "columns of a grid": (written("abs(q % 4 - k % 4) <= 1"), "floormod"),
    "wave": (written("k <= q + q % w"), "floormod"),
    "between multiples": (written("2 * q <= 3 * k and 3 * k <= 2 * q + g // 4"), "le"),
}


def is_tight_in_tiles(name: str) -> bool:
    """A conjunction of limits on different sides of a tile may keep a tile that misses between
    them: there only the segments are exact."""
    return name not in ("neighborhood", "scaled", "scaled by a scalar", *SEVERAL)


NO_LIMIT = [2**62, 2**63 - 1, -(2**63)]  # entries that say "no limit"


def world(seed: int, positive: bool = False, wide: bool = True) -> World:
    """A call's values; small, of either sign unless `positive`. `wide`: tables may hold ints with
    which arithmetic overflows."""
    random = np.random.default_rng(seed)
    low = 1 if positive else -4
    leaves = {
        W: int(random.integers(low, 8)),
        R: int(random.integers(1 if positive else low, 4 if positive else 8)),
        G: int(random.integers(low, 8)),
        X: float(random.choice([0.0, 1.5, -2.0, 4.0, np.inf, 0.1])),
        RADIUS: float(random.choice([0.0, 2.0, 5.0, 3.3, np.inf])),
        B: int(random.integers(0, 2)),
        H: int(random.integers(0, 2)),
        NK: 14 if positive else int(random.integers(0, 16)),
        NQ: 14 if positive else int(random.integers(0, 16)),
    }
    tables = {
        "prefix": random.choice([-3, 0, 2, 5, 9, *(NO_LIMIT if wide else [])], 2),
        "full": random.integers(0, 2, 2).astype(bool),
        "slope": random.choice([0.5, -1.0, 0.0, np.inf, np.nan, 3.0], 2).astype(np.float32),
        "doc": random.integers(0, 3, 16),
        "flag": random.integers(0, 2, (8, 8)).astype(bool),
        "decay": random.normal(size=16).astype(np.float32),
    }
    return World(leaves, tables)


LEAVES: dict[str, list[Node]] = {
    "int": [Q, K, Q, K, Q, K, W, R, NK, PREFIX, constant(0), constant(1), constant(-2), constant(3)]
    + [constant(4), lookup("doc", "int", K), lookup("doc", "int", node("sub", Q, K))],
    "float": [X, RADIUS, SLOPE, constant(0.5), constant(-3.0), constant(0.0)]
    + [node("to_float", Q), node("to_float", distance()), lookup("decay", "float", Q)],
    "bool": [FULL, CAUSAL, node("lt", distance(), W), constant(True), lookup("flag", "bool", Q, K)],
}
LETTERS = {"b": "bool", "i": "int", "f": "float"}
# Comparisons and arithmetic of ints are what masks are made of: they come up more often.
WEIGHT = {
    "floordiv": 3,
    "floormod": 3,
    "add": 2,
    "sub": 3,
    "min": 2,
    "max": 2,
    "abs": 2,
    "where": 2,
}


def makers(kind: str) -> list[tuple[str, list[str]]]:
    found = []
    for name, entry in OPS.items():
        for signature in entry.signatures:
            takes, gives = signature.split("->")
            if LETTERS[gives] == kind:
                often = WEIGHT.get(name, 1) if "f" not in takes else 1
                often *= 3 if kind == "bool" and "i" in takes else 1
                found += [(name, [LETTERS[t] for t in takes])] * often
    return found


MAKERS = {kind: makers(kind) for kind in ("bool", "int", "float")}


@st.composite
def expressions(draw: st.DrawFn, kind: str = "bool", depth: int = 4) -> Node:
    """A random expression over the whole op table."""
    if depth == 0 or (kind != "bool" and draw(st.integers(0, depth)) == 0):
        return draw(st.sampled_from(LEAVES[kind]))
    name, takes = draw(st.sampled_from(MAKERS[kind]))
    smaller = depth - 1
    return make(name, *(draw(expressions(kind=take, depth=smaller)) for take in takes))
