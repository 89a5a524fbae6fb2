"""The bench on a CUDA GPU: every suite in small, with every peer that accepts it."""

from __future__ import annotations

import pytest
import torch

from attndsl.report.bench.cases import Wish
from attndsl.report.bench.comparison import Comparison
from attndsl.report.bench.suites import check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]


@pytest.mark.parametrize("suite", ["core", "documents", "window", "decode"])
def test_a_suite(suite: str) -> None:
    wish = Wish("cuda", lengths=(1024, 2048), peers=("flex", "sdpa", "dense"), is_quick=True)
    found = check(suite, wish)()
    assert isinstance(found, Comparison) and found.passed, found.text
    for case in {entry.case for entry in found.entries}:
        entries = {entry.name: entry for entry in found.entries if entry.case == case}
        assert {"attndsl", "FlexAttention"} <= set(entries), found.text
        for entry in entries.values():
            assert set(entry.passes) == {"forward", *(["backward"] if case.backward else [])}
            assert all(figure.ms > 0 for figure in entry.passes.values())
            assert entry.peak_bytes is not None
    if suite == "core":
        assert {"SDPA, flash", "SDPA, efficient"} <= {entry.name for entry in found.entries}
