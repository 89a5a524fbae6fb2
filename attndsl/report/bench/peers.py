"""The peers of torch: FlexAttention, compiled as it comes and tuned, and every backend of SDPA."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attndsl.report.bench.cases import PEERS, Case
from attndsl.report.bench.implementations import (
    Implementation,
    Maker,
    Refused,
    dense_pytorch,
    refuse_dense,
)
from attndsl.report.bench.inputs import Inputs

TUNED = "max-autotune-no-cudagraphs"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
CPU_BACKENDS = ("flash", "math")
# What a peer raises where it cannot do a case: a compiler's errors are RuntimeErrors, too.
PEER_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    ImportError,
    OSError,
    ArithmeticError,
)


def peers(case: Case, device: str, chosen: tuple[str, ...] = PEERS) -> Iterator[tuple[str, Maker]]:
    """The peers that a device has, by name."""
    if "flex" in chosen:
        yield "FlexAttention", functools.partial(flex, mode=None)
    if "tuned" in chosen and device != "cpu":
        yield "FlexAttention, tuned", functools.partial(flex, mode=TUNED)
    if "sdpa" in chosen:
        for backend in CPU_BACKENDS if device == "cpu" else BACKENDS:
            yield f"SDPA, {backend}", functools.partial(sdpa, backend=backend)
    if "dense" in chosen:
        yield "PyTorch, dense", dense_pytorch


# -- FlexAttention ---------------------------------------------------------------------------------


def flex(case: Case, device: str, mode: str | None) -> Implementation:
    """Compiled as its users do, with a block mask; lengths are its own constants."""
    mask, shape = case.mask, case.shape
    if mask.sink is not None and device == "cpu":
        raise Refused("it has no sinks, and gives no logarithm of the denominator on a CPU")
    attention: Callable[..., Any] = torch.compile(flex_attention, dynamic=False, mode=mode)
    make: Callable[..., Any] = create_block_mask
    if device != "cpu":
        make = torch.compile(create_block_mask)

    def prepare(inputs: Inputs) -> object:
        assert mask.kept is not None
        batch = shape.batch if mask.by_batch else None
        return make(mask.kept(inputs.given), batch, None, shape.queries, shape.keys, device=device)

    def attend(inputs: Inputs, prepared: object) -> Tensor:
        scored = None if mask.scored is None else mask.scored(inputs.given)
        called = [inputs.query, inputs.key, inputs.value]
        if device == "cpu":  # where it refuses what wants a gradient, even if none is recorded
            called = [tensor.detach() for tensor in called]
        result = attention(
            *called,
            score_mod=scored,
            block_mask=prepared,
            enable_gqa=shape.heads != shape.kv_heads,
            return_lse=mask.sink is not None,
        )
        if mask.sink is None:
            assert isinstance(result, Tensor)
            return result
        out, lse = result
        # exp(lse) / (exp(lse) + exp(sink)) of every row is what the sink leaves to the keys.
        left: Tensor = torch.sigmoid(lse - inputs.given[mask.sink][:, None])
        weighted: Tensor = out * left[..., None].to(out.dtype)
        return weighted

    name = "FlexAttention" if mode is None else "FlexAttention, tuned"
    made = None if mask.kept is None else prepare
    return Implementation(name, attend, made, has_backward=device != "cpu")


# -- SDPA ------------------------------------------------------------------------------------------


def sdpa(case: Case, device: str, backend: str) -> Implementation:
    """One backend, without a mask, with `is_causal`, or with a dense mask or bias."""
    mask, shape = case.mask, case.shape
    if mask.sink is not None or (mask.scored is not None and not mask.adds):
        raise Refused("it has no " + ("sinks" if mask.sink else "function of the score"))
    is_causal = mask.is_causal and mask.scored is None
    needs_mask = mask.kept is not None and not is_causal
    if backend == "math":
        refuse_dense(case, device)
    elif needs_mask:
        batches, heads = mask_copies(case)
        refuse_dense(replace(case, shape=replace(shape, batch=batches, heads=heads)), device)

    def prepare(inputs: Inputs) -> object:
        return dense_mask(case, inputs)

    def attend(inputs: Inputs, prepared: object) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return torch.nn.functional.scaled_dot_product_attention(
                *(inputs.query, inputs.key, inputs.value),
                attn_mask=prepared if isinstance(prepared, Tensor) else None,
                is_causal=is_causal,
                enable_gqa=shape.heads != shape.kv_heads,
            )

    return Implementation(f"SDPA, {backend}", attend, prepare if needs_mask else None)


def mask_copies(case: Case) -> tuple[int, int]:
    """For how many sequences and heads a dense mask differs."""
    mask, shape = case.mask, case.shape
    return (shape.batch if mask.by_batch else 1, 1 if mask.scored is None else shape.heads)


def dense_mask(case: Case, inputs: Inputs) -> Tensor:
    """bool [B or 1, 1, Nq, Nk]; where the score has a bias, that instead: [1, H, Nq, Nk] in the
    dtype of the query, -inf where no pair is kept."""
    mask, shape, device = case.mask, case.shape, inputs.query.device
    assert mask.kept is not None
    b, h = (torch.arange(count, device=device) for count in mask_copies(case))
    b, h = b[:, None, None, None], h[:, None, None]
    q = torch.arange(shape.queries, device=device)[:, None]
    k = torch.arange(shape.keys, device=device)
    size = (len(b), len(h), shape.queries, shape.keys)
    kept = mask.kept(inputs.given)(b, h, q, k).expand(size)
    if mask.scored is None:
        return kept.contiguous()
    bias = mask.scored(inputs.given)(torch.zeros((), device=device), b, h, q, k)
    return torch.where(kept, bias, -torch.inf).to(inputs.query.dtype)
