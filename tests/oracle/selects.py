"""What a `select` chooses, worked out block by block in plain Python.

Ranks are rounded to float32; what they are made of is computed in float64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attndsl.syntax import ast
from tests.oracle import functions
from tests.oracle.expressions import Evaluator
from tests.oracle.scopes import Frame, Scope

Rows = dict[tuple[int, int], list[int]]  # (batch, block index) -> rows of the block


@dataclass
class Problem:
    """The call that a select chooses for. query [B, H, Nq, D] and key [B, Hk, Nk, D] are float64;
    offsets are int64 [B]; k_len is int64 [B] or None."""

    query: Tensor
    key: Tensor
    q_offset: Tensor
    k_offset: Tensor
    k_len: Tensor | None

    @property
    def group(self) -> int:
        return self.query.shape[1] // max(self.key.shape[1], 1)

    def query_rows(self, size: int) -> Rows:
        return self._rows(self.query.shape[2], self.q_offset, size, None)

    def key_rows(self, size: int) -> Rows:
        return self._rows(self.key.shape[2], self.k_offset, size, self.k_len)

    def _rows(self, length: int, offset: Tensor, size: int, lengths: Tensor | None) -> Rows:
        found: Rows = defaultdict(list)
        for b in range(self.query.shape[0]):
            limit = length if lengths is None else min(length, int(lengths[b]))
            for row in range(limit):
                found[b, (row + int(offset[b])) // size].append(row)
        return dict(found)


@dataclass(eq=False)
class RankEvaluator(Evaluator):
    """Expressions of a select, at points (b, h, i, j) and, inside of a sum, d."""

    problem: Problem | None = None
    rows: dict[str, Rows] = field(default_factory=dict)  # of "query" and "key"
    names: dict[str, str] = field(default_factory=dict)  # of the index of "query" and of "key"
    pooled: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def name(self, name: str, scope: Scope, frame: Frame) -> Tensor:
        if name in ("query", "key"):
            return self.vector(name, "only", frame)
        return super().name(name, scope, frame)

    def call(self, e: ast.Call, scope: Scope, frame: Frame) -> Tensor:
        name, given = e.function.name, e.arguments
        if name in ("dot", "sum"):
            assert "d" not in frame
            width = self.query.shape[-1]
            base = {n: x[frame.ids].repeat_interleave(width) for n, x in frame.base.items()}
            wide = Frame.full({**base, "d": torch.arange(width).repeat(len(frame))})
            product = functions.as_float(self.evaluate(given[0], scope, wide))
            for other in given[1:]:
                product = product * functions.as_float(self.evaluate(other, scope, wide))
            return product.view(-1, width).sum(-1)
        if name in ("mean", "max", "min") and len(given) == 1:
            (tensor,) = given
            assert isinstance(tensor, ast.Name)
            return self.vector(tensor.name, name, frame)
        return super().call(e, scope, frame)

    def lookup(self, e: ast.Lookup, scope: Scope, frame: Frame) -> Tensor:
        found = super().lookup(e, scope, frame)
        return found if found.dim() == 1 else found[torch.arange(len(frame)), frame["d"]]

    def vector(self, tensor: str, how: str, frame: Frame) -> Tensor:
        """Element d of a pooled vector. The blocks of a tensor are numbered from their least."""
        assert self.problem is not None
        heads = frame["h"] if tensor == "query" else frame["h"] // self.problem.group
        table = self.pooled.get((tensor, how))
        least = min(block for _, block in self.rows[tensor])
        if table is None:
            table = self.pooled[tensor, how] = self.pool(tensor, how, least)
        return table[frame["b"], heads, frame[self.names[tensor]] - least, frame["d"]]

    def pool(self, tensor: str, how: str, least: int) -> Tensor:
        assert self.problem is not None
        source = self.problem.query if tensor == "query" else self.problem.key
        most = max(block for _, block in self.rows[tensor])
        table = torch.full(
            (source.shape[0], source.shape[1], most - least + 1, source.shape[3]),
            math.nan,
            dtype=torch.float64,
        )
        for (b, block), rows in self.rows[tensor].items():
            part = source[b][:, rows]
            assert how != "only" or len(rows) == 1
            value = {"mean": part.mean(1), "min": part.min(1).values}.get(how, part.max(1).values)
            table[b, :, block - least] = value
        return table.to(torch.float32).to(torch.float64)


class Choice:
    """One select with the arguments of one call: which (b, head, i, j) it chooses."""

    def __init__(
        self, statement: ast.Select, problem: Problem, evaluator: Evaluator, scope: Scope
    ) -> None:
        self.statement, self.problem, self.scope = statement, problem, scope
        point = Frame.full({"b": torch.zeros(1, dtype=torch.int64)})
        self.sizes = []
        for side in (statement.row, statement.column):
            size = 1
            if isinstance(side, ast.Binary):
                assert side.operator == "//"
                size = int(evaluator.evaluate(side.right, scope, point)[0])
            self.sizes.append(size)
        self.rows = {
            "query": problem.query_rows(self.sizes[0]),
            "key": problem.key_rows(self.sizes[1]),
        }
        names = {"query": statement.row_index.name, "key": statement.column_index.name}
        self.evaluator = RankEvaluator(
            problem.query,
            evaluator.tensors,
            evaluator.numbers,
            evaluator.grid,
            evaluator.grid_scope,
            problem=problem,
            rows=self.rows,
            names=names,
        )
        self.step = problem.group if statement.per_group else 1
        self.chosen = self.choose()

    def at(self, frame: Frame) -> Tensor:
        """Whether the pairs of a frame were chosen: bool [len(frame)]."""
        found = []
        for b, h, q, k in zip(*(frame[n].tolist() for n in "bhqk"), strict=True):
            found.append((b, h // self.step, q // self.sizes[0], k // self.sizes[1]) in self.chosen)
        return torch.tensor(found, dtype=torch.bool)

    def evaluate(self, e: ast.Expression, points: list[tuple[int, ...]]) -> Tensor:
        columns = torch.tensor(points, dtype=torch.int64).view(len(points), 4).T
        names = ("b", "h", self.evaluator.names["query"], self.evaluator.names["key"])
        return self.evaluator.evaluate(
            e, self.scope, Frame.full(dict(zip(names, columns, strict=True)))
        )

    def choose(self) -> set[tuple[int, ...]]:
        """(b, head, i, j) with key heads for `per group`."""
        heads = self.problem.query.shape[1]
        places = [
            (b, h, i, j)
            for b, i in self.rows["query"]
            for h in range(heads)
            for other, j in self.rows["key"]
            if other == b
        ]
        if not places:
            return set()
        statement = self.statement
        first = [(b, h // self.step * self.step, i, j) for b, h, i, j in places]
        allowed = [True] * len(places)
        if statement.where is not None:
            allowed = self.evaluate(statement.where, first).tolist()
        candidates = [p for p, fine in zip(places, allowed, strict=True) if fine]
        if statement.given is not None:
            return self.listed() & {(b, h // self.step, i, j) for b, h, i, j in candidates}
        if not candidates:
            return set()
        assert statement.rank is not None and statement.amount is not None
        ranks = functions.as_float(self.evaluate(statement.rank, candidates)).detach()
        ranks = ranks.to(torch.float32)
        limits = self.evaluate(
            statement.amount, [(b, h // self.step * self.step, i, j) for b, h, i, j in candidates]
        )
        if statement.keep != "top":
            limits = functions.as_float(limits).detach().to(torch.float32)
        sums: dict[tuple[int, ...], Tensor] = {}
        limit_of: dict[tuple[int, ...], Any] = {}
        for (b, h, i, j), rank, limit in zip(candidates, ranks, limits.tolist(), strict=True):
            place = (b, h // self.step, i, j)
            sums[place] = sums[place] + rank if place in sums else rank
            limit_of[place[:3]] = limit
        rivals: dict[tuple[int, ...], list[tuple[float, int]]] = {p: [] for p in limit_of}
        for place, summed in sums.items():
            if not math.isnan(float(summed)):
                rivals[place[:3]].append((float(summed), place[3]))
        return {
            (*place, j)
            for place, found in rivals.items()
            for j in kept(str(statement.keep), limit_of[place], found)
        }

    def listed(self) -> set[tuple[int, ...]]:
        given = self.statement.given
        assert isinstance(given, ast.Name)
        tensor = self.evaluator.tensors[given.name]
        found = set()
        for b in range(tensor.shape[0]):
            start = int(self.problem.q_offset[b]) // self.sizes[0]
            for head in range(tensor.shape[1]):
                for row in range(tensor.shape[2]):
                    for j in tensor[b, head, row].tolist():
                        if j >= 0:
                            found.add((b, head, start + row, j))
        return found


def kept(keep: str, limit: Any, rivals: list[tuple[float, int]]) -> list[int]:
    """The blocks that are kept of (rank, block) pairs."""
    if keep == "above":
        return [j for rank, j in rivals if rank > limit]
    ordered = sorted(rivals, key=lambda rival: (-rival[0], rival[1]))
    if keep == "top":
        return [j for _, j in ordered[: max(limit, 0)]]
    if not ordered:
        return []
    greatest = ordered[0][0]
    shares = [1.0 if rank == greatest else math.exp(rank - greatest) for rank, _ in ordered]
    whole, before, found = math.fsum(shares), 0.0, []
    for (_, j), share in zip(ordered, shares, strict=True):
        if before < limit * whole:
            found.append(j)
        before += share
    return found
