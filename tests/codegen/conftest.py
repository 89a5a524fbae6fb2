"""Fixtures of tests that compile kernels for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.codegen.compilers import Compilers


@pytest.fixture(scope="session")
def compilers() -> Iterator[Compilers]:
    """One process beside each that tests: kernels are compiled one after the other."""
    made = Compilers()
    yield made
    made.close()
