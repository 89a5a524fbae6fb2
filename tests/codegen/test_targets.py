"""Kernels for every target, without a GPU: what fits its shared memory; boxes, wide heads, dtypes
on sm_90. What sm_90 takes is held by `test_resources.py`."""

from pathlib import Path

import pytest

from tests.codegen.compilers import (
    EXAMPLES,
    HEAD_DIMS,
    MATRIX_KERNELS,
    SHARED_LIMITS,
    Compilers,
    matrix_kernels,
    plan_of,
)

OTHER_TARGETS = ("sm_80", "sm_100", "gfx942")


def is_in_ci(number: int, target: str, head_dim: int) -> bool:
    """Every other example, for one of the targets in turn, at a head dimension of 64."""
    return number % 2 == 0 and OTHER_TARGETS[number % 3] == target and head_dim == 64


OTHERS = [
    pytest.param(
        path,
        target,
        head_dim,
        id=f"{path.stem}-{target}-d{head_dim}",
        marks=[] if is_in_ci(i, target, head_dim) else [pytest.mark.sweep],
    )
    for i, path in enumerate(EXAMPLES)
    for target in OTHER_TARGETS
    for head_dim in HEAD_DIMS
]


@pytest.mark.parametrize(
    "name",
    ["swin", *(pytest.param(n, marks=pytest.mark.sweep) for n in ("gna", "neighborhood_3d"))],
)
def test_boxes_on_hopper(name: str, compilers: Compilers) -> None:
    path = Path("examples") / f"{name}.attn"
    for kernels in compilers.compile(plan_of(path, "sm_90", 64, order="boxes")):
        for kernel in kernels:
            assert kernel.spill_bytes == 0, kernel
            assert (kernel.wgmma > 0) or kernel.name not in MATRIX_KERNELS, kernel


@pytest.mark.parametrize(("path", "target", "head_dim"), OTHERS)
def test_other_targets(path: Path, target: str, head_dim: int, compilers: Compilers) -> None:
    for kernels in compilers.compile(plan_of(path, target, head_dim)):
        assert {kernel.name for kernel in kernels} >= matrix_kernels(kernels)
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_widest_heads_fit(target: str, dtype: str, compilers: Compilers) -> None:
    path = Path("examples/gemma2_local.attn")
    for kernels in compilers.compile(plan_of(path, target, 256, dtype)):
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_hopper_in_other_dtypes(path: Path, dtype: str, compilers: Compilers) -> None:
    plans = [plan_of(path, "sm_90", head_dim, dtype) for head_dim in HEAD_DIMS]
    for kernels in compilers.compile(*plans):
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_LIMITS[kernel.target], kernel
            if dtype == "float16":
                assert kernel.spill_bytes == 0, kernel
