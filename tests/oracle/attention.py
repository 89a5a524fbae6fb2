"""What an attention program gives: dense, in float64, pair by pair, differentiable by autograd.

Written from the language's reference alone: it shares the syntax tree with the compiler and
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attndsl.syntax import ast
from tests.oracle import functions
from tests.oracle.expressions import Evaluator
from tests.oracle.scopes import Closure, Frame, Scope, load_module
from tests.oracle.selects import Choice, Problem

Argument = Tensor | bool | int | float


class Oracle:
    """One attention of a parsed file, with the arguments of one call.

    query [B, H, Nq, D], key [B, Hk, Nk, D], value [B, Hk, Nk, Dv], and the float tensors among
    `arguments`, are taken to float64; gradients reach them through that.
    """

    def __init__(
        self,
        file: ast.File,
        name: str | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float | None = None,
        q_offset: int | Tensor = 0,
        k_offset: int | Tensor = 0,
        k_len: Tensor | None = None,
        arguments: Mapping[str, Argument] | None = None,
    ) -> None:
        self.attention = _find(file, name)
        self.query, self.key, self.value = (t.to(torch.float64) for t in (query, key, value))
        batch, heads, rows, width = query.shape
        self.shape = (batch, heads, rows, key.shape[2])
        self.group = heads // key.shape[1] if key.shape[1] else 1
        self.scale = width**-0.5 if scale is None else scale
        self.q_offset = _per_batch(q_offset, batch)
        self.k_offset = _per_batch(k_offset, batch)
        self.k_len = None if k_len is None else k_len.to(torch.int64)
        numbers: dict[str, bool | int | float] = {
            "B": batch,
            "H": heads,
            "Hk": key.shape[1],
            "G": self.group,
            "Nq": rows,
            "Nk": key.shape[2],
            "D": width,
        }
        grids = [s for s in self.attention.statements if isinstance(s, ast.Grid)]
        self.evaluator = Evaluator(self.query, {}, numbers, grids[0] if grids else None)
        self.scope = Scope(load_module(file), inside_attention=True)
        self._bind(dict(arguments or {}))

    def _bind(self, arguments: dict[str, Argument]) -> None:
        numbers, tensors = self.evaluator.numbers, self.evaluator.tensors
        shaped: list[tuple[ast.Parameter, Tensor]] = []
        for parameter in self.attention.parameters:
            given = arguments.pop(parameter.name.name, parameter.default)
            assert given is not None, f"{parameter.name.name} is missing"
            if parameter.dims is None:
                assert not isinstance(given, Tensor)
                kind = {"bool": bool, "int": int, "float": float}[parameter.kind]
                numbers[parameter.name.name] = kind(given)
                continue
            assert isinstance(given, Tensor) and given.dim() == len(parameter.dims)
            dtype = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}
            tensors[parameter.name.name] = given.to(dtype[parameter.kind])
            shaped.append((parameter, given))
        assert not arguments, f"unknown arguments {list(arguments)}"
        for parameter, given in shaped:
            for dimension, size in zip(parameter.dims or (), given.shape, strict=True):
                if isinstance(dimension, ast.Name):
                    numbers.setdefault(dimension.name, size)
        point = Frame.full({"b": torch.zeros(1, dtype=torch.int64)})
        for parameter, given in shaped:
            for dimension, size in zip(parameter.dims or (), given.shape, strict=True):
                declared = int(self.evaluator.evaluate(dimension, self.scope, point)[0])
                assert declared == size, f"{parameter.name.name}: {declared} declared, {size} given"

    # -- points -----------------------------------------------------------------------------

    def _frame(self, points: Tensor) -> Frame:
        """A frame for points given as columns (b, h, row) or (b, h, row, column or d)."""
        base = {"b": points[0], "h": points[1], "row": points[2]}
        base["q"] = points[2] + self.q_offset[points[0]]
        if len(points) == 4:
            base["column"] = points[3]
            base["k"] = points[3] + self.k_offset[points[0]]
        return Frame.full(base)

    def _scope_at(self, statement: ast.Statement, score: Tensor | None) -> Scope:
        """The scope with one more `let`; a grid remembers the scope that it stands in."""
        if isinstance(statement, ast.Let):
            self.scope = self.scope.with_closure(
                statement.name.name, Closure(statement.value, self.scope, score)
            )
        elif isinstance(statement, ast.Grid):
            self.evaluator.grid_scope = self.scope
        return self.scope

    def mask(self) -> Tensor:
        """bool [B, H, Nq, Nk]: the pairs that take part (before scores of -inf are dropped)."""
        points = torch.ones(self.shape, dtype=torch.bool).nonzero().T
        frame = self._frame(points)
        kept = torch.ones(len(frame), dtype=torch.bool)
        start = self.scope
        for statement in self.attention.statements:
            scope = self._scope_at(statement, None)
            if isinstance(statement, ast.Select):
                choice = Choice(statement, self._problem(), self.evaluator, scope)
                self.evaluator.choices[statement.name.name] = choice.at
            if isinstance(statement, ast.Mask):
                kept = kept & self.evaluator.evaluate(statement.value, scope, frame)
        self.scope = start
        if self.k_len is not None:
            kept = kept & (frame["column"] < self.k_len[frame["b"]])
        return kept.view(self.shape)

    def _problem(self) -> Problem:
        query, key = self.query.detach(), self.key.detach()
        return Problem(query, key, self.q_offset, self.k_offset, self.k_len)

    # -- results ----------------------------------------------------------------------------

    def run(self) -> tuple[Tensor, Tensor | None]:
        """out [B, H, Nq, Dv]; lse [B, H, Nq] for softmax weights, else None. Both float64."""
        batch, heads, rows, _ = self.shape
        pairs = self._frame(self.mask().nonzero().T)
        key_head = pairs["h"] // self.group
        products = (
            self.query[pairs["b"], pairs["h"], pairs["row"]]
            * self.key[pairs["b"], key_head, pairs["column"]]
        )
        score = self.scale * products.sum(-1)
        weights, output = ast.Weights(self.attention.span, "softmax", None, None), None
        for statement in self.attention.statements:
            scope = self._scope_at(statement, score)
            pairs = pairs.with_score(score)
            if isinstance(statement, ast.Score):
                score = functions.as_float(self.evaluator.evaluate(statement.value, scope, pairs))
            elif isinstance(statement, ast.Weights):
                weights = statement
            elif isinstance(statement, ast.Output):
                output = statement
        pairs = pairs.with_score(score).at((score.detach() > -torch.inf).nonzero()[:, 0])
        out, lse = self._weigh(weights, pairs)
        if output is not None:
            out = self._epilogue(output, out)
        shape = (batch, heads, rows)
        return out.view(*shape, self.value.shape[-1]), None if lse is None else lse.view(shape)

    def _weigh(self, weights: ast.Weights, pairs: Frame) -> tuple[Tensor, Tensor | None]:
        """out [rows, Dv] and lse [rows], over all (b, h, row) in order."""
        batch, heads, rows, _ = self.shape
        total = batch * heads * rows
        row_of_pair = (pairs["b"] * heads + pairs["h"]) * rows + pairs["row"]
        present, slot = row_of_pair.unique(return_inverse=True)
        values = self.value[pairs["b"], pairs["h"] // self.group, pairs["column"]]
        out = torch.zeros(total, self.value.shape[-1], dtype=torch.float64)

        def add(x: Tensor) -> Tensor:
            return torch.zeros((len(present), *x.shape[1:]), dtype=x.dtype).index_add(0, slot, x)

        if weights.form != "softmax":
            assert weights.value is not None
            weight = self.evaluator.evaluate(weights.value, self.scope, pairs)
            weight = functions.as_float(weight)
            result = add(weight[:, None] * values)
            if weights.form == "normalize":
                denominator = add(weight)
                fine = (denominator.detach() != 0).nonzero()[:, 0]
                result = result[fine] / denominator[fine, None]
                present = present[fine]
            return out.index_put((present,), result), None

        score = pairs["score"]
        top = torch.full((len(present),), -torch.inf, dtype=torch.float64)
        top = top.scatter_reduce(0, slot, score.detach(), "amax")
        sink = None
        if weights.sink is not None:
            places = torch.stack(
                (present // rows // heads, present // rows % heads, present % rows)
            )
            sink = self.evaluator.evaluate(weights.sink, self.scope, self._frame(places))
            sink = functions.as_float(sink)
            top = torch.maximum(top, sink.detach())
        share = torch.exp(score - top[slot])
        denominator = add(share)
        if sink is not None:
            denominator = denominator + torch.exp(sink - top)
        out = out.index_put((present,), add(share[:, None] * values) / denominator[:, None])
        lse = torch.full((total,), -torch.inf, dtype=torch.float64)
        return out, lse.index_put((present,), top + torch.log(denominator))

    def _epilogue(self, output: ast.Output, out: Tensor) -> Tensor:
        batch, heads, rows, _ = self.shape
        everywhere = torch.ones(batch, heads, rows, out.shape[-1], dtype=torch.bool)
        points = everywhere.nonzero().T
        frame = self._frame(points[:3])
        frame = Frame.full({**frame.base, "d": points[3], "out": out.reshape(-1)})
        result = self.evaluator.evaluate(output.value, self.scope, frame)
        return functions.as_float(result).view(out.shape)


def _find(file: ast.File, name: str | None) -> ast.Attention:
    found = [item for item in file.items if isinstance(item, ast.Attention)]
    if name is not None:
        found = [item for item in found if item.name.name == name]
    (attention,) = found
    return attention


def _per_batch(offset: int | Tensor, batch: int) -> Tensor:
    if isinstance(offset, Tensor):
        return offset.to(torch.int64)
    return torch.full((batch,), offset, dtype=torch.int64)
