"""What tests of the C++ engine share: a compiler, and builds that are quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attndsl.codegen.cpp import build_library
from attndsl.codegen.cpp import module as cpp_module

from attndsl.plan.kernel_plan import KernelPlan
from attndsl.runtime import cache


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The machine's compiler; skips where it has none."""
    monkeypatch.delenv("ATTNDSL_CXX", raising=False)
    found = build_library.attn_compiler()
    if found is None:
        pytest.skip("no C++ compiler")
    yield found


@pytest.fixture
def quick(compiler: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Builds without optimisation: they take half as long, and compute the same."""
    flags = cpp_module.flags_of

    def unoptimised(plan: KernelPlan) -> tuple[str, ...]:
        return (*flags(plan), "-O0")

    monkeypatch.setattr(cpp_module, "flags_of", unoptimised)
    cache.forget()
    yield
    cache.forget()
