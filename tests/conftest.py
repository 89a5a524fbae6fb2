"""Settings of every test process: Triton's interpreter, one thread, a cache of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# Before anything imports Triton: its interpreter runs kernels on CPU tensors. Tests that compile
# for a GPU do so in processes of their own.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Where a test does not ask for the C++ engine (tests/codegen/test_cpp*.py do), "auto" on a CPU is
# PyTorch: each module of the other one is a build of a second or two.
os.environ.setdefault("ATTNDSL_CXX", "")

import hypothesis  # noqa: E402
import torch  # noqa: E402

# A run of the tests says the same twice, however busy the machine; the sweeps (make sweep) draw
# anew.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")
torch.set_num_threads(1)  # the inputs are tiny, and workers run side by side


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write expected outputs anew instead of comparing",
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether expected outputs are to be written anew."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session", autouse=True)
def private_cache() -> Iterator[None]:
    """Generated modules of the tests go where they are removed with them."""
    with tempfile.TemporaryDirectory(prefix="attndsl-tests-") as folder:
        before = os.environ.get("ATTNDSL_CACHE")
        os.environ["ATTNDSL_CACHE"] = folder
        yield
        if before is None:
            del os.environ["ATTNDSL_CACHE"]
        else:
            os.environ["ATTNDSL_CACHE"] = before
