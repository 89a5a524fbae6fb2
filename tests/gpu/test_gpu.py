"""Every example on a CUDA GPU, in fp16 and bf16, against the float64 reference there."""

from __future__ import annotations

import os

import pytest
import torch

from tests.gpu.run import TOLERANCES, check
from tests.oracle.examples import NAMES, Sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set"
    ),
]


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_example_on_gpu(name: str, dtype: torch.dtype, width: int) -> None:
    row = check(name, dtype, Sizes(2, 4, 2, 500, width, width))
    assert row.passed, row.errors
