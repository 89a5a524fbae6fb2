"""Random programs in both generators against the oracle: results, all gradients, never a NaN."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.oracle.compare import check_case
from tests.oracle.random_programs import Case, programs, seeded

PARTS = 10

RELAXED = settings(
    deadline=None,
    database=None,
    derandomize=False,
    print_blob=False,
    report_multiple_bugs=False,
    # Shrinking compiles hundreds of programs more: add Phase.shrink by hand where it is wanted.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore")  # what the compiler finds odd in a random program
@pytest.mark.parametrize("part", range(PARTS))
def test_torch_generator(part: int) -> None:
    """500 programs in float64."""

    @hypothesis.seed(part)
    @settings(RELAXED, max_examples=500 // PARTS)
    @given(programs())
    def agrees(case: Case) -> None:
        check_case(case, "torch", torch.float64, 1e-6)

    agrees()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_triton_generator(seed: int) -> None:
    check_case(seeded(seed), "triton", torch.float32, 2e-3)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_triton_generator_sweep(seed: int) -> None:
    check_case(seeded(seed), "triton", torch.float32, 2e-3)
