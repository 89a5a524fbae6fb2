"""The kernel that chooses on a CUDA GPU, against torch operations on the CPU."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from attndsl.runtime.choosing.choice import Choosing, lists_of
from attndsl.runtime.choosing.fused import Fused
from attndsl.runtime.choosing.ranks import Evaluation
from tests.runtime.test_choice_fused import by_operations, long_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set"
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 16, 64])
@pytest.mark.parametrize("per_group", [False, True])
def test_on_a_gpu(dtype: torch.dtype, count: int, per_group: bool) -> None:
    for rank in ("dot", "quest"):
        case = long_case(count, dtype=dtype, rank=rank, group=2, per_group=per_group)
        inputs = case.inputs
        there = replace(inputs, query=inputs.query.cuda(), key=inputs.key.cuda())
        choosing = Choosing.of(case.select, there)
        evaluation = Evaluation(there, choosing.rows, choosing.columns)
        assert Fused.of(case.select, evaluation, count) is not None
        wanted = by_operations(Choosing.of(case.select, inputs))
        assert torch.equal(lists_of(choosing).cpu(), wanted)
