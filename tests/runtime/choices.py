"""What selects choose, by loops over plain numbers; and random selects to choose by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from attndsl.ir.nodes import (
    SCORE,
    TRUE,
    Node,
    chosen,
    constant,
    index,
    lookup,
    make,
    pooled,
    scalar,
    size,
    total,
)
from attndsl.ir.program import Program, Scalar, Select, Weights
from attndsl.ir.program import Tensor as TensorParameter
from attndsl.runtime.choosing.ranks import Inputs

B, H, ROW, COLUMN, D = (index(name) for name in "bhijd")
Vectors = dict[str, list[float]]
Rank = Callable[[Vectors, "Place"], float]


@dataclass(frozen=True)
class Place:
    """A block of queries and one of keys: batch, query head, absolute indices."""

    b: int
    h: int
    i: int
    j: int
    tensors: dict[str, Tensor]


def f32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def dot_of(x: list[float], y: list[float]) -> float:
    return f32(math.fsum(a * b for a, b in zip(x, y, strict=True)))


def entry(table: Tensor, *at: int) -> float:
    """A table's entry, 0 outside."""
    if all(0 <= i < extent for i, extent in zip(at, table.shape, strict=True)):
        return float(table[at])
    return 0.0


def mul(*parts: Node) -> Node:
    first, *others = parts
    for other in others:
        first = make("mul", first, other)
    return first


DOT = total(mul(pooled("query_mean"), pooled("key_mean")))
GATE = lookup("gate", "float", B, H, ROW, COLUMN)
SHIFT = lookup("shift", "float", H, D)
QUEST = total(
    make(
        "max",
        mul(pooled("query_max"), pooled("key_max")),
        mul(pooled("query_max"), pooled("key_min")),
    )
)
LEAST = total(
    make(
        "min",
        mul(pooled("key_mean"), pooled("query_min")),
        mul(pooled("query_max"), pooled("key_mean")),
    )
)
APART = total(make("abs", make("sub", pooled("query_mean"), pooled("key_max"))))
SHIFTED = total(
    make("sub", mul(pooled("query_mean"), SHIFT, pooled("key_min")), mul(DOT, pooled("key_mean")))
)
DIFFERENCE = total(
    make(
        "sub",
        mul(pooled("query_max"), SHIFT, pooled("key_min")),
        mul(pooled("key_max"), make("neg", pooled("query_mean"))),
    )
)


def quest(v: Vectors, at: Place) -> float:
    found = (
        max(q * a, q * b)
        for q, a, b in zip(v["query_max"], v["key_max"], v["key_min"], strict=True)
    )
    return f32(math.fsum(found))


def least(v: Vectors, at: Place) -> float:
    found = (
        min(k * a, k * b)
        for k, a, b in zip(v["key_mean"], v["query_min"], v["query_max"], strict=True)
    )
    return f32(math.fsum(found))


def apart(v: Vectors, at: Place) -> float:
    return f32(
        math.fsum(abs(f32(a - b)) for a, b in zip(v["query_mean"], v["key_max"], strict=True))
    )


def shift(at: Place, d: int) -> float:
    return entry(at.tensors["shift"], at.h, d)


def shifted(v: Vectors, at: Place) -> float:
    vectors = zip(v["query_mean"], v["key_min"], v["key_mean"], strict=True)
    dot = dot_of(v["query_mean"], v["key_mean"])
    terms = (q * shift(at, d) * a - dot * b for d, (q, a, b) in enumerate(vectors))
    return f32(math.fsum(terms))


def difference(v: Vectors, at: Place) -> float:
    vectors = zip(v["query_max"], v["query_mean"], v["key_min"], v["key_max"], strict=True)
    terms = (q * shift(at, d) * a + b * p for d, (q, p, a, b) in enumerate(vectors))
    return f32(math.fsum(terms))


def gated(v: Vectors, at: Place) -> float:
    return f32(dot_of(v["query_mean"], v["key_mean"]) + gate(v, at))


def gate(v: Vectors, at: Place) -> float:
    return entry(at.tensors["gate"], at.b, at.h, at.i, at.j)


RANKS: dict[str, tuple[Node, Rank]] = {
    "dot": (DOT, lambda v, at: dot_of(v["query_mean"], v["key_mean"])),
    "gate": (GATE, gate),
    "gated": (make("add", DOT, GATE), gated),
    "quest": (QUEST, quest),
    "least": (LEAST, least),
    "apart": (APART, apart),
    "shifted": (SHIFTED, shifted),
    "difference": (DIFFERENCE, difference),
    "parity": (
        make("to_float", make("floormod", COLUMN, constant(2))),
        lambda v, at: float(at.j % 2),
    ),
}
WHERES: dict[str, tuple[Node, Callable[[Place], bool]]] = {
    "all": (TRUE, lambda at: True),
    "earlier": (make("lt", COLUMN, ROW), lambda at: at.j < at.i),
    "near": (make("le", make("sub", ROW, COLUMN), constant(2)), lambda at: at.i - at.j <= 2),
    "none": (make("lt", COLUMN, constant(-1000)), lambda at: False),
    "table": (
        lookup("open", "bool", COLUMN),
        lambda at: bool(entry(at.tensors["open"], at.j)),
    ),
    "group": (
        make("le", make("floordiv", H, size("G")), COLUMN),
        lambda at: at.h // at.tensors["group"].shape[0] <= at.j,
    ),
}


@dataclass(frozen=True)
class Case:
    """A select in a call, and what is needed to do it by hand."""

    select: Select
    inputs: Inputs
    rank: Rank
    where: Callable[[Place], bool]
    limit: Callable[[Place], float]
    rows: int
    columns: int


def offset_at(offset: int | Tensor, b: int) -> int:
    return int(offset[b]) if isinstance(offset, Tensor) else offset


def count_of(length: int, block: int, offset: int | Tensor) -> int:
    """Blocks of the call."""
    if isinstance(offset, Tensor):
        return max((o + length - 1) // block - o // block + 1 for o in range(block))
    return len({(offset + r) // block for r in range(length)})


def vectors_of(rows: Tensor, side: str) -> Vectors:
    rows = rows.double()
    found = {
        "mean": [f32(math.fsum(column) / len(column)) for column in rows.T.tolist()],
        "max": rows.amax(0).tolist(),
        "min": rows.amin(0).tolist(),
    }
    return {f"{side}_{how}": vector for how, vector in found.items()}


def by_hand(case: Case) -> dict[tuple[int, int, int], list[int]]:
    """(batch, choosing head, block of queries) -> absolute indices of the chosen blocks."""
    inputs, select = case.inputs, case.select
    sizes = inputs.sizes
    group = sizes["G"]
    found = {}
    for b in range(sizes["B"]):
        q0, k0 = offset_at(inputs.q_offset, b), offset_at(inputs.k_offset, b)
        length = sizes["Nk"] if inputs.k_len is None else min(int(inputs.k_len[b]), sizes["Nk"])
        of_queries: dict[int, list[int]] = {}
        of_keys: dict[int, list[int]] = {}
        for r in range(sizes["Nq"]):
            of_queries.setdefault((q0 + r) // case.rows, []).append(r)
        for r in range(length):
            of_keys.setdefault((k0 + r) // case.columns, []).append(r)
        step = group if select.per_group else 1
        for head in range(sizes["H"] // step):
            heads = range(head * step, head * step + step)
            for number, (i, rows) in enumerate(of_queries.items()):
                at = [Place(b, heads[0], i, j, dict(inputs.tensors)) for j in of_keys]
                places = [p for p in at if case.where(p)]
                if select.keep == "given":
                    row = inputs.tensors[select.given][b, head, number].tolist()
                    kept = [p.j for p in places if p.j in row and p.j >= 0]
                else:
                    ranks = {}
                    for p in places:
                        summed = 0.0
                        for h in heads:
                            place = Place(b, h, i, p.j, p.tensors)
                            keys = inputs.key[b, h // group, of_keys[p.j]]
                            vectors = vectors_of(inputs.query[b, h, rows], "query")
                            one = case.rank({**vectors, **vectors_of(keys, "key")}, place)
                            summed = one if h == heads[0] else f32(summed + one)
                        if not math.isnan(summed):
                            ranks[p.j] = summed
                    limit = case.limit(Place(b, heads[0], i, 0, dict(inputs.tensors)))
                    kept = keep_by_hand(select.keep, ranks, limit)
                found[b, head, number] = sorted(kept)
    return found


def keep_by_hand(keep: str, ranks: dict[int, float], limit: float) -> list[int]:
    order = sorted(ranks, key=lambda j: (-ranks[j], j))
    if keep == "top":
        return order[: max(int(limit), 0)]
    if keep == "above":
        return [j for j in order if ranks[j] > f32(limit)]
    if not order:
        return []
    best = ranks[order[0]]
    weights = [1.0 if ranks[j] == best else math.exp(ranks[j] - best) for j in order]
    whole, before, kept = sum(weights), 0.0, []
    for j, weight in zip(order, weights, strict=True):
        if before < f32(limit) * whole:
            kept.append(j)
        before += weight
    return kept


def random_case(seed: int, **fixed: Any) -> Case:
    """A small random select; `fixed` sets some of: keep, rank, where, per_group, group, rows,
    columns, nq, nk, offsets ("int", "tensor" or "none"), ties, special (infinities, NaN, -0.0)."""
    random = Random(seed)
    torch.manual_seed(seed)

    def pick(name: str, *options: Any) -> Any:
        choice = random.choice(options)
        return fixed.get(name, choice)

    group, key_heads, batches = pick("group", 1, 2, 3, 8), random.choice((1, 2)), 2
    if group == 8:
        key_heads = 1
    nq, nk = pick("nq", 1, 5, 9, 14), pick("nk", 1, 6, 13, 20)
    m, n = pick("rows", 1, 1, 2, 4), pick("columns", 1, 2, 3, 4)
    per_group = pick("per_group", False, True)
    kind = pick("offsets", "none", "int", "tensor")
    q_offset: int | Tensor = 0
    k_offset: int | Tensor = 0
    if kind == "int":
        q_offset, k_offset = random.randrange(0, 12), random.choice((0, 1, 5, -3))
    elif kind == "tensor":
        q_offset = torch.tensor([random.randrange(0, 12) for _ in range(batches)])
        if random.random() < 0.5:
            k_offset = torch.tensor([random.randrange(0, 6) for _ in range(batches)])
    k_len = None
    if random.random() < 0.4:
        lengths = [random.randrange(0, nk + 1) for _ in range(batches)]
        k_len = torch.tensor(lengths, dtype=torch.int32)
    high = 2 if pick("ties", False, True) else 9
    query = torch.randint(-high, high + 1, (batches, key_heads * group, nq, 3)).float()
    key = torch.randint(-high, high + 1, (batches, key_heads, nk, 3)).float()
    tall, wide = count_of(nq, m, q_offset), count_of(nk, n, k_offset)
    sizes = {
        "B": batches,
        "H": key_heads * group,
        "Hk": key_heads,
        "G": group,
        "Nq": nq,
        "Nk": nk,
        "D": 3,
    }
    heads = key_heads if per_group else key_heads * group
    tensors = {
        "gate": torch.randint(-4, 5, (batches, key_heads * group, 9, 8)).float(),
        "shift": torch.randint(-1, 3, (key_heads * group, 3)).float(),
        "open": torch.rand(12) < 0.6,
        "budget": torch.randint(-1, 5, (12,)),
        "listed": torch.randint(-2, wide + 4, (batches, heads, tall, random.randrange(0, 6))),
        "group": torch.zeros(group),
    }
    if fixed.get("special"):
        odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 3e38, -1.5, 1e-45])
        tensors["gate"] = odd[torch.randint(0, len(odd), tensors["gate"].shape)]
    rank, rank_by_hand = RANKS[pick("rank", *RANKS)]
    where, where_by_hand = WHERES[pick("where", "all", *WHERES)]
    keep = pick("keep", "top", "top", "top by row", "above", "mass", "given")
    limit, limit_by_hand = limits_of(keep, random)
    keep = keep.split(" ")[0]
    select = Select(
        "picked",
        constant(m),
        scalar("n", "int"),
        keep,
        None if keep == "given" else rank,
        where,
        None if keep == "given" else limit,
        "listed" if keep == "given" else "",
        per_group,
    )
    place = (q_offset, k_offset, k_len)
    inputs = Inputs(query, key, *place, sizes, {"n": n}, tensors)
    return Case(select, inputs, rank_by_hand, where_by_hand, limit_by_hand, m, n)


def limits_of(keep: str, random: Random) -> tuple[Node, Callable[[Place], float]]:
    if keep == "top by row":
        return lookup("budget", "int", ROW), lambda at: entry(at.tensors["budget"], at.i)
    if keep == "top":
        count = random.choice((-1, 0, 1, 2, 3, 50))
        return constant(count), lambda at: count
    level = random.choice((-2.5, 0.0, 0.3, 0.9, 1.0, 2.0, math.inf, math.nan))
    return constant(level), lambda at: level


def program_of_case(case: Case, mask: Node | None = None) -> Program:
    """A program with the select, which takes the tensors of the case."""
    inputs = case.inputs
    names = [n for n in ("gate", "shift", "open", "budget", "listed") if n != case.select.given]
    kinds = {"gate": "float", "shift": "float", "open": "bool", "budget": "int", "listed": "int"}
    parameters: list[Scalar | TensorParameter] = [Scalar("n", "int", None)]
    for name in (*names, *([case.select.given] if case.select.given else [])):
        dims = tuple(size(f"{name}_{axis}") for axis in range(inputs.tensors[name].dim()))
        parameters.append(TensorParameter(name, kinds[name], dims))  # type: ignore[arg-type]
    if mask is None:
        mask = chosen(case.select.name)
    return Program(
        "picking", tuple(parameters), mask, SCORE, Weights(), None, selects=(case.select,)
    )
