"""merge: one attention from several over disjoint keys, by their denominators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.runtime.arguments import FLOATS, check_layout, describe

LSE_DTYPES = (torch.float32, torch.float64)
MEANING = "outputs: expected [(out, lse), ...], as `return_lse=True` gives them"


def merge(outputs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The softmax attention over all keys together, from attentions over parts of them.

    outputs  pairs of out [..., Nq, Dv] and lse [..., Nq] (natural logarithm of the softmax
             denominator), of the same shapes; a key belongs to one of them, else it counts twice

    Returns (out, lse) of these shapes: out in the dtype of the outs, lse in float32, or in float64
    where an input is. Computed in that dtype, and differentiable in every out and lse, any number
    of times. A row whose lse is -inf has no key there and adds nothing, whatever its out holds; a
    row that has none anywhere gives out 0 and lse -inf, and its gradients are 0. A single pair is
    returned as it is. Raises ArgumentError.
    """
    pairs = check_outputs(outputs)
    if len(pairs) == 1:
        return pairs[0]
    outs, lses = zip(*pairs, strict=True)
    dtype = torch.promote_types(outs[0].dtype, lses[0].dtype)
    stacked = torch.stack(lses).to(dtype)
    greatest = stacked.detach().amax(0)
    # Rows without any key are taken out before the exponential: -inf less -inf is no number.
    base = greatest.masked_fill(greatest == -torch.inf, 0.0)
    parts = torch.exp(stacked - base)
    total = parts.sum(0)
    is_empty = total == 0
    total = total.masked_fill(is_empty, 1.0)
    lse = (base + torch.log(total)).masked_fill(is_empty, -torch.inf)
    shares = (parts / total).unsqueeze(-1)
    out = sum_of_shares(shares, outs, dtype)
    return out.to(outs[0].dtype), lse


def sum_of_shares(shares: Tensor, outs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Of shares [n, ..., Nq, 1]. A share of 0 selects rather than multiplies: an `output` statement
    may leave an infinity in a row without keys."""
    total = torch.zeros_like(outs[0], dtype=dtype)
    for share, out in zip(shares, outs, strict=True):
        total = total + share * out.to(dtype).masked_fill(share == 0, 0.0)
    return total


def check_outputs(outputs: object) -> list[tuple[Tensor, Tensor]]:
    """The pairs, alike in shapes, dtypes and devices."""
    if not isinstance(outputs, (list, tuple)) or not outputs:
        got = "none" if isinstance(outputs, (list, tuple)) else describe(outputs)
        raise ArgumentError(f"{MEANING}; got {got}")
    pairs = [check_pair(f"outputs[{i}]", pair) for i, pair in enumerate(outputs)]
    first_out, first_lse = pairs[0]
    for i, (out, lse) in enumerate(pairs):
        check_alike(f"outputs[{i}].out", out, first_out, "outputs[0].out")
        check_alike(f"outputs[{i}].lse", lse, first_lse, "outputs[0].lse")
    return pairs


def check_pair(name: str, pair: object) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        hint = "; ask the call for `return_lse=True`" if isinstance(pair, Tensor) else ""
        raise ArgumentError(f"{name}: expected a pair (out, lse), got {describe(pair)}{hint}")
    out = check_part(f"{name}.out", pair[0], "[..., Nq, Dv]", FLOATS)
    lse = check_part(f"{name}.lse", pair[1], "[..., Nq]", LSE_DTYPES)
    if lse.shape != out.shape[:-1]:
        raise ArgumentError(
            f"{name}.lse: expected the shape {list(out.shape[:-1])} of {name}.out without its last "
            f"dimension, got {describe(lse)}"
        )
    if lse.device != out.device:
        raise ArgumentError(
            f"{name}.lse: expected a tensor on {out.device}, got one on {lse.device}"
        )
    return out, lse


def check_part(name: str, value: object, shape: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{name}: expected a torch.Tensor {shape}, got {describe(value)}")
    check_layout(name, value)
    if value.dtype not in dtypes:
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ArgumentError(f"{name}: expected {known}, got {describe(value)}")
    if not value.dim():
        raise ArgumentError(f"{name}: expected {shape}, got {describe(value)}")
    return value


def check_alike(name: str, value: Tensor, first: Tensor, origin: str) -> None:
    if value.shape != first.shape or value.dtype != first.dtype:
        raise ArgumentError(
            f"{name}: expected a tensor like {origin}, {describe(first)}, got {describe(value)}"
        )
    if value.device != first.device:
        raise ArgumentError(
            f"{name}: expected a tensor on {first.device} like {origin}, got one on {value.device}"
        )
