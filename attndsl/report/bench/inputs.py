"""Random tensors for a case, and enough copies of them that no cache holds what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.report.bench.cases import Case

COPIES = 3  # times the L2 cache that all copies take together
MOST_COPIES = 16
STEPS = 4  # masks that take turns where every call has its own


@dataclass(frozen=True)
class Inputs:
    """query [B, H, Nq, D], key and value [B, Hk, Nk, D], grad_out [B, H, Nq, D]; and what the mask
    and the score read, for a call of the program and for FlexAttention's functions alike."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    given: dict[str, Any]
    learned: tuple[Tensor, ...] = ()  # of `given`

    @property
    def roots(self) -> tuple[Tensor, ...]:
        """What gradients are taken of."""
        return (self.query, self.key, self.value, *self.learned)


def draw(case: Case, device: str) -> list[Inputs]:
    """Copies that differ. Raises ArgumentError for sizes that no call has."""
    shape = case.shape
    if min(shape.batch, shape.heads, shape.kv_heads, shape.queries, shape.keys, shape.width) < 1:
        raise ArgumentError(f"{case.text}: every size is at least 1")
    first = one(case, device, 0)
    held = sum(tensor.nbytes for tensor in first.roots) + first.grad_out.nbytes
    count = copies(held, device)
    if case.has_steps:
        count = max(count, STEPS)
    return [first, *(one(case, device, step) for step in range(1, count))]


def copies(held: int, device: str) -> int:
    """One on a CPU, where a model's tensors have just been written too."""
    if device == "cpu":
        return 1
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_COPIES, max(2, -(-COPIES * cache // max(held, 1))))


def one(case: Case, device: str, step: int) -> Inputs:
    shape, random = case.shape, torch.Generator(device).manual_seed(step)
    dtype: torch.dtype = getattr(torch, case.dtype)

    def normal(heads: int, length: int) -> Tensor:
        size = (shape.batch, heads, length, shape.width)
        return torch.randn(size, generator=random, device=device, dtype=dtype)

    query, grad_out = (normal(shape.heads, shape.queries) for _ in range(2))
    key, value = (normal(shape.kv_heads, shape.keys) for _ in range(2))
    given = case.mask.given(shape, step if case.has_steps else 0)
    given = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in given.items()}
    learned = tuple(given[name] for name in case.mask.learned)
    found = Inputs(query, key, value, grad_out, given, learned)
    if case.backward:
        for tensor in found.roots:
            tensor.requires_grad_()
    return found


def refuse_constant(inputs: Inputs) -> None:
    """Raises ArgumentError for a tensor whose entries are all equal: zeros cost a device less power
    than numbers, so it runs faster than it ever would."""
    names = ("query", "key", "value", "grad_out")
    for name in names:
        tensor: Tensor = getattr(inputs, name).detach()
        if tensor.numel() > 1 and bool(tensor.amin() == tensor.amax()):
            raise ArgumentError(
                f"{name}: all entries are equal; times of such tensors mean nothing"
            )
