"""Caches of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attndsl.runtime import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory of generated files, and no module in the process."""
    place = tmp_path / "cache"
    monkeypatch.setenv("ATTNDSL_CACHE", str(place))
    cache.forget()
    yield place
    cache.forget()
