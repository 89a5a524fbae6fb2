"""Calls of few queries on a CUDA GPU: lengths in tensors, in a CUDA graph; and many windows."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from tests.gpu.run import TOLERANCES
from tests.oracle.compare import cast
from tests.oracle.examples import FOLDER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set"
    ),
]

BATCH, KEY_HEADS, LENGTH, WIDTH = 4, 2, 3000, 128
NAMES = ("causal", "gpt_oss", "alibi", "gemma2_local", "packed_documents", "retention", "sigmoid")


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def parameters_of(name: str, heads: int) -> dict[str, Any]:
    if name == "gpt_oss":
        return {"sink": randn(heads, dtype=torch.float32), "window": 700}
    if name == "gemma2_local":
        return {"window": 1500}
    if name == "packed_documents":
        doc = torch.arange(LENGTH + 64, device="cuda") // 900
        return {"doc": doc.expand(BATCH, -1).contiguous()}
    return {}


def compare(got: Tensor, want: Tensor) -> None:
    assert not torch.isnan(got).any()
    error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1e-2)
    assert error <= TOLERANCES[torch.bfloat16], float(error)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("name", NAMES)
def test_replayed_with_other_lengths(name: str, rows: int, group: int) -> None:
    """A graph is captured once; new contents and lengths are written into its inputs."""
    heads = KEY_HEADS * group
    query = randn(BATCH, heads, rows, WIDTH)
    key, value = (randn(BATCH, KEY_HEADS, LENGTH, WIDTH) for _ in range(2))
    k_len = torch.full((BATCH,), LENGTH, device="cuda")
    q_offset = k_len - rows
    given = {"query": query, "key": key, "value": value, **parameters_of(name, heads)}
    call = {"q_offset": q_offset, "k_len": k_len}
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend="triton")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        attention(**given, **call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = attention(**given, **call)

    for lengths in ([LENGTH] * BATCH, [rows, 64, 65, 2999], [900, 1800, 1801, 128]):
        k_len.copy_(torch.tensor(lengths))
        q_offset.copy_(k_len - rows)
        for tensor in (query, key, value):
            tensor.normal_()
        for at, length in enumerate(lengths):  # what lies beyond a length is not read
            key[at, :, length:] = torch.nan
            value[at, :, length:] = torch.nan
        graph.replay()
        first = out.clone()
        graph.replay()
        assert torch.equal(out, first)
        exact = {n: cast(x, torch.float64) for n, x in given.items()}
        exact |= {n: torch.nan_to_num(exact[n]) for n in ("key", "value")}
        compare(out, attention.reference(**exact, **call))


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("heads", [3, 4])
def test_windows(heads: int, width: int) -> None:
    """Swin's windows as sequences of 49 tokens, more of them than programs."""
    batch, side = 1500, 7
    query, key, value = (randn(batch, heads, side * side, width) for _ in range(3))
    bias = randn(heads, 2 * side - 1, 2 * side - 1, dtype=torch.float32)
    sizes = {"height": side, "width": side, "window": side}
    given = {"query": query, "key": key, "value": value, "bias": bias, **sizes}
    attention = attndsl.compile(FOLDER / "swin.attn", backend="triton")
    with torch.no_grad():
        out = attention(**given)
        assert torch.equal(out, attention(**given))
    compare(out, attention.reference(**{n: cast(x, torch.float64) for n, x in given.items()}))
