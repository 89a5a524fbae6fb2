"""Attention over all pairs, from the same functions that FlexAttention is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.report.bench.inputs import Inputs
from attndsl.report.bench.masks import Mask
from attndsl.report.bench.shapes import Shape

ROWS = 64  # queries of every head that results are compared on
BLOCK = 8  # neighbours among them
PRECISE = 1 << 25  # scores up to which they are computed in float64, else in float32
MOST_SCORES = 1 << 30  # that are held for a comparison


def attend(inputs: Inputs, mask: Mask, rows: Tensor | None = None, first: int = 0) -> Tensor:
    """Rows of attention, all unless given: [B, H, rows, D]. Every row has a key.

    first  the number of the first sequence, for what is looked up by it
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    rows = torch.arange(query.shape[2], device=query.device) if rows is None else rows
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) if group > 1 else x for x in (key, value))
    scores = query[:, :, rows] @ key.mT * query.shape[3] ** -0.5
    b, h = (torch.arange(n, device=query.device) for n in query.shape[:2])
    keys = torch.arange(key.shape[2], device=query.device)
    place = (b[:, None, None, None] + first, h[:, None, None], rows[:, None], keys)
    if mask.scored is not None:
        scores = mask.scored(inputs.given)(scores, *place)
    if mask.kept is not None:
        scores = scores.masked_fill(~mask.kept(inputs.given)(*place), -torch.inf)
    if mask.sink is not None:
        sink: Tensor = inputs.given[mask.sink]
        beside = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, beside), 3)
    weights = scores.softmax(3)[..., : key.shape[2]].to(value.dtype)
    out: Tensor = weights @ value
    return out


@dataclass(frozen=True)
class Expected:
    """Results on some rows, and gradients where only these rows have one."""

    rows: Tensor
    out: Tensor
    gradients: tuple[Tensor, ...]


def some_rows(shape: Shape) -> Tensor:
    """Blocks of neighbours from the first query to the last; all queries where these are few."""
    count = min(ROWS, max(1, MOST_SCORES // (shape.batch * shape.heads * shape.keys)))
    if shape.queries <= count:
        return torch.arange(shape.queries)
    width = min(BLOCK, count)
    starts = torch.linspace(0, shape.queries - width, max(1, count // width)).long()
    rows = sorted(set((starts[:, None] + torch.arange(width)).flatten().tolist()))
    return torch.tensor(rows)


def expect(inputs: Inputs, mask: Mask, shape: Shape, backward: bool) -> Expected:
    """What every implementation has to give, one sequence after the other."""
    rows = some_rows(shape).to(inputs.query.device)
    scores = shape.heads * len(rows) * shape.keys
    is_precise = scores * shape.batch <= PRECISE or inputs.query.dtype == torch.float64
    dtype = torch.float64 if is_precise else torch.float32
    roots = [root.detach().to(dtype).requires_grad_(backward) for root in inputs.roots]
    tables = dict(zip(mask.learned, roots[3:], strict=True))
    outs = []
    for b in range(shape.batch):
        query, key, value = (root[b : b + 1] for root in roots[:3])
        part = Inputs(query, key, value, inputs.grad_out, inputs.given | tables)
        out = attend(part, mask, rows, b)
        if backward:
            torch.autograd.backward((out * inputs.grad_out[b : b + 1, :, rows].to(dtype)).sum())
        outs.append(out.detach())
    gradients = tuple(root.grad for root in roots if root.grad is not None)
    return Expected(rows, torch.cat(outs), gradients)


def relative(got: Tensor, expected: Tensor) -> float:
    """How far apart, as a part of the size of what is expected."""
    difference = (got.to(expected.dtype) - expected).norm()
    return float(difference / expected.norm().clamp(min=1e-12))
