"""What tests of the C++ engine share: a compiler, and builds that are quick."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
from attndsl.codegen.cpp import build_library
from attndsl.codegen.cpp import module as cpp_module

from attndsl.plan.kernel_plan import KernelPlan
from attndsl.runtime import cache


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """The command of the machine's compiler; skips where it has none."""
    monkeypatch.delenv("ATTNDSL_CXX", raising=False)
    found = build_library.attn_compiler()
    if not found:
        pytest.skip("no C++ compiler")
    yield found


@pytest.fixture
def quick(compiler: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Builds without optimisation: they take half as long, and compute the same."""
    yield from building_with(monkeypatch, "-O0")


def building_with(monkeypatch: pytest.MonkeyPatch, *further: str) -> Iterator[None]:
    """Modules have further flags."""
    flags = cpp_module.flags_of

    def changed(plan: KernelPlan) -> tuple[str, ...]:
        return (*flags(plan), *further)

    monkeypatch.setattr(cpp_module, "flags_of", changed)
    cache.forget()
    yield
    cache.forget()


@pytest.fixture
def sanitised(
    compiler: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[None]:
    """Builds that say where they do what C++ does not define: the test then fails."""
    flags = ("-O0", "-g", "-fsanitize=undefined")
    try:
        ctypes.CDLL(
            str(build_library.attn_build("int attn_trial() { return 7; }", tmp_path, flags))
        )
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no sanitizer: {error}")
    yield from building_with(monkeypatch, *flags)
    said = capfd.readouterr().err
    assert "runtime error" not in said, said
