"""Results of a program: dense, eager and differentiable, for any floating dtype.

A score is evaluated for the pairs that the mask keeps and for no other, and a branch of a
conditional on the elements that choose it: an infinity where nobody looks cannot become a NaN, in
a value or in a gradient. Memory is O(B * H * Nq * Nk).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attndsl.ir.nodes import Node
from attndsl.ir.program import Program
from attndsl.reference.call import Call, at_position, positions
from attndsl.reference.selects import chosen_pairs, listed_pairs
from attndsl.reference.values import Values, evaluate


def keep_pairs(
    mask: Node, values: Values, q: Tensor, k: Tensor, columns: Tensor, k_len: Tensor | None
) -> Tensor:
    """The mask for positions q [1 or B, Nq] and k [1 or B, Nk]: bool, dimensions of 1 where it does
    not vary with b or h. `columns` [Nk] are the indices of the keys, which k_len counts."""
    heads, batches = values.sizes["H"], values.sizes["B"]
    values.leaves["b"] = torch.arange(batches, device=values.device)[:, None, None, None]
    values.leaves["h"] = torch.arange(heads, device=values.device)[:, None, None]
    values.leaves["q"] = q[:, None, :, None]
    values.leaves["k"] = k[:, None, None, :]
    kept = evaluate(mask, values)
    if k_len is not None:
        kept = kept & (columns < k_len.to(torch.int64)[:, None, None, None])
    kept = kept[(None,) * (4 - kept.dim())]
    return kept.expand(kept.shape[0], kept.shape[1], q.shape[1], k.shape[1])


def attend(program: Program, call: Call) -> tuple[Tensor, Tensor | None]:
    """Result [B, H, Nq, Dv] in query's dtype, and lse [B, H, Nq] where the weights are softmax.

    Computed in float32, or float64 for float64 inputs.
    """
    with torch.autocast(call.query.device.type, enabled=False):
        return Evaluation(program, call).run()


class Evaluation:
    """One evaluation of a program. Rows are numbered (b * H + h) * Nq + i, pairs row * Nk + j."""

    def __init__(self, program: Program, call: Call) -> None:
        self.program, self.call = program, call
        self.device = call.query.device
        self.dtype = torch.float64 if call.query.dtype == torch.float64 else torch.float32
        self.sizes = call.sizes
        self.q = positions(call.sizes["Nq"], call.q_offset, self.device)
        self.k = positions(call.sizes["Nk"], call.k_offset, self.device)
        self.shape = (call.sizes["B"], call.sizes["H"], call.sizes["Nq"], call.sizes["Nk"])
        self.rows = self.shape[0] * self.shape[1] * self.shape[2]

    def run(self) -> tuple[Tensor, Tensor | None]:
        batches, heads, queries, _ = self.shape
        pairs = self.kept().flatten().nonzero().squeeze(1)
        query, key, value = self.inputs(pairs)
        raw = (query @ key.transpose(-1, -2) * self.call.scale).flatten()[pairs]
        logit = evaluate(self.program.score, self.pair_values(pairs, raw, query)).expand(raw.shape)
        if bool((masked := logit.detach() == -torch.inf).any()):  # such pairs are masked
            left = (~masked).nonzero().squeeze(1)
            pairs, logit = pairs[left], logit[left]
        weight, lse = self.weigh(pairs, logit, query)
        dense = torch.zeros(self.rows * self.shape[3], dtype=self.dtype, device=self.device)
        dense = dense.index_copy(0, pairs, weight).view(self.shape)
        alive = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        alive[pairs // max(self.shape[3], 1)] = True
        alive = alive.view(self.shape[:3])[..., None]
        # However steep the epilogue is at 0, a row without a key passes nothing on.
        out = self.finish(torch.where(alive, dense @ value, 0)).to(self.call.query.dtype)
        return out, None if lse is None else lse.view(batches, heads, queries)

    def values(self, leaves: dict[str, Tensor | Callable[[], Tensor]]) -> Values:
        call = self.call
        return Values(
            self.dtype, self.device, call.sizes, call.scalars, call.tensors, leaves, lanes=True
        )

    def kept(self) -> Tensor:
        """The mask as bool [B, H, Nq, Nk]."""
        values = replace(self.values({}), lanes=False)
        with torch.no_grad():
            values.leaves.update(self.chosen())
            kept = self.keep(self.program.mask, values)
            if self.program.routed is not None:
                more = self.keep(self.program.routed.mask, values)
                kept = kept | more & listed_pairs(self.program.routed, self.call)
        return kept.expand(self.shape)

    def chosen(self) -> dict[str, Tensor]:
        """The leaves that stand for selects."""
        return chosen_pairs(self.program, self.call)

    def keep(self, mask: Node, values: Values) -> Tensor:
        columns = torch.arange(self.shape[3], device=self.device)
        return keep_pairs(mask, values, self.q, self.k, columns, self.call.k_len)

    def inputs(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query, key and value per query head in the dtype of the computation.

        Rows that no pair reads are 0, whatever they hold: memory beyond k_len may be anything.
        """
        batches, heads, queries, keys = self.shape
        call, group = self.call, self.sizes["G"]
        taken = torch.zeros(self.rows * keys, dtype=torch.bool, device=self.device)
        taken[pairs] = True
        taken = taken.view(self.shape)
        read_query = taken.any(3)[..., None]
        read_key = taken.any(2).view(batches, heads // group, group, keys).any(2)[..., None]
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        query = torch.where(read_query, call.query.to(self.dtype), zero)
        key = torch.where(read_key, call.key.to(self.dtype), zero)
        value = torch.where(read_key, call.value.to(self.dtype), zero)
        return query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)

    def row_leaves(self, rows: Tensor) -> dict[str, Tensor | Callable[[], Tensor]]:
        """b, h, q and row for row numbers."""
        _, heads, queries, _ = self.shape
        return {
            "b": lambda: rows // (heads * queries),
            "h": lambda: rows // queries % heads,
            "row": lambda: rows % queries,
            "q": lambda: at_position(self.q, rows // (heads * queries), rows % queries),
        }

    def pair_values(self, pairs: Tensor, score: Tensor, query: Tensor) -> Values:
        keys = self.shape[3]
        leaves = self.row_leaves(pairs // keys) if keys else self.row_leaves(pairs)
        batch = leaves["b"]
        assert callable(batch)
        leaves["k"] = lambda: at_position(self.k, batch(), pairs % keys)
        leaves["score"] = score
        return replace(self.values(leaves), query=query)

    def row_values(self, leaves: dict[str, Tensor | Callable[[], Tensor]]) -> Values:
        """Values for a sink or an output, where a `dot` reads the query of every row."""
        return replace(self.values(leaves), query=self.call.query.to(self.dtype))

    def weigh(self, pairs: Tensor, logit: Tensor, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight of each pair, normalised, and lse [rows] where the weights are softmax."""
        rows = pairs // max(self.shape[3], 1)
        weights = self.program.weights
        if weights.form == "softmax":
            return self.softmax(rows, logit)
        assert weights.value is not None
        weight = evaluate(weights.value, self.pair_values(pairs, logit, query))
        weight = weight.expand(logit.shape)
        if weights.form == "elementwise":
            return weight, None
        total = self.sum_rows(rows, weight)
        nought = total == 0  # such rows give 0 and pass no gradient
        total = torch.where(nought, 1, total)
        weight = torch.where(nought[rows], torch.zeros_like(weight), weight)
        return weight / total[rows], None

    def sum_rows(self, rows: Tensor, value: Tensor) -> Tensor:
        zeros = torch.zeros(self.rows, dtype=self.dtype, device=self.device)
        return zeros.index_add(0, rows, value)

    def softmax(self, rows: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax over the pairs of each row; a row without pairs has lse -inf, sink or not."""
        top = torch.full((self.rows,), -torch.inf, dtype=self.dtype, device=self.device)
        top = top.scatter_reduce(0, rows, logit.detach(), "amax")
        filled = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        filled[rows] = True
        alive = filled.nonzero().squeeze(1)
        sink = self.program.weights.sink
        sinks = None
        if sink is not None:
            sinks = evaluate(sink, self.row_values(self.row_leaves(alive))).expand(alive.shape)
            top = top.index_copy(0, alive, torch.maximum(top[alive], sinks.detach()))
        exponential = torch.exp(logit - top[rows])
        total = self.sum_rows(rows, exponential)
        if sinks is not None:
            total = total.index_add(0, alive, torch.exp(sinks - top[alive]))
        lse = torch.full_like(top, -torch.inf)
        lse = lse.index_copy(0, alive, top[alive] + torch.log(total[alive]))
        return exponential / total[rows], lse

    def finish(self, out: Tensor) -> Tensor:
        """The epilogue, on every element of the result [B, H, Nq, Dv]."""
        if self.program.output is None:
            return out
        width = out.shape[-1]
        elements = torch.arange(out.numel(), device=self.device)
        leaves = self.row_leaves(elements // width)
        leaves["d"] = elements % width
        leaves["out"] = out.flatten()
        result = evaluate(self.program.output, self.row_values(leaves))
        return result.expand(elements.shape).view(out.shape)
