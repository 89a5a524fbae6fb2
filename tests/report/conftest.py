"""Sizes of tiles that a test gives itself, so that it rests on no table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request
from attndsl.report import explain
from attndsl.report.bench import sparsity
from attndsl.report.requests import request_for
from tests.report.room import Tile, sizes_of

GiveTiles = Callable[[Tile, Tile, Tile], None]


@pytest.fixture
def give_tiles(monkeypatch: pytest.MonkeyPatch) -> GiveTiles:
    """Lets reports plan with these tiles (queries and keys) of forward, dq and dkv."""

    def give(forward: Tile, dq: Tile, dkv: Tile) -> None:
        def sized(
            program: Program, target: str, dtype: str, head_dim: int, value_dim: int
        ) -> Request:
            request = request_for(program, target, dtype, head_dim, value_dim)
            return replace(request, sizes=sizes_of(forward, dq, dkv))

        for module in (explain, sparsity):
            monkeypatch.setattr(module, "request_for", sized)

    return give
