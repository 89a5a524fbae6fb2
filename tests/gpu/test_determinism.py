"""Results and gradients on a CUDA GPU are the same bits from run to run, unless given up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from tests.gpu.run import TOLERANCES
from tests.oracle.compare import Results, cast, difference, differentiate, is_softmax
from tests.oracle.examples import FOLDER, NAMES, Inputs, Sizes, example_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set"
    ),
]

RUNS = 10
# Enough programs that those of one head run side by side; no multiple of a tile.
SIZES = Sizes(batch=2, heads=8, key_heads=2, length=1000, width=64, value_width=64)
WIDE = Sizes(batch=1, heads=4, key_heads=2, length=1000, width=128, value_width=128)


def inputs_on_gpu(name: str, dtype: torch.dtype, sizes: Sizes) -> tuple[dict[str, Any], Inputs]:
    query, key, value, inputs = example_inputs(name, sizes)
    given = {n: cast(x, dtype) for n, x in (("query", query), ("key", key), ("value", value))}
    given |= {n: cast(x, torch.float32) for n, x in inputs.arguments.items()}
    return {n: x.cuda() if isinstance(x, Tensor) else x for n, x in given.items()}, inputs


def results(path: Path, given: dict[str, Any], inputs: Inputs, deterministic: bool) -> Results:
    """out, lse where there is one, and all gradients."""
    wants_lse = is_softmax(path.read_text(encoding="utf-8"))
    attention = attndsl.compile(
        path, backend="triton", deterministic=deterministic, **inputs.consts
    )

    def call(**arguments: Any) -> Any:
        result = attention(**arguments, **inputs.call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    return differentiate(call, given, wants_lse)


@pytest.mark.parametrize("sizes", [SIZES, WIDE], ids=["d64", "d128"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_each_time(name: str, sizes: Sizes) -> None:
    path = FOLDER / f"{name}.attn"
    given, inputs = inputs_on_gpu(name, torch.bfloat16, sizes)
    first = results(path, given, inputs, deterministic=True)
    for _ in range(RUNS):
        again = results(path, given, inputs, deterministic=True)
        for what, expected in first.items():
            # As whole numbers: NaN would differ from itself.
            bits = torch.int16 if expected.element_size() == 2 else torch.int32
            assert torch.equal(again[what].view(bits), expected.view(bits)), what


@pytest.mark.parametrize("sizes", [SIZES, WIDE], ids=["d64", "d128"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sums_in_any_order_are_right(name: str, dtype: torch.dtype, sizes: Sizes) -> None:
    """What may differ from run to run differs by rounding alone."""
    path = FOLDER / f"{name}.attn"
    given, inputs = inputs_on_gpu(name, dtype, sizes)
    want = results(path, given, inputs, deterministic=True)
    got = results(path, given, inputs, deterministic=False)
    wrong = difference(got, want, TOLERANCES[dtype], 1e-3)
    assert not wrong, wrong
